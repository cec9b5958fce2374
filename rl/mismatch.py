"""How far the learner's log-probs are from those the rollouts recorded, by age of the weights.

At lag 0 learner and engine hold the same weights: what is left is the difference between their
numerics. What older tokens have beyond that is staleness.
"""

import torch
from jaxtyping import Float, Int
from torch import Tensor

from rl.objectives import ratio_of

LAGS = 16  # rows of the report; the last one holds all older tokens
NAMES = ("abs_logprob", "kl", "kl_k3")


class Mismatch:
    """Adds up what one shard sees of an iteration under the weights that it starts with."""

    def __init__(self, device: torch.device) -> None:
        """Nothing seen yet."""
        self.sums = torch.zeros(LAGS, 1 + len(NAMES), dtype=torch.float64, device=device)
        """Number of tokens, then the sum of each of NAMES over them."""
        self.largest = torch.zeros(LAGS, dtype=torch.float64, device=device)
        """Largest absolute difference."""

    def add(
        self,
        learner: Float[Tensor, " N"],
        rollout: Float[Tensor, " N"],
        lags: Int[Tensor, " N"],
    ) -> None:
        """Count in the loss tokens of a micro-batch.

        With d = learner - rollout, tokens sampled by the rollout, both `-d` (k1) and
        `e^d - 1 - d` (k3, never negative) estimate KL(rollout || learner)
        (Schulman, "Approximating KL divergence", 2020).

        Args:
            learner: log-probs under the weights that the iteration starts with.
            rollout: as recorded when the tokens were sampled.
            lags: versions between the two.
        """
        gap = (learner - rollout).double()
        row = lags.clamp(0, LAGS - 1)
        columns = [torch.ones_like(gap), gap.abs(), -gap, ratio_of(gap) - 1 - gap]
        self.sums.index_add_(0, row, torch.stack(columns, -1))
        self.largest.scatter_reduce_(0, row, gap.abs(), "amax")


def mismatch_metrics(
    sums: Float[Tensor, "lags columns"], largest: Float[Tensor, " lags"]
) -> dict[str, float]:
    """The report over all shards: `mismatch/NAME` of all tokens, `mismatch/lag_L/NAME` of each age.

    Args:
        sums: added up over shards.
        largest: the maxima over shards.
    """
    result = _row("mismatch/", sums.sum(0).tolist(), largest.max().item())
    rows = zip(sums.tolist(), largest.tolist(), strict=True)
    tokens = max(sums[:, 0].sum().item(), 1.0)
    for lag, (row, most) in enumerate(rows):
        if row[0]:
            name = f"mismatch/lag_{lag}/"
            result |= _row(name, row, most) | {f"{name}share": row[0] / tokens}
    return result


def experts_metrics(differing: float, recorded: float) -> dict[str, float]:
    """`mismatch/experts`: share of the engine's recorded choices of experts that the learner's own
    routers would not have made, over all passes of the iteration. Nothing without a record."""
    return {"mismatch/experts": differing / recorded} if recorded else {}


def _row(name: str, sums: list[float], largest: float) -> dict[str, float]:
    tokens, *values = sums
    means = [value / max(tokens, 1.0) for value in values]
    return {
        **{f"{name}{key}": mean for key, mean in zip(NAMES, means, strict=True)},
        f"{name}max_abs_logprob": largest,
    }
