import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from rewards.calibration import VerifiedPair
from rewards.critic_config import CriticConfig, DecidedBy
from rewards.critic_task import critic_task, parse_reference, verify
from rewards.rubric import Rubric, Rule
from rewards.task import Message, Task, TaskKind

RUBRICS = (
    Rubric(name="clear", text="It is short and on the question.", weight=2.0),
    Rubric(name="honest", text="It makes nothing up.", mandatory=True),
    Rubric(name="praise", text="No praise.", mandatory=True, rule=Rule.opening_praise),
)
PAIR = VerifiedPair(
    task_id="sums/7",
    family="sums",
    prompt=(Message(role="user", content="What is 1+1?"),),
    right="It is 2.",
    wrong="It is 3.",
    right_tokens=5,
    wrong_tokens=5,
    step=3,
)
CONFIG = CriticConfig(instruction="Compare.", token_budget=77)


def make(right_first: bool, rubrics: tuple[Rubric, ...] = RUBRICS) -> Task:
    return critic_task(
        PAIR, right_first=right_first, id="critic/3/0", config=CONFIG, rubrics=rubrics
    )


def judge(better: str, **changed: object) -> str:
    verdict = {
        "rubrics": {"clear": "tie", "honest": better},
        "violations": {"A": [], "B": []},
        "better": better,
    }
    return "The sum is easy.\n" + json.dumps(verdict | changed)


def test_the_task_asks_which_answer_is_right() -> None:
    task = make(right_first=False)
    assert (task.id, task.kind, task.tags) == ("critic/3/0", TaskKind.critic, ("critic", "sums"))
    assert task.token_budget == 77
    assert task.messages[0] == Message(role="system", content="Compare.")
    shown = task.messages[1].content
    assert shown.index("It is 3.") < shown.index("It is 2.")
    assert "What is 1+1?" in shown and "It is short" in shown and "No praise" not in shown
    other = make(right_first=True).messages[1].content
    assert other.index("It is 2.") < other.index("It is 3.")


def test_the_prompt_does_not_tell_the_side() -> None:
    swapped = VerifiedPair(
        task_id="sums/8",
        family="sums",
        prompt=PAIR.prompt,
        right=PAIR.wrong,
        wrong=PAIR.right,
        right_tokens=5,
        wrong_tokens=5,
        step=4,
    )
    one = make(right_first=True)
    other = critic_task(swapped, right_first=False, id="x", config=CONFIG, rubrics=RUBRICS)
    assert one.messages == other.messages
    assert one.reference != other.reference


def test_the_reference_holds_the_side_and_what_was_asked() -> None:
    reference = parse_reference(make(right_first=False).reference)
    assert reference.right == "B"
    assert [(each.name, each.mandatory) for each in reference.rubrics] == [
        ("clear", False),
        ("honest", True),
    ]
    assert parse_reference(make(right_first=True, rubrics=()).reference).rubrics == ()


@pytest.mark.parametrize("right_first", [True, False])
@pytest.mark.parametrize(("better", "named"), [("A", "A"), ("B", "B"), ("tie", "a tie")])
def test_only_the_right_side_earns(right_first: bool, better: str, named: str) -> None:
    task, right = make(right_first), "A" if right_first else "B"
    score = verify(judge(better), task.reference)
    assert score.total == float(better == right)
    assert dict(score.parts) == {"critic": score.total}
    assert score.why == f"names {named}, the verifier {right}"


@pytest.mark.parametrize(
    "response",
    [
        "",
        "A",
        "A is better.",
        judge("A") + "\nSo A it is.",
        judge("a"),
        judge("A", more=1),
        judge("A", rubrics={"clear": "A"}),
        judge("A", rubrics={"clear": "A", "honest": "A", "praise": "A"}),
        judge("A", violations={"A": ["clear"], "B": []}),
        judge("A").replace('"better"', '"better": "A", "better"'),
        '{"better": "A"}',
        judge("A")[:-1],
    ],
)
def test_what_cannot_be_read_earns_nothing(response: str) -> None:
    score = verify(response, make(right_first=True).reference)
    assert score.total == 0.0 and dict(score.parts) == {"critic": 0.0}
    assert score.why.startswith("unreadable verdict: ") and "\n" not in score.why


@given(response=st.text() | st.text().map(lambda text: judge("A") + text))
def test_no_response_stops_the_verifier(response: str) -> None:
    reference = make(right_first=True).reference
    score = verify(response, reference)
    assert score.total in (0.0, 1.0)
    assert score == verify(response, reference)


def with_rubric(rubric: str) -> str:
    return f'{{"right": "A", "rubrics": [{rubric}], "decided_by": "overall"}}'


def test_a_reference_with_a_rubric_is_read() -> None:
    reference = with_rubric('{"name": "x", "mandatory": false, "weight": 2}')
    assert parse_reference(reference).rubrics[0].weight == 2.0


@pytest.mark.parametrize(
    "reference",
    [
        "",
        "A",
        "[]",
        "{}",
        '{"right": "A"}',
        '{"right": "A", "rubrics": []}',
        '{"right": "A", "rubrics": [], "decided_by": "luck"}',
        '{"right": "C", "rubrics": [], "decided_by": "overall"}',
        '{"right": null, "rubrics": [], "decided_by": "overall"}',
        '{"right": ["A"], "rubrics": [], "decided_by": "overall"}',
        '{"right": "A", "rubrics": {"name": "x"}, "decided_by": "overall"}',
        '{"right": "A", "rubrics": [{"name": "x"}], "decided_by": "overall"}',
        with_rubric('{"name": 1, "mandatory": false, "weight": 1.0}'),
        with_rubric('{"name": "x", "mandatory": "no", "weight": 1.0}'),
        with_rubric('{"name": "x", "mandatory": false, "weight": true}'),
        with_rubric('{"name": "x", "mandatory": false, "weight": 0}'),
        with_rubric('{"name": " ", "mandatory": false, "weight": 1.0}'),
        with_rubric('{"name": "<|x|>", "mandatory": false, "weight": 1.0}'),
        "[" * 100_000,
    ],
)
def test_a_bad_reference_is_refused(reference: str) -> None:
    with pytest.raises(ValueError, match="critic task"):
        parse_reference(reference)
    with pytest.raises(ValueError, match="critic task"):
        verify(judge("A"), reference)


def test_the_rubrics_vote_where_they_decide() -> None:
    config = CriticConfig(instruction="Compare.", decided_by=DecidedBy.rubrics)
    task = critic_task(PAIR, right_first=True, id="x", config=config, rubrics=RUBRICS)
    # The rubric of weight 2 names A, the one of weight 1 names B, and so does the overall word.
    said = judge("B", rubrics={"clear": "A", "honest": "B"})
    assert verify(said, task.reference).total == 1.0
    assert verify(said, make(right_first=True).reference).total == 0.0
