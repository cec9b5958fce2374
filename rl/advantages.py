"""Rewards of a group to advantages: pure functions."""

from jaxtyping import Float
from torch import Tensor


def mean_baseline(rewards: Float[Tensor, " K"]) -> Float[Tensor, " K"]:
    """Reward less the group's mean, `r_i - rbar` with `rbar = (1/K) sum_j r_j`.

    The mean includes the sample itself, and nothing is divided by the standard deviation: K2 keeps
    the residual on the scale of the reward (K2 sec. 3.2.3; K1.5 sec. 2.3.2).

    Args:
        rewards: total score of each of the K episodes of one task.
    """
    return rewards - rewards.mean()
