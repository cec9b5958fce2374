import pytest
from hypothesis import given
from hypothesis import strategies as st

from rewards.budget import (
    apply_budget,
    apply_repetition,
    length_budget,
    length_rewards,
    limited_phase,
    soft_overlong,
    toggle,
)
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


def test_an_episode_that_goes_in_circles_gets_the_penalty() -> None:
    score = apply_repetition(Score(total=1.0, parts={"math": 1.0}), 300, penalty=-0.25)
    assert (score.total, score.parts) == (-0.25, {"math": 1.0, "repetition": -1.25})
    assert score.why == "repeats itself (300 tokens)"


def test_length_rewards_of_k1p5() -> None:
    # min 100, max 300: lam = 0.5, 0.25, 0, -0.5
    lengths = [100, 150, 200, 300]
    assert length_rewards(lengths, [True] * 4) == [0.5, 0.25, 0.0, -0.5]
    assert length_rewards(lengths, [False] * 4) == [0.0, 0.0, 0.0, -0.5]
    assert length_rewards(lengths, [False, True, True, False]) == [0.0, 0.25, 0.0, -0.5]
    assert length_rewards([7, 7, 7], [True, False, True]) == [0.0, 0.0, 0.0]


@pytest.mark.parametrize(
    ("length", "expected"),
    [(0, 0.0), (16384, 0.0), (18432, -0.5), (20480, -1.0), (20481, -1.0), (16388, -4 / 4096)],
)
def test_soft_overlong_at_dapos_numbers(length: int, expected: float) -> None:
    assert soft_overlong(length, 20480, 4096) == expected


@given(st.integers(0, 300), st.integers(1, 200), st.data())
def test_soft_overlong_is_the_papers_cases(length: int, budget: int, data: st.DataObject) -> None:
    soft = data.draw(st.integers(1, budget))
    if length <= budget - soft:
        expected = 0.0
    elif length <= budget:
        expected = ((budget - soft) - length) / soft
    else:
        expected = -1.0
    assert soft_overlong(length, budget, soft) == expected


def test_toggle_earns_only_within_the_budget_where_the_task_is_easy() -> None:
    rewards, lengths = [1.0, 1.0, 0.0, -0.5], [50, 51, 10, 900]
    assert toggle(rewards, lengths, 50, accuracy=0.5, least=0.5) == [1.0, 0.0, 0.0, -0.5]
    assert toggle(rewards, lengths, 50, accuracy=0.49, least=0.5) == rewards


def test_toggle_phases_take_turns() -> None:
    assert [limited_phase(step, 2) for step in range(6)] == [True, True, False, False, True, True]


def test_toggle_budget_is_a_percentile_of_right_answers() -> None:
    lengths = [40, 10, 30, 20]
    assert [length_budget(lengths, p) for p in (1, 25, 26, 50, 100)] == [10, 10, 20, 20, 40]
    assert length_budget([], 50) is None
