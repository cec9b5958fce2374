"""Which rows QK-Clip scales in ordinary attention (spec 2.2 is about MLA), and where it cannot."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn


@dataclass(frozen=True, slots=True)
class Heads:
    """The attention heads of a network."""

    modules: tuple[str, ...]  # name of every layer's attention
    queries: int  # N, in each layer
    keys: int  # each is shared by queries / keys query heads


def clip_note(network: nn.Module, heads: Heads) -> str | None:
    """Why scaling projections would not scale the logits of a head; None where it does."""
    for name in heads.modules:
        module = network.get_submodule(name)
        rows = []
        for part in ("q_proj", "k_proj"):
            projection = getattr(module, part, None)
            rows.append(projection.out_features if isinstance(projection, nn.Linear) else 0)
        if 0 in rows or rows[0] * heads.keys != rows[1] * heads.queries:
            return f"the heads of {type(module).__name__} are not the rows of q_proj and k_proj"
        norms = [part for part, _ in module.named_children() if "norm" in part]
        if norms:
            return (
                f"{' and '.join(norms)} of {type(module).__name__} follow the projections, so that "
                "scaling these does not change the logits"
            )
    return None


@torch.no_grad()
def clip_rows(
    network: nn.Module, heads: Heads, gamma: Float[Tensor, "L N"]
) -> Iterator[tuple[str, Float[Tensor, " rows"]]]:
    """Parameters of the query and key projections, biases too, with a factor for every row.

    A key head of its own takes the square root of gamma, as its query does. Where query heads share
    a key head, the query takes the whole factor and the key stays.
    """
    own = heads.keys == heads.queries
    for layer in (gamma != 1).any(1).nonzero()[:, 0].tolist():
        factors = gamma[layer].sqrt() if own else gamma[layer]
        for part in ("q_proj", "k_proj") if own else ("q_proj",):
            name = f"{heads.modules[layer]}.{part}"
            projection: Any = network.get_submodule(name)
            # Not the parameters' own sizes: an engine may have cut them.
            size = projection.out_features // heads.queries
            for parameter, _ in projection.named_parameters():
                yield f"{name}.{parameter}", factors.repeat_interleave(size)
