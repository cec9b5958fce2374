import string
from collections.abc import Iterator

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from rewards.errors import RewardError
from rewards.math_answer import MathVerifier, quick_verdict
from rewards.mathematics.expression import Unreadable, read_expression
from rewards.mathematics.forms import read_form, read_gold
from rewards.mathematics.text import boxes, choice, clean, final_answers, normal, number, words
from rewards.mathematics.units import measure

PIECES = st.sampled_from(
    [
        r"\boxed{",
        r"\fbox{",
        "{",
        "}",
        r"\{",
        r"\}",
        r"\frac",
        r"\sqrt",
        r"\text{",
        r"\left",
        r"\right",
        "(",
        ")",
        "[",
        "]",
        "|",
        "^",
        "_",
        "=",
        "<",
        r"\le",
        ",",
        ";",
        ":",
        "+",
        "-",
        "*",
        "/",
        r"\pm",
        r"\cup",
        r"\in",
        r"\infty",
        r"\pi",
        "%",
        r"\%",
        r"\$",
        "$",
        "!",
        "'",
        " ",
        "\n",
        "####",
        "1",
        "23",
        "0.5",
        "x",
        "e",
        "i",
        "or",
        "and",
        "cm",
        r"\sin",
        r"\ln",
        r"\begin{pmatrix}",
        "&",
        r"\\",
        r"\end{pmatrix}",
        r"^\circ",
        "</think>",
        "\u2212",
        "\u0665",
        "\x00",
        r"\overline{",
        r"\max(",
    ]
)
HOSTILE = st.one_of(st.text(max_size=80), st.lists(PIECES, max_size=25).map("".join))
FEW = settings(max_examples=300, deadline=None, suppress_health_check=list(HealthCheck))


@FEW
@given(HOSTILE)
def test_readers_never_fail(text: str) -> None:
    boxes(text)
    final_answers(text)
    normal(text)
    number(text)
    words(text)
    choice(text)
    measure(clean(text))
    read_gold(text)
    for reader in (read_form, lambda text: read_expression(clean(text))):
        try:
            reader(text)
        except Unreadable:
            continue


@FEW
@given(HOSTILE, st.sampled_from(["5", "x+1", "(1,2)", r"\text{No}", "[0,1]", r"\sqrt{2}", "x=2"]))
def test_a_verdict_is_a_verdict(response: str, gold: str) -> None:
    for text in (response, rf"\boxed{{{response}}}"):
        score = quick_verdict(text, gold)
        assert score is None or (score.total in (0.0, 1.0) and score.parts == {"math": score.total})


@FEW
@given(HOSTILE, HOSTILE)
def test_any_gold_gives_a_verdict_or_a_reward_error(answer: str, gold: str) -> None:
    try:
        quick_verdict(rf"\boxed{{{answer}}}", gold)
    except RewardError:
        assert not gold.strip() or gold.rstrip().endswith("####") or boxes(gold)[-1] == ""


PLAIN = st.text(string.ascii_letters + string.digits + "+-*/^_=(),. \\", max_size=40)


@FEW
@given(PLAIN.map(str.strip).filter(lambda text: not text.endswith("\\") and "box" not in text))
def test_what_is_boxed_is_read(content: str) -> None:
    assert boxes(rf"Then $\boxed{{{content}}}$, {{as}} asked.") == [content]


@FEW
@given(st.integers(-(10**30), 10**30))
def test_a_number_is_itself_and_not_its_neighbours(value: int) -> None:
    for text in (f"{value}", f"{value:,}", f" {value} ", rf"\left({value}\right)", f"${value}.0$"):
        score = quick_verdict(rf"\boxed{{{text}}}", str(value))
        assert score is not None and score.total == 1.0
    for other in (value + 1, value - 1, 10 * value + 1, f"{value}.5", f"{value}.0000001"):
        score = quick_verdict(rf"\boxed{{{other}}}", str(value))
        assert score is not None and score.total == 0.0
    if abs(value) > 1:
        for other in (-value, f"1/{value}"):
            score = quick_verdict(rf"\boxed{{{other}}}", str(value))
            assert score is not None and score.total == 0.0


ANSWERS = ["5", "-3", "1/2", "x+1", "(1,2)", "[0,1)", r"\{1,2\}", "x=5", r"\frac{x}{2}", "2x^2-1"]


@FEW
@given(st.sampled_from(ANSWERS), st.sampled_from(ANSWERS), st.sampled_from(["", " ", "  ", "\n"]))
def test_looks_do_not_matter(gold: str, answer: str, space: str) -> None:
    def verdict(text: str) -> float | None:
        score = quick_verdict(rf"\boxed{{{text}}}", gold)
        return score and score.total

    plain = verdict(answer)
    sized = answer.replace("(", r"\left(").replace("[0,1)", r"\left[0,1\right)")
    assert verdict(f"${space}{answer}{space}$") == plain
    assert verdict(sized.replace(")", r"\right)") if r"\left(" in sized else sized) == plain
    assert (
        verdict(space.join(answer) if "\\" not in answer and "1/2" not in answer else answer)
        == plain
    )


@pytest.fixture(scope="module")
def verifier() -> Iterator[MathVerifier]:
    made = MathVerifier(timeout_s=2.0)
    made.start()
    yield made
    made.close()


@settings(max_examples=150, deadline=None, suppress_health_check=list(HealthCheck))
@given(HOSTILE)
def test_no_answer_troubles_the_workers(verifier: MathVerifier, answer: str) -> None:
    for gold in (r"2\sqrt{2}", r"e^{x}+\sin y"):
        assert verifier.verify(rf"\boxed{{{answer}}}", gold).total in (0.0, 1.0)
