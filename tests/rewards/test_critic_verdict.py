"""Verdicts of a critic are read strictly: whatever it writes, there is a verdict or a reason."""

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from rewards.critic_config import DecidedBy
from rewards.critic_prompt import verdict_form
from rewards.critic_verdict import MOST_CHARACTERS, PairVerdict, decide, read_verdict
from rewards.rubric import Rubric, Rule

TRUE = Rubric(name="true", text="It is true.")
SHORT = Rubric(name="short", text="It is short.", weight=0.5)
POLITE = Rubric(name="polite", text="It is polite.", mandatory=True)
PRAISE = Rubric(name="praise", text="No praise.", mandatory=True, rule=Rule.opening_praise)
PLAIN = (TRUE, SHORT, PRAISE)  # a rubric with a rule is not asked about
STRICT = (TRUE, POLITE, PRAISE)
NONE = (frozenset[str](), frozenset[str]())


def plain(**change: Any) -> str:
    return json.dumps({"rubrics": {"true": "A", "short": "tie"}, "better": "A"} | change)


def strict(violations: object) -> str:
    rubrics = {"true": "A", "polite": "B"}
    return json.dumps({"rubrics": rubrics, "violations": violations, "better": "B"})


def test_a_verdict_after_reasoning() -> None:
    wanted = PairVerdict(better=1.0, rubrics={"true": 1.0, "short": 0.5}, violations=NONE)
    for text in (plain(), f"A is right.\nSo:\n{plain()}", f"\r\n  {plain()}  \n\n\t "):
        assert read_verdict(text, PLAIN) == wanted


def test_who_breaks_what_is_mandatory() -> None:
    found = read_verdict(strict({"A": ["polite"], "B": []}), STRICT)
    assert found == PairVerdict(
        better=0.0,
        rubrics={"true": 1.0, "polite": 0.0},
        violations=(frozenset({"polite"}), frozenset()),
    )


def test_no_rubrics_but_the_overall_word() -> None:
    found = read_verdict('{"rubrics": {}, "better": "tie"}', (PRAISE,))
    assert found == PairVerdict(better=0.5, rubrics={}, violations=NONE)


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("", "no text"),
        (" \n\t\n", "no text"),
        ("A is better.", "not JSON"),
        (f"{plain()}\nThat is all.", "not JSON"),
        (f"```json\n{plain()}\n```", "not JSON"),
        (f"Verdict: {plain()}", "not JSON"),
        (f"{plain()} {plain()}", "not JSON"),
        (json.dumps(json.loads(plain()), indent=1), "not JSON"),
        (plain()[:-1], "not JSON"),
        ("[" * 60_000, "not JSON"),
        ('"A"', "no JSON object"),
        ("[]", "no JSON object"),
        ("NaN", "NaN"),
        (plain(better=float("nan")), "NaN"),
        (plain(better=float("-inf")), "-Infinity"),
        ('{"rubrics": {"true": "A", "short": "A"}, "better": "A", "better": "B"}', "twice"),
        ('{"rubrics": {"true": "A", "true": "B", "short": "A"}, "better": "A"}', "twice"),
        (plain(better="a"), "'better' is 'a'"),
        (plain(better="TIE"), "'better' is 'TIE'"),
        (plain(better="A "), "'better' is 'A '"),
        (plain(better="C"), "'better' is 'C'"),
        (plain(better=1), "'better' is 1"),
        (plain(better=True), "'better' is True"),
        (plain(better=None), "'better' is None"),
        (plain(better=["A"]), "'better' is"),
        (plain(better={"A": 1}), "'better' is"),
        (plain(sure=True), "'sure', which was not asked for"),
        (plain(violations={"A": [], "B": []}), "'violations', which was not asked for"),
        ('{"rubrics": {"true": "A", "short": "A"}}', "lacks 'better'"),
        ('{"better": "A"}', "lacks 'rubrics'"),
        (plain(rubrics={"true": "A"}), "lacks 'short'"),
        (plain(rubrics={"true": "A", "short": "A", "kind": "B"}), "'kind', which was not"),
        (plain(rubrics={"true": "A", "short": "A", "praise": "B"}), "'praise', which was not"),
        (plain(rubrics={"true": "A", "short": "?"}), "'short' is '?'"),
        (plain(rubrics=["A", "B"]), "rubrics is no JSON object"),
        ("1" * 10_000, "not JSON"),
    ],
)
def test_what_is_not_just_as_asked_has_a_reason(text: str, reason: str) -> None:
    found = read_verdict(text, PLAIN)
    assert isinstance(found, str) and reason in found and len(found) < 300


@pytest.mark.parametrize(
    ("violations", "reason"),
    [
        (None, "no JSON object"),
        ([], "no JSON object"),
        ({"A": []}, "lacks 'B'"),
        ({"A": [], "B": [], "C": []}, "'C', which was not"),
        ({"A": "polite", "B": []}, "no list"),
        ({"A": [1], "B": []}, "no mandatory rubric"),
        ({"A": [["polite"]], "B": []}, "no mandatory rubric"),
        ({"A": [], "B": ["true"]}, "'true', which is no mandatory rubric"),
        ({"A": [], "B": ["praise"]}, "'praise', which is no mandatory rubric"),
        ({"A": [], "B": ["polite", "polite"]}, "twice"),
    ],
)
def test_violations_are_read_strictly(violations: object, reason: str) -> None:
    found = read_verdict(strict(violations), STRICT)
    assert isinstance(found, str) and reason in found


def test_violations_are_required_where_something_is_mandatory() -> None:
    text = '{"rubrics": {"true": "A", "polite": "A"}, "better": "A"}'
    assert "lacks 'violations'" in str(read_verdict(text, STRICT))


def test_a_huge_line_is_not_parsed() -> None:
    assert isinstance(read_verdict(plain() + " " * MOST_CHARACTERS + "\n", PLAIN), PairVerdict)
    inside = plain().replace("{", "{" + " " * MOST_CHARACTERS, 1)
    assert "characters, more than" in str(read_verdict(inside, PLAIN))
    assert isinstance(read_verdict("x\n" * 500_000 + plain(), PLAIN), PairVerdict)


@given(st.text() | st.text('{}[]":, ABtierubcsn\n\\', max_size=200))
def test_nothing_raises(text: str) -> None:
    assert isinstance(read_verdict(text, PLAIN), str | PairVerdict)


JSON = st.recursive(
    st.none() | st.booleans() | st.floats() | st.sampled_from(["A", "B", "tie", "polite", ""]),
    lambda inner: st.lists(inner) | st.dictionaries(st.sampled_from(["A", "B", "true"]), inner),
    max_leaves=6,
)


@given(st.fixed_dictionaries({"rubrics": JSON, "violations": JSON, "better": JSON}))
def test_no_json_raises(given_: dict[str, Any]) -> None:
    assert isinstance(read_verdict(json.dumps(given_), STRICT), str | PairVerdict)


@pytest.mark.parametrize("rubrics", [PLAIN, STRICT, (PRAISE,)])
def test_the_form_that_is_shown_is_the_form_that_is_read(rubrics: tuple[Rubric, ...]) -> None:
    shown = tuple(rubric for rubric in rubrics if rubric.rule is None)
    form = verdict_form(shown)
    assert isinstance(read_verdict(form.replace('"?"', '"A"'), rubrics), PairVerdict)
    assert isinstance(read_verdict(form, rubrics), str)


def test_the_weighted_vote() -> None:
    rubrics = tuple(
        Rubric(name=name, text="x", weight=weight)
        for name, weight in (("a", 0.1), ("b", 0.2), ("c", 0.3))
    )

    def vote(a: float, b: float, c: float, better: float = 0.5) -> PairVerdict:
        return PairVerdict(better=better, rubrics={"a": a, "b": b, "c": c}, violations=NONE)

    assert decide(vote(1, 1, 0), rubrics, DecidedBy.rubrics) == 0.5  # 0.1 + 0.2 = 0.3
    assert decide(vote(0, 0.5, 0.5), rubrics, DecidedBy.rubrics) == 0.0
    assert decide(vote(0, 0, 1), (*rubrics, PRAISE), DecidedBy.rubrics) == 0.5
    assert decide(vote(0.5, 0, 1), rubrics, DecidedBy.rubrics) == 1.0
    assert decide(vote(0, 0, 0, better=1.0), rubrics, DecidedBy.overall) == 1.0
