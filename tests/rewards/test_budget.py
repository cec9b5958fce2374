import pytest

from rewards.budget import apply_budget
from rewards.score import Score
from rewards.task import Transcript


def _transcript(*, truncated: bool) -> Transcript:
    return Transcript(messages=(), response="", response_tokens=64, truncated=truncated)


def test_a_finished_episode_keeps_its_score() -> None:
    score = Score(total=1.0, parts={"math": 1.0}, why="'5', gold '5'")
    assert apply_budget(score, _transcript(truncated=False)) is score


@pytest.mark.parametrize(("total", "difference"), [(1.0, -1.5), (0.0, -0.5)])
def test_a_truncated_episode_gets_the_penalty(total: float, difference: float) -> None:
    score = Score(total=total, parts={"math": total}, why="'5', gold '5'")
    cut = apply_budget(score, _transcript(truncated=True))
    assert cut.total == -0.5
    assert cut.parts == {"math": total, "budget": difference}
    assert sum(cut.parts.values()) == cut.total
    assert cut.why == "over budget (64 tokens); '5', gold '5'"
