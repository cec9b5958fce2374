"""Weights of tokens that another policy sampled than the learner's pi_old: pure functions.

N is the number of loss tokens, S the number of sequences they belong to. Log-ratios are
`ln pi_old(learner) - ln pi(rollout)` of each token: what is between the weights and numerics of
the engine when it sampled the token, and those of the learner when its iteration starts.
"""

from typing import NamedTuple

from jaxtyping import Bool, Float, Int
from torch import Tensor

from rl.objectives import ratio_of


class Weights(NamedTuple):
    """Importance weights, and which of them a bound has changed."""

    values: Float[Tensor, " N"]
    cut: Bool[Tensor, " N"]


def truncated_weights(log_ratio: Float[Tensor, " N"], cap: float) -> Weights:
    """Truncated importance sampling, `min(C, ratio)` (Ionides 2008; Kimi Linear, arXiv 2510.26692
    sec. 5.4.2): biased a little, with a variance that C bounds."""
    ratio = ratio_of(log_ratio)
    return Weights(ratio.clamp(max=cap), ratio > cap)


def masked_weights(log_ratio: Float[Tensor, " N"], cap: float) -> Weights:
    """The ratio within [1/C, C], and 0 outside (IcePop; Ring-1T, arXiv 2510.18855): a token that
    the two policies see so differently is no evidence for either."""
    ratio = ratio_of(log_ratio)
    outside = (ratio > cap) | (ratio < 1 / cap)
    return Weights(ratio.masked_fill(outside, 0.0), outside)


def sequence_log_ratios(
    log_ratio: Float[Tensor, " N"], sequence: Int[Tensor, " N"], sequences: int
) -> Float[Tensor, " N"]:
    """Each token with the log-ratio of its whole sequence: the product of its tokens' ratios.

    Unbiased where token ratios are not, and of a variance that grows with the length.
    """
    return log_ratio.new_zeros(sequences).index_add(0, sequence, log_ratio)[sequence]


def staleness_weights(lags: Int[Tensor, " N"], power: float) -> Float[Tensor, " N"]:
    """`(1 + lag)^-power`: less trust in tokens of older weights (the polynomial of asynchronous
    optimisation, FedAsync, arXiv 1903.03934).

    Args:
        lags: versions between the weights that sampled a token and the learner's.
        power: 0 for all alike, 1 for the inverse of the age.
    """
    return (1.0 + lags).pow(-power)


def effective_sample_size(mean: float, mean_square: float) -> float:
    """Share of the tokens that as many unweighted ones would be worth, `(E w)^2 / E w^2` (Kish)."""
    return mean * mean / mean_square if mean_square > 0 else 0.0
