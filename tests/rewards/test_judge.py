import json
from collections.abc import Iterator
from pathlib import Path

import pytest

from rewards.config import RewardsConfig
from rewards.errors import RewardError
from rewards.judge import VerifiableJudge
from rewards.task import Message, Task, TaskKind, Transcript

REFERENCES = {
    TaskKind.math: "5",
    TaskKind.code: json.dumps({"tests": ["assert double(4) == 8"]}),
    TaskKind.instructions: json.dumps(
        {"instruction_id_list": ["punctuation:no_comma"], "kwargs": [{}]}
    ),
    TaskKind.open: "",
}
RIGHT = {
    TaskKind.math: r"\boxed{5}",
    TaskKind.code: "```python\ndef double(x):\n    return 2 * x\n```",
    TaskKind.instructions: "The sky is blue because the air scatters blue light the most.",
}
WRONG = {
    TaskKind.math: r"\boxed{6}",
    TaskKind.code: "```python\ndef double(x):\n    return x\n```",
    TaskKind.instructions: "The sky is blue, because the air scatters blue light the most.",
}


def _task(kind: TaskKind = TaskKind.math, reference: str | None = None) -> Task:
    question = Message(role="user", content="Why is the sky blue? Do not use commas.")
    return Task(
        id="t/0",
        kind=kind,
        messages=(question,),
        reference=REFERENCES[kind] if reference is None else reference,
        token_budget=8,
    )


def _transcript(response: str, *, truncated: bool = False) -> Transcript:
    return Transcript(messages=(), response=response, response_tokens=8, truncated=truncated)


@pytest.fixture(scope="module")
def judge() -> Iterator[VerifiableJudge]:
    judge = VerifiableJudge(RewardsConfig(over_budget_reward=-0.25))
    judge.start()
    yield judge
    judge.close()


def test_scores_keep_the_order_and_the_budget(judge: VerifiableJudge) -> None:
    answers = [
        _transcript(r"\boxed{5}"),
        _transcript(r"\boxed{6}"),
        _transcript(r"\boxed{5} and", truncated=True),
    ]
    scores = judge.score(_task(), answers)
    assert [score.total for score in scores] == [1.0, 0.0, -0.25]
    assert scores[2].parts == {"math": 1.0, "budget": -1.25}


@pytest.mark.parametrize("kind", RIGHT)
def test_every_kind_has_its_verifier(judge: VerifiableJudge, kind: TaskKind) -> None:
    answers = [_transcript(RIGHT[kind]), _transcript(WRONG[kind]), _transcript("")]
    scores = judge.score(_task(kind), answers)
    assert [score.total for score in scores] == [1.0, 0.0, 0.0]
    assert [dict(score.parts) for score in scores] == [{kind.value: s.total} for s in scores]
    assert all(score.why for score in scores[1:])


@pytest.mark.parametrize("kind", RIGHT)
def test_an_unreadable_reference_is_an_error(judge: VerifiableJudge, kind: TaskKind) -> None:
    with pytest.raises(RewardError, match="task t/0: "):
        judge.score(_task(kind, reference=" "), [_transcript(RIGHT[kind])])


def test_a_kind_without_a_reward_is_an_error(judge: VerifiableJudge) -> None:
    message = r"task t/0: no reward for kind 'open': name one in rewards\.mixture\.open"
    with pytest.raises(RewardError, match=message):
        judge.score(_task(TaskKind.open), [_transcript("")])


def test_rewards_are_mixed_and_a_plugin_may_not_apply(tmp_path: Path) -> None:
    (tmp_path / "mine.py").write_text(
        "def brief(task, transcript):\n"
        "    return None if task.kind == 'open' else len(transcript.response) < 12\n"
    )
    brief = f"{tmp_path}/mine.py:brief"
    judge = VerifiableJudge(
        RewardsConfig(mixture={"math": {"math": 0.75, brief: 0.25}, "open": {brief: 1.0}})
    )
    long, short = judge.score(
        _task(), [_transcript(r"So it is \boxed{5}."), _transcript(r"\boxed{6}")]
    )
    assert (long.total, long.parts) == (0.75, {"math": 0.75, "brief": 0.0})
    assert (short.total, short.parts) == (0.25, {"math": 0.0, "brief": 0.25})
    with pytest.raises(RewardError, match="task t/0: none of brief applies"):
        judge.score(_task(TaskKind.open), [_transcript("")])
    judge.close()


def test_check_refuses_a_kind_without_a_reward(judge: VerifiableJudge) -> None:
    judge.check({TaskKind.math, TaskKind.code, TaskKind.instructions})
    with pytest.raises(RewardError, match=r"mixture\.open, or set rewards\.critic"):
        judge.check({TaskKind.math, TaskKind.open})


def test_check_refuses_code_where_no_sandbox_runs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))  # no bwrap there
    judge = VerifiableJudge(RewardsConfig())
    judge.check({TaskKind.math})
    with pytest.raises(RewardError, match="apt-get install bubblewrap"):
        judge.check({TaskKind.code})
