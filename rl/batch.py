"""Samples -> packed tensors, cut into micro-batches that fit the learner.

T is the number of packed tokens, S the number of sequences, N the number of loss tokens.
"""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import chain

import numpy as np
import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from rl.sample import Sample


@dataclass(frozen=True, slots=True, kw_only=True)
class Batch:
    """Sequences laid end to end; the totals are those of the whole optimiser step."""

    ids: Int[Tensor, " T"]
    loss_mask: Bool[Tensor, " T"]
    behaviour_logprobs: Float[Tensor, " T"]
    versions: Int[Tensor, " T"]
    advantages: Float[Tensor, " S"]
    temperatures: Float[Tensor, " S"]
    lengths: list[int]  # [S]
    total_sequences: int
    total_loss_tokens: int

    def sequence_of_loss_tokens(self) -> Int[Tensor, " N"]:
        """Which sequence each loss token belongs to."""
        owner = torch.repeat_interleave(torch.arange(len(self.lengths)), torch.tensor(self.lengths))
        return owner[self.loss_mask]


def pack(samples: Sequence[Sample]) -> Batch:
    """One batch of all `samples`.

    Raises:
        ValueError: no samples, or a sample whose first token is in the loss (nothing predicts it).
    """
    if not samples:
        raise ValueError("cannot pack a batch of no samples")
    if any(sample.loss_mask[0] for sample in samples):
        raise ValueError("the first token of a sample cannot be in the loss: no token precedes it")
    mask = _flat([s.loss_mask for s in samples], np.bool_)
    return Batch(
        ids=_flat([s.ids for s in samples], np.int64),
        loss_mask=mask,
        behaviour_logprobs=_flat([s.behaviour_logprobs for s in samples], np.float32),
        versions=_flat([s.versions for s in samples], np.int64),
        advantages=torch.tensor([s.advantage for s in samples], dtype=torch.float32),
        temperatures=torch.tensor([s.temperature for s in samples], dtype=torch.float32),
        lengths=[len(s.ids) for s in samples],
        total_sequences=len(samples),
        total_loss_tokens=int(mask.sum()),
    )


def _flat(lists: Iterable[Iterable[float]], dtype: type[np.generic]) -> Tensor:
    """End to end; `torch.tensor` of a list takes ten times as long, and a step has millions."""
    return torch.from_numpy(np.fromiter(chain.from_iterable(lists), dtype))


def share_of(batch: Batch, rank: int, size: int) -> Batch | None:
    """The sequences that one of `size` learner shards trains on; None if there are none for it.

    Longest first, each to the shard with the fewest tokens so far. A share keeps the totals of the
    whole, so that the sum of the shards' losses is the whole's loss.
    """
    if size == 1:
        return batch
    load, mine = [0] * size, []
    for index in sorted(range(len(batch.lengths)), key=lambda i: (-batch.lengths[i], i)):
        target = min(range(size), key=load.__getitem__)
        load[target] += batch.lengths[index]
        if target == rank:
            mine.append(index)
    return _select(batch, sorted(mine)) if mine else None


def _select(batch: Batch, sequences: Sequence[int]) -> Batch:
    """Some of the sequences, with the totals of all."""
    ends = torch.tensor(batch.lengths).cumsum(0).tolist()
    tokens = torch.cat(
        [torch.arange(ends[index] - batch.lengths[index], ends[index]) for index in sequences]
    )
    return Batch(
        ids=batch.ids[tokens],
        loss_mask=batch.loss_mask[tokens],
        behaviour_logprobs=batch.behaviour_logprobs[tokens],
        versions=batch.versions[tokens],
        advantages=batch.advantages[list(sequences)],
        temperatures=batch.temperatures[list(sequences)],
        lengths=[batch.lengths[index] for index in sequences],
        total_sequences=batch.total_sequences,
        total_loss_tokens=batch.total_loss_tokens,
    )


def idle_batch() -> Batch:
    """Two tokens outside the loss: what a shard runs when others have more micro-batches."""
    return Batch(
        ids=torch.zeros(2, dtype=torch.long),
        loss_mask=torch.zeros(2, dtype=torch.bool),
        behaviour_logprobs=torch.zeros(2),
        versions=torch.full((2,), -1),
        advantages=torch.zeros(1),
        temperatures=torch.ones(1),
        lengths=[2],
        total_sequences=1,
        total_loss_tokens=1,
    )


def micro_batches(batch: Batch, max_tokens: int) -> Iterator[Batch]:
    """Cut at sequence borders into parts of at most `max_tokens` tokens.

    A longer sequence goes alone. Every part keeps the totals of the whole, so that the sum of
    their losses is the whole's loss.
    """
    first, first_token = 0, 0
    while first < len(batch.lengths):
        last, tokens = first + 1, batch.lengths[first]
        while last < len(batch.lengths) and tokens + batch.lengths[last] <= max_tokens:
            tokens += batch.lengths[last]
            last += 1
        span = slice(first_token, first_token + tokens)
        yield Batch(
            ids=batch.ids[span],
            loss_mask=batch.loss_mask[span],
            behaviour_logprobs=batch.behaviour_logprobs[span],
            versions=batch.versions[span],
            advantages=batch.advantages[first:last],
            temperatures=batch.temperatures[first:last],
            lengths=batch.lengths[first:last],
            total_sequences=batch.total_sequences,
            total_loss_tokens=batch.total_loss_tokens,
        )
        first, first_token = last, first_token + tokens
