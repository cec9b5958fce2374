"""Rewards of a group to advantages: pure functions."""

from jaxtyping import Float
from torch import Tensor

from rl.objective_config import Kind

STANDARDISED = frozenset({Kind.grpo, Kind.dapo, Kind.gspo, Kind.cispo})
LEAST_SPREAD = 1e-6


def mean_baseline(rewards: Float[Tensor, " K"]) -> Float[Tensor, " K"]:
    """Reward less the group's mean, `r_i - rbar` with `rbar = (1/K) sum_j r_j`.

    The mean includes the sample itself, and nothing is divided by the standard deviation: K2 keeps
    the residual on the scale of the reward (K2 sec. 3.2.3; K1.5 sec. 2.3.2).

    Args:
        rewards: total score of each of the K episodes of one task.
    """
    return rewards - rewards.mean()


def standardised(rewards: Float[Tensor, " K"]) -> Float[Tensor, " K"]:
    """`(r_i - rbar) / (std(r) + 1e-6)` (DeepSeekMath, arXiv 2402.03300 sec. 4.1.2).

    The paper does not say which standard deviation: this is the one with K - 1, as in TRL and
    verl. The small number keeps rewards that differ by rounding alone from being blown up.

    Args:
        rewards: total score of each of the K episodes of one task, in float64.
    """
    spread = rewards.std(correction=int(len(rewards) > 1))
    return mean_baseline(rewards) / (spread + LEAST_SPREAD)


def group_advantages(rewards: Float[Tensor, " K"], kind: Kind) -> Float[Tensor, " K"]:
    """The advantages that the paper of an objective goes with: grpo, dapo, gspo and cispo divide
    by the standard deviation, k2, k2p5 and dr_grpo do not.

    Args:
        rewards: total score of each of the K episodes of one task.
        kind: the objective.
    """
    return standardised(rewards) if kind in STANDARDISED else mean_baseline(rewards)
