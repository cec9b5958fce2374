import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from rl.advantages import group_advantages, mean_baseline, standardised
from rl.objective_config import Kind


def test_mean_includes_the_sample_and_nothing_is_divided() -> None:
    rewards = torch.tensor([1.0, 0.0, 0.0, -0.5])
    assert mean_baseline(rewards).tolist() == [0.875, -0.125, -0.125, -0.625]


def test_equal_rewards_teach_nothing() -> None:
    assert mean_baseline(torch.full((8,), 0.7)).abs().max().item() < 1e-6


def test_standardised_divides_by_the_deviation_with_one_less() -> None:
    rewards = torch.tensor([1.0, 0.0, 0.0, 0.0], dtype=torch.float64)
    assert standardised(rewards).tolist() == pytest.approx([1.5, -0.5, -0.5, -0.5], rel=1e-5)


@given(st.floats(-10, 10), st.integers(1, 8))
def test_rewards_that_differ_by_rounding_alone_teach_nothing(reward: float, count: int) -> None:
    rewards = torch.full((count,), reward, dtype=torch.float64)
    rewards[0] = rewards[0] * (1 + 1e-15)
    assert standardised(rewards).abs().max().item() < 1e-7


@pytest.mark.parametrize("kind", Kind)
def test_the_kinds_whose_papers_divide_by_the_deviation_do(kind: Kind) -> None:
    rewards = torch.tensor([1.0, 0.0, 0.25], dtype=torch.float64)
    divided = kind in {Kind.grpo, Kind.dapo, Kind.gspo, Kind.cispo}
    expected = standardised(rewards) if divided else mean_baseline(rewards)
    assert torch.equal(group_advantages(rewards, kind), expected)
