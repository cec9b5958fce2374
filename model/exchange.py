"""Matrices that are cut: parts travel to one shard, what it makes of them travels back."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import torch
import torch.distributed as dist
from jaxtyping import Float
from torch import Tensor

from model.pieces import Matrices, Matrix, Piece, Share, matrices, rounds, whole_runs

BATCH_ELEMENTS = 1 << 25  # of updates held at once, on every shard


@dataclass(frozen=True, slots=True)
class Layout:
    """What lies in a flat tensor, and what moves between shards to update its matrices."""

    pieces: Sequence[Piece]  # of this shard
    muon: bool
    runs: Sequence[Matrices] = ()
    rounds: Sequence[Sequence[Matrix]] = ()
    group: dist.ProcessGroup | None = None
    rank: int = 0  # in the group

    @staticmethod
    def of(pieces: Sequence[Piece], *, muon: bool, group: dist.ProcessGroup | None) -> "Layout":
        """Agree with the other shards of `group`; all of them must call this together."""
        if not muon:
            return Layout(pieces, muon)
        ranks, rank = (dist.get_world_size(group), dist.get_rank(group)) if group else (1, 0)
        everyone: list[Sequence[Piece]] = [pieces] * ranks
        if ranks > 1:
            dist.all_gather_object(everyone, pieces, group=group)
        found = matrices(everyone)
        parts = list(rounds(found, BATCH_ELEMENTS * ranks))
        return Layout(pieces, muon, whole_runs(found, rank), parts, group, rank)


def exchange(
    members: Sequence[Matrix],
    direction: Float[Tensor, " elements"],
    layout: Layout,
    *,
    orthogonalise: Callable[[Float[Tensor, "B n m"]], Float[Tensor, "B n m"]],
    dtype: torch.dtype,
    device: torch.device,
) -> Iterator[tuple[Matrix, Share, Float[Tensor, " share"]]]:
    """Every share of this shard in `members` with its part of the orthogonalised matrix.

    All shards of the group must call it together. What travels is in `dtype`, on `device`.
    """
    ranks, me = dist.get_world_size(layout.group), layout.rank
    # What I hold of the matrices of every owner, and what every rank holds of mine.
    held = [
        (m, s)
        for r in range(ranks)
        for m in members
        if m.owner == r
        for s in m.shares
        if s.rank == me
    ]
    mine = [m for m in members if m.owner == me]
    owned = [(m, s) for r in range(ranks) for m in mine for s in m.shares if s.rank == r]
    out_sizes, in_sizes = [0] * ranks, [0] * ranks
    for matrix, share in held:
        out_sizes[matrix.owner] += share.end - share.begin
    for _, share in owned:
        in_sizes[share.rank] += share.end - share.begin

    # With an empty run before them: a rank may hold nothing of this round.
    parts = [direction[:0], *(direction[share.place] for _, share in held)]
    sent = torch.cat(parts).to(device, dtype)
    received = sent.new_empty(sum(in_sizes))
    dist.all_to_all_single(received, sent, in_sizes, out_sizes, group=layout.group)

    whole = {id(m): received.new_empty(m.size) for m in mine}
    places = [whole[id(m)][s.begin : s.end] for m, s in owned]
    for place, part in zip(places, received.split([len(p) for p in places]), strict=True):
        place.copy_(part)
    for shape in {(m.rows, m.columns) for m in mine}:
        same = [m for m in mine if (m.rows, m.columns) == shape]
        made = orthogonalise(torch.stack([whole[id(m)].view(shape) for m in same]))
        for matrix, update in zip(same, made, strict=True):
            whole[id(matrix)].copy_(update.reshape(-1))

    if places:
        torch.cat(places, out=received)
    dist.all_to_all_single(sent, received, out_sizes, in_sizes, group=layout.group)
    updates = sent.split([share.end - share.begin for _, share in held])
    for (matrix, share), update in zip(held, updates, strict=True):
        yield matrix, share, update
