import pytest

from rewards.config import RewardsConfig
from rewards.errors import RewardError
from rewards.judge import VerifiableJudge
from rewards.task import Message, Task, TaskKind, Transcript


def _task(kind: TaskKind = TaskKind.math, reference: str = "5") -> Task:
    question = Message(role="user", content="2 + 3 =")
    return Task(id="t/0", kind=kind, messages=(question,), reference=reference, token_budget=8)


def _transcript(response: str, *, truncated: bool = False) -> Transcript:
    return Transcript(messages=(), response=response, response_tokens=8, truncated=truncated)


def test_scores_keep_the_order_and_the_budget() -> None:
    judge = VerifiableJudge(RewardsConfig(over_budget_reward=-0.25))
    answers = [
        _transcript(r"\boxed{5}"),
        _transcript(r"\boxed{6}"),
        _transcript(r"\boxed{5} and", truncated=True),
    ]
    scores = judge.score(_task(), answers)
    assert [score.total for score in scores] == [1.0, 0.0, -0.25]
    assert scores[2].parts == {"math": 1.0, "budget": -1.25}
    judge.close()


def test_an_error_names_the_task() -> None:
    judge = VerifiableJudge(RewardsConfig())
    with pytest.raises(RewardError, match="task t/0: no verifier for kind 'code'"):
        judge.score(_task(kind=TaskKind.code), [_transcript("")])
    with pytest.raises(RewardError, match="task t/0: the gold answer is empty"):
        judge.score(_task(reference=" "), [_transcript("")])
