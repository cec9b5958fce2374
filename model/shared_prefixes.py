"""Tokens that packed sequences have in common at their beginning: computed once for all of them.

The K samples of a group answer one prompt. No later token changes what stands before it, so the
hidden states of a prompt are the same in all of them, in the forward and in the backward pass:

    packed    p1 p2 a1 a2 | p1 p2 b1 | p1 p2 c1      9 places
    kept      p1 p2 a1 a2 |       b1 |       c1      6 are computed
    of         0  1  2  3 |  0  1  4 |  0  1  5

Shapes: T packed places, U places that are computed.
"""

from collections.abc import Sequence
from typing import NamedTuple

import torch
from jaxtyping import Int
from torch import Tensor


class Sharing(NamedTuple):
    """Which places are computed, and which of these every place is."""

    kept: Int[Tensor, " U"]  # packed places, ascending
    of: Int[Tensor, " T"]  # index into `kept`


def shared_prefixes(ids: Int[Tensor, " T"], lengths: Sequence[int]) -> Sharing | None:
    """What sequences have in common with the one right before them; None if nothing."""
    if len(lengths) < 2 or ids.is_meta:
        return None
    sizes = torch.tensor(lengths, device=ids.device)
    starts = sizes.cumsum(0) - sizes
    sequence = torch.arange(len(sizes), device=ids.device).repeat_interleave(sizes)
    place = torch.arange(len(ids), device=ids.device)
    # The same place of the sequence before: nothing for the first, and beyond its end.
    length_before = sizes.roll(1)
    length_before[0] = 0
    distance = length_before[sequence]
    differs = place - starts[sequence] >= distance
    before = torch.where(differs, place, place - distance)
    differs |= ids != ids[before]
    count = differs.cumsum(0)
    shared = count == (count - differs.long())[starts][sequence]  # no difference so far
    source = torch.where(shared, before, place)
    for _ in range((len(sizes) - 1).bit_length()):  # as far back as it goes
        source = source[source]
    own = source == place
    kept = own.nonzero()[:, 0]
    if len(kept) == len(ids):
        return None
    return Sharing(kept, (own.cumsum(0) - 1)[source])
