import random

import pytest

from rollout.config import FamilyConfig, Source
from rollout.problem import DataError
from rollout.programs import make_program
from rollout.sources import open_source


def _passes(program: str, tests: tuple[str, ...]) -> bool:
    """Ours, not a model's: so it may run here."""
    names: dict[str, object] = {}
    exec(program, names)
    try:
        for test in tests:
            exec(test, names)
    except AssertionError:
        return False
    return True


@pytest.mark.parametrize("steps", [1, 2, 3])
def test_careful_programs_pass_and_careless_ones_fail_where_parentheses_are_needed(
    steps: int,
) -> None:
    made = [make_program(random.Random(seed), steps) for seed in range(1000)]
    assert all(_passes(each.careful, each.tests) for each in made)
    needed = [each for each in made if each.careful != each.careless]
    assert not any(_passes(each.careless, each.tests) for each in needed)
    assert {1: 0, 2: 330, 3: 550}[steps] <= len(needed) < {1: 1, 2: 430, 3: 700}[steps]


def test_no_constant_passes_all_tests() -> None:
    for seed in range(1000):
        made = make_program(random.Random(seed), 2)
        results = {test.partition("== ")[2] for test in made.tests}
        assert len(results) > 1, made


def test_a_program_as_it_is_asked_and_written() -> None:
    made = make_program(random.Random(0), 2)
    assert made.question == (
        "Write f(a, b) in Python: take b, subtract it from a, subtract it from 5."
    )
    assert made.careful == "def f(a, b):\n    return 5 - (a - b)"
    assert made.careless == "def f(a, b):\n    return 5 - a - b"
    assert made.tests[0] == "assert f(9, 4) == 0"


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"step": 2}, r"families\[p\]\.options has no 'step' \(did you mean 'steps'\?\)"),
        ({"steps": 0}, r"families\[p\]\.options\.steps must lie in \[1, 9\], got 0"),
        ({"steps": "2"}, "got '2'"),
    ],
)
def test_a_bad_option_is_named(options: dict[str, object], message: str) -> None:
    with pytest.raises(DataError, match=message):
        open_source(FamilyConfig(source=Source.programs, name="p", options=options), seed=0)
