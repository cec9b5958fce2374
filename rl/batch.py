"""Samples -> packed tensors, cut into micro-batches that fit the learner.

T is the number of packed tokens, S the number of sequences, N the number of loss tokens.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, fields
from functools import cached_property
from heapq import heapreplace
from itertools import accumulate
from typing import Any

import numpy as np
import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from rl.sample import NO_VERSION, Sample, supervised_sample


@dataclass(frozen=True, kw_only=True, eq=False)
class Batch:
    """Samples to be laid end to end; the totals are those of the whole optimiser step.

    They are laid out where a tensor is first asked for, which is the learner's process: each shard
    copies the tokens of its own share, once. A batch travels as its samples, without tensors.
    """

    samples: tuple[Sample, ...]  # [S]
    total_sequences: int
    total_loss_tokens: int

    @cached_property
    def lengths(self) -> list[int]:
        """Tokens of each sequence [S]."""
        return [sample.length for sample in self.samples]

    @cached_property
    def ids(self) -> Int[Tensor, " T"]:
        """Prompts and what was sampled."""
        parts = [p for s in self.samples for p in (s.completion.prompt_ids, s.completion.token_ids)]
        return torch.from_numpy(np.concatenate(parts))

    @cached_property
    def loss_mask(self) -> Bool[Tensor, " T"]:
        """True on tokens of the policy that are young enough."""
        mask = np.empty(sum(self.lengths), np.bool_)
        for tokens, _, in_loss in self._runs():
            mask[tokens] = in_loss
        return torch.from_numpy(mask)

    @cached_property
    def behaviour_logprobs(self) -> Float[Tensor, " T"]:
        """As the engine recorded them, 0 where a token is not the policy's."""
        done = [sample.completion for sample in self.samples]
        parts = [p for d in done for p in (np.zeros(len(d.prompt_ids), np.float32), d.logprobs)]
        return torch.from_numpy(np.concatenate(parts))

    @cached_property
    def versions(self) -> Int[Tensor, " T"]:
        """Weights that each token was sampled with, -1 where it is not the policy's."""
        versions = np.empty(sum(self.lengths), np.int32)
        for tokens, version, _ in self._runs():
            versions[tokens] = version
        return torch.from_numpy(versions)

    @cached_property
    def advantages(self) -> Float[Tensor, " S"]:
        """Of each sequence."""
        return torch.tensor([s.advantage for s in self.samples], dtype=torch.float32)

    @cached_property
    def temperatures(self) -> Float[Tensor, " S"]:
        """Logits are divided by them on both sides."""
        return torch.tensor([s.completion.temperature for s in self.samples], dtype=torch.float32)

    @cached_property
    def routing(self) -> Int[Tensor, "T layers K"] | None:
        """Experts that the engine chose, -1 for all of a token where they are not known; None if
        they are not known of any."""
        recorded = [s.completion.routing for s in self.samples]
        shapes = {rows.shape[1:] for rows in recorded if rows is not None}
        if not shapes:
            return None
        (shape,) = shapes
        routing = np.full((sum(self.lengths), *shape), -1, np.int16)
        for rows, length, end in zip(recorded, self.lengths, accumulate(self.lengths), strict=True):
            if rows is not None:
                known = rows[: length - 1]  # fewer than recorded where the rest was cut off
                routing[end - length : end - length + len(known)] = known
        return torch.from_numpy(routing)

    def sequence_of_loss_tokens(self) -> Int[Tensor, " N"]:
        """Which sequence each loss token belongs to."""
        owner = torch.repeat_interleave(torch.arange(len(self.lengths)), torch.tensor(self.lengths))
        return owner[self.loss_mask]

    def part(self, samples: Sequence[Sample]) -> "Batch":
        """Some of the samples, with the totals of all."""
        return Batch(
            samples=tuple(samples),
            total_sequences=self.total_sequences,
            total_loss_tokens=self.total_loss_tokens,
        )

    def _runs(self) -> Iterator[tuple[slice, int, bool]]:
        """Tokens that are alike: where they lie, their version, and whether the loss has them."""
        first = 0
        for sample in self.samples:
            prompt = len(sample.completion.prompt_ids)
            yield slice(first, first + prompt), NO_VERSION, False
            first += prompt
            for version, tokens in sample.completion.versions.runs():
                yield slice(first, first + tokens), version, version >= sample.oldest
                first += tokens

    def __getstate__(self) -> dict[str, Any]:
        return {field.name: getattr(self, field.name) for field in fields(self)}


def pack(samples: Sequence[Sample]) -> Batch:
    """One batch of all `samples`.

    Raises:
        ValueError: no samples, or a sample whose first token is in the loss (nothing predicts it).
    """
    if not samples:
        raise ValueError("cannot pack a batch of no samples")
    for sample in samples:
        done = sample.completion
        if not len(done.prompt_ids) and any(v >= sample.oldest for v in done.versions.values[:1]):
            raise ValueError(
                "the first token of a sample cannot be in the loss: no token precedes it"
            )
    return Batch(
        samples=tuple(samples),
        total_sequences=len(samples),
        total_loss_tokens=sum(sample.loss_tokens for sample in samples),
    )


def shares_of(batch: Batch | None, size: int) -> list[Batch | None]:
    """The sequences that each of `size` learner shards trains on; None if there are none for it.

    Longest first, each to the shard with the fewest tokens so far. A share keeps the totals of the
    whole, so that the sum of the shards' losses is the whole's loss.
    """
    if batch is None or size == 1:
        return [batch] * size
    load = [(0, shard) for shard in range(size)]  # a heap of (tokens, shard)
    shares: list[list[int]] = [[] for _ in range(size)]
    for index in sorted(range(len(batch.lengths)), key=lambda i: (-batch.lengths[i], i)):
        tokens, shard = load[0]
        heapreplace(load, (tokens + batch.lengths[index], shard))
        shares[shard].append(index)
    return [
        batch.part([batch.samples[index] for index in sorted(share)]) if share else None
        for share in shares
    ]


def idle_batch() -> Batch:
    """Two tokens outside the loss: what a shard runs when others have more micro-batches."""
    return Batch(samples=(supervised_sample([0, 0], []),), total_sequences=1, total_loss_tokens=1)


def micro_batches(batch: Batch, max_tokens: int) -> Iterator[Batch]:
    """Cut at sequence borders into parts of at most `max_tokens` tokens.

    A longer sequence goes alone. Every part keeps the totals of the whole, so that the sum of
    their losses is the whole's loss.
    """
    first = 0
    while first < len(batch.lengths):
        last, tokens = first + 1, batch.lengths[first]
        while last < len(batch.lengths) and tokens + batch.lengths[last] <= max_tokens:
            tokens += batch.lengths[last]
            last += 1
        yield batch.part(batch.samples[first:last])
        first = last
