import torch

from rl.advantages import mean_baseline


def test_mean_includes_the_sample_and_nothing_is_divided() -> None:
    rewards = torch.tensor([1.0, 0.0, 0.0, -0.5])
    assert mean_baseline(rewards).tolist() == [0.875, -0.125, -0.125, -0.625]


def test_equal_rewards_teach_nothing() -> None:
    assert mean_baseline(torch.full((8,), 0.7)).abs().max().item() < 1e-6
