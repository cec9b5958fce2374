"""Optimiser state of a sharded job, on disk as runs of named parameters.

Every shard writes one safetensors file. A run says which part of which whole parameter it is, so
any other number of shards, cut in any other way, finds what it needs: ZeRO stage, expert-parallel
size and shards may all change between saving and loading.
"""

import json
from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from model.formats import CheckpointError
from model.shards import write_file

PATTERN = "state-*.safetensors"


@dataclass(frozen=True, slots=True, kw_only=True)
class Run:
    """A part of one parameter's state."""

    kind: str  # momentum, exp_avg, exp_avg_sq, weight
    parameter: str
    begin: int  # in the flattened whole parameter
    values: Tensor  # [elements]


@dataclass(frozen=True, slots=True, kw_only=True)
class _Place:
    """Where a run lies."""

    file: Path
    key: str
    begin: int
    end: int


@dataclass(frozen=True, slots=True, kw_only=True)
class StateFile:
    """One file before it is written: views of what the optimiser holds, or copies of them."""

    path: Path
    tensors: Mapping[str, Tensor]
    counters: Mapping[str, int]

    def copied(self, copy: Callable[[Tensor], Tensor]) -> "StateFile":
        """The same of copies."""
        tensors = {name: copy(tensor) for name, tensor in self.tensors.items()}
        return replace(self, tensors=tensors)

    def write(self) -> None:
        """Write it. Raises OSError when the disk refuses."""
        tensors = {name: tensor.cpu().contiguous() for name, tensor in self.tensors.items()}
        write_file(self.path, tensors, {"counters": json.dumps(dict(self.counters))})


def state_file(
    folder: Path, runs: Iterable[Run], *, rank: int, size: int, counters: Mapping[str, int]
) -> StateFile:
    """This shard's runs, its random state, and numbers that all shards have in common."""
    tensors = {f"{r.kind}|{r.parameter}|{r.begin}": r.values for r in runs}
    tensors["random"] = torch.get_rng_state()
    path = folder / f"state-{rank:05d}-of-{size:05d}.safetensors"
    return StateFile(path=path, tensors=tensors, counters=counters)


class SavedState:
    """What `StateFile.write` of all shards has written."""

    def __init__(self, folder: Path) -> None:
        """Index the files.

        Raises CheckpointError if files are missing or one is damaged.
        """
        self._files = sorted(folder.glob(PATTERN))
        if not self._files:
            raise CheckpointError(f"no optimiser state in {folder}: {PATTERN} is missing")
        wanted = int(self._files[0].stem.rpartition("-")[2])
        if len(self._files) != wanted:
            raise CheckpointError(
                f"{folder} holds {len(self._files)} files of optimiser state, {wanted} were written"
            )
        self._places: dict[tuple[str, str], list[_Place]] = defaultdict(list)
        self.counters: dict[str, int] = {}
        for file in self._files:
            self._index(file)

    def _index(self, file: Path) -> None:
        try:
            with safe_open(file, framework="pt") as shard:
                self.counters = json.loads(shard.metadata()["counters"])
                for key in shard.keys():  # noqa: SIM118 (not a mapping)
                    if "|" not in key:
                        continue
                    kind, parameter, begin = key.split("|")
                    length = shard.get_slice(key).get_shape()[0]
                    place = _Place(file=file, key=key, begin=int(begin), end=int(begin) + length)
                    self._places[kind, parameter].append(place)
        except (SafetensorError, OSError, TypeError, KeyError, ValueError) as error:
            raise CheckpointError(f"{file} is truncated or corrupt: {error}") from error

    def has(self, kind: str, parameter: str) -> bool:
        """Whether any of it was saved."""
        return (kind, parameter) in self._places

    def read_into(self, kind: str, parameter: str, begin: int, target: Tensor) -> None:
        """Copy [begin, begin + len(target)) of a parameter's state.

        Raises CheckpointError if a part of it was not saved.
        """
        end, done = begin + len(target), 0
        for place in self._places.get((kind, parameter), ()):
            first, last = max(begin, place.begin), min(end, place.end)
            if first >= last:
                continue
            with safe_open(place.file, framework="pt") as shard:
                part = shard.get_slice(place.key)[first - place.begin : last - place.begin]
            target[first - begin : last - begin] = part.to(target)
            done += last - first
        if done != len(target):
            raise CheckpointError(
                f"{self._files[0].parent}: {kind} of {parameter} is incomplete: elements "
                f"[{begin}, {end}) were asked for, {done} were saved"
            )

    def random(self, rank: int) -> Tensor:
        """The random state of a shard; a shard that was not there takes that of another."""
        with safe_open(self._files[rank % len(self._files)], framework="pt") as shard:
            return shard.get_tensor("random")
