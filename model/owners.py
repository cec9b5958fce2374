"""Who holds and who owns every element of every tensor among the learner's shards. Pure arithmetic.

A shard *holds* what it multiplies with in forward and backward, and *owns* the elements whose
optimiser state and update are its own. Shard r of R holds the r mod `expert_parallel`-th share of
every layer's experts; the shards with the same share are replicas of each other. What is held alike
is cut among those who hold it: ZeRO-1 and -2 lay the tensors of one kind end to end and cut the
whole into equal ranges; ZeRO-3 cuts every tensor, and its shards hold only what they own.
"""

import math
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple

from model.config import ParallelConfig
from model.inventory import Role, Weight

ALIGNMENT = 2  # elements: a range of ZeRO-1 and -2 is a multiple of it


class Owned(NamedTuple):
    """A flat range of one tensor's elements."""

    name: str
    begin: int
    end: int


@dataclass(frozen=True, slots=True)
class _Flat:
    """Tensors end to end, cut in equal ranges among `ranks` shards."""

    tensors: tuple[Weight, ...]
    share: int  # 1 / share of every tensor lies on a shard
    ranks: int
    size: int  # elements of a range

    def ranges(self, place: int) -> Iterator[tuple[Weight, int, int]]:
        """What lies in the range of that place, in elements of a shard's share of the tensor."""
        start = 0
        for weight in self.tensors:
            length = weight.elements // self.share
            begin = max(place * self.size - start, 0)
            end = min((place + 1) * self.size - start, length)
            if begin < end:
                yield weight, begin, end
            start += length

    def cut(self) -> int:
        """Elements of the matrices that lie in more than one range."""
        start = found = 0
        for weight in self.tensors:
            matrix = weight.matrix_elements
            for begin in range(start, start + weight.elements // self.share, matrix):
                if begin // self.size != (begin + matrix - 1) // self.size:
                    found += matrix
            start += weight.elements // self.share
        return found


def replicas(parallel: ParallelConfig) -> int:
    """Shards that hold the same experts."""
    return parallel.shards // parallel.expert_parallel


def check_experts(weights: Sequence[Weight], parallel: ParallelConfig) -> None:
    """Raise ValueError if the experts cannot be spread evenly."""
    experts = [w for w in weights if w.role is Role.expert]
    if parallel.expert_parallel > 1 and not experts:
        raise ValueError(
            f"parallel.expert_parallel={parallel.expert_parallel}, but the model has no experts: "
            "set it to 1"
        )
    for weight in experts:
        if weight.shape[0] % parallel.expert_parallel:
            raise ValueError(
                f"parallel.expert_parallel={parallel.expert_parallel} must divide the "
                f"{weight.shape[0]} experts of {weight.name}"
            )


def held(weights: Sequence[Weight], parallel: ParallelConfig, rank: int) -> Iterator[Owned]:
    """What a shard keeps between steps in the precision that forward reads."""
    if parallel.zero_stage == 3:
        yield from owned(weights, parallel, rank)
        return
    for weight in weights:
        if weight.role is Role.expert:
            share = weight.elements // parallel.expert_parallel
            begin = share * (rank % parallel.expert_parallel)
            yield Owned(weight.name, begin, begin + share)
        elif weight.role is not Role.buffer:
            yield Owned(weight.name, 0, weight.elements)


def owned(weights: Sequence[Weight], parallel: ParallelConfig, rank: int) -> Iterator[Owned]:
    """What a shard updates. Over all shards, every element exactly once."""
    replica, share = divmod(rank, parallel.expert_parallel)
    for flat in _flats(weights, parallel):
        spread = flat.share > 1
        for weight, begin, end in flat.ranges(replica if spread else rank):
            first = share * (weight.elements // flat.share) if spread else 0
            yield Owned(weight.name, first + begin, first + end)


def owned_elements(weights: Sequence[Weight], parallel: ParallelConfig) -> Mapping[Role, int]:
    """Numbers that shard 0 owns, padding included: no shard owns more."""
    total: dict[Role, int] = defaultdict(int)
    for flat in _flats(weights, parallel):
        total[flat.tensors[0].role] += flat.size
    return total


def cut_elements(weights: Sequence[Weight], parallel: ParallelConfig) -> int:
    """Elements of the matrices that lie on several shards: they must meet to be updated."""
    return sum(
        flat.cut() * flat.share
        for flat in _flats(weights, parallel)
        if flat.ranks > 1 and flat.tensors[0].role is not Role.adamw
    )


def _flats(weights: Sequence[Weight], parallel: ParallelConfig) -> Iterator[_Flat]:
    """Routed experts apart from other matrices, and what AdamW updates apart from both."""
    for role in (Role.matrix, Role.adamw, Role.expert):
        tensors = tuple(w for w in weights if w.role is role)
        if not tensors:
            continue
        share = parallel.expert_parallel if role is Role.expert else 1
        ranks = parallel.shards // share
        if parallel.zero_stage == 3:
            for weight in tensors:
                size = math.ceil(weight.elements // share / ranks)
                yield _Flat((weight,), share, ranks, size)
        else:
            total = sum(w.elements for w in tensors) // share
            size = math.ceil(total / (ranks * ALIGNMENT)) * ALIGNMENT
            yield _Flat(tensors, share, ranks, size)


def elements(pieces: Iterable[Owned]) -> int:
    """Numbers in all of them."""
    return sum(end - begin for _, begin, end in pieces)
