"""The sending end of weight updates: named tensors into files that engines on this host map.

A bucket of tensors is a safetensors file in a private folder in shared memory. Its metadata carries
`version` and `digests`, a JSON object of one xxh3-128 per tensor (`rollout/receive_segments.py`
verifies them). Two sets of files take turns: while a version is being written, the one before it
lies whole in the other, for engines that must go back to it and for those that start.
"""

import json
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import groupby
from pathlib import Path

import torch
import xxhash
from torch import Tensor

from model.send_changes import changes
from model.send_folder import PrivateFolder
from model.send_segments import Place, Segment, bytes_of, file_bytes, places_of, started_digest

SHARED_MEMORY = Path("/dev/shm")
LAYER = re.compile(r"\.(\d+)\.")  # its number, in a tensor's name: the first one there


@dataclass(frozen=True, slots=True, kw_only=True)
class Changes:
    """The way to a version from the one before it: one file of changes for each file of tensors.

    `base` is None, and there are no files, where the sender has nothing to compare with.
    """

    base: int | None
    files: list[str]
    num_bytes: int


@dataclass(frozen=True, slots=True, kw_only=True)
class WeightUpdate:
    """What an engine is told of one published version."""

    version: int
    files: list[str]  # in load order
    digests: dict[str, str]  # of every tensor
    num_bytes: int
    changes: Changes | None = None  # in delta mode
    layers: dict[int, "WeightUpdate"] = field(default_factory=dict)  # if they are sent one by one
    by_rank: list[list[str]] = field(default_factory=list)
    """The files as each rank of an engine finds them, where its ranks live on several hosts."""

    @property
    def digest(self) -> str:
        """Over version, names and content of all tensors."""
        return update_digest(self.version, self.digests)

    def layer(self, number: int) -> "WeightUpdate":
        """What belongs to one layer, which may be nothing."""
        nothing = WeightUpdate(version=self.version, files=[], digests={}, num_bytes=0)
        return self.layers.get(number, nothing)


NO_CHANGES = Changes(base=None, files=[], num_bytes=0)


def merged(updates: Sequence[WeightUpdate]) -> WeightUpdate:
    """One update of what several senders have published of the same version.

    Raises ValueError if versions differ or two senders publish the same tensor.
    """
    digests: dict[str, str] = {}
    for update in updates:
        if update.version != updates[0].version:
            raise ValueError(f"versions {updates[0].version} and {update.version} in one update")
        if twice := update.digests.keys() & digests.keys():
            raise ValueError(f"tensor {min(twice)} is published by two senders")
        digests |= update.digests
    return WeightUpdate(
        version=updates[0].version,
        files=[file for update in updates for file in update.files],
        digests=digests,
        num_bytes=sum(update.num_bytes for update in updates),
        changes=merged_changes([update.changes for update in updates]),
        layers={
            number: merged([update.layer(number) for update in updates])
            for number in sorted({n for update in updates for n in update.layers})
        },
    )


def merged_changes(parts: Sequence[Changes | None]) -> Changes | None:
    """The changes of several senders, if all start from the same version."""
    known = [part for part in parts if part is not None]
    if len(known) < len(parts):
        return None
    if len({part.base for part in known}) > 1:
        return NO_CHANGES
    return Changes(
        base=known[0].base,
        files=[file for part in known for file in part.files],
        num_bytes=sum(part.num_bytes for part in known),
    )


class WeightSender:
    """Publishes versions of the weights; a version's files stay until it is released."""

    def __init__(
        self,
        *,
        bucket_bytes: int = 1 << 28,
        root: Path = SHARED_MEMORY,
        delta: bool = False,
        by_layer: bool = False,
    ) -> None:
        """Make the private folder and remove those of processes that are gone.

        Args:
            bucket_bytes: of one file; a tensor larger than it gets one of its own.
            root: where the folder is made; the system's temporary folder if it is not there.
            delta: write what changed since the version before, too.
            by_layer: write no two layers into one file, and tell what belongs to which.

        Raises ValueError if `bucket_bytes` is not positive.
        """
        if bucket_bytes < 1:
            raise ValueError(f"bucket_bytes must be at least 1, got {bucket_bytes}")
        self._bucket_bytes = bucket_bytes
        self._delta, self._by_layer = delta, by_layer
        self._folder = PrivateFolder(root)
        self._made = 0
        self._last: WeightUpdate | None = None
        self._latest: list[Segment] = []  # of the last version, released or not
        self._before: tuple[WeightUpdate | None, list[Segment]] = (None, [])  # what came before it
        self._published: dict[int, list[Segment]] = {}
        self._changes: dict[int, list[Segment]] = {}
        self._spare: list[Segment] = []  # nobody reads them any more

    def publish(self, tensors: Iterable[tuple[str, Tensor]], version: int) -> WeightUpdate:
        """Write named full tensors (checkpoint names and shapes) as `version`.

        Tensors are taken one at a time; at most one bucket of them is held in memory. Raises
        ValueError for a name that comes twice or a version that is already published, OSError when
        shared memory is full; what was published before is still whole then.
        """
        if version in self._published:
            raise ValueError(f"version {version} is already published")
        written: list[Segment] = []
        self._published[version] = written
        try:
            update = self._write(written, tensors, version)
            if self._delta:
                update = replace(update, changes=self._write_changes(written, version))
        except BaseException:
            self._drop(self._published.pop(version) + self._changes.pop(version, []))
            raise
        self._drop(self._spare)
        self._spare = [] if self._is_published(self._last) else self._latest
        self._before = self._last, self._latest
        self._last, self._latest = update, written
        return update

    def release(self, version: int) -> None:
        """Let the files of `version` be written again. Raises ValueError if it is not published.

        The last version's are left alone until the next one is whole: engines may go back to them.
        """
        if version not in self._published:
            raise ValueError(f"version {version} is not published")
        segments = self._published.pop(version)
        self._drop(self._changes.pop(version, []))
        if segments is not self._latest:
            self._drop(self._spare)
            self._spare = segments

    def withdraw(self, version: int) -> None:
        """Take back the last version, which no engine was told of: the one before is last again.

        Raises ValueError if it is not the last one published.
        """
        if self._last is None or self._last.version != version or version not in self._published:
            raise ValueError(f"version {version} is not the last one published")
        self._spare = self._published.pop(version)
        self._drop(self._changes.pop(version, []))
        self._last, self._latest = self._before

    def close(self) -> None:
        """Remove everything. May be called twice."""
        self._folder.close()

    def _is_published(self, update: WeightUpdate | None) -> bool:
        return update is not None and update.version in self._published

    def _write(
        self, written: list[Segment], tensors: Iterable[tuple[str, Tensor]], version: int
    ) -> WeightUpdate:
        layers: dict[int, WeightUpdate] = {}
        digests: dict[str, str] = {}
        for layer, some in groupby(tensors, self._layer_of):
            files: list[Segment] = []
            mine: dict[str, str] = {}
            for bucket in buckets(some, self._bucket_bytes):
                if twice := bucket.keys() & (digests.keys() | mine.keys()):
                    raise ValueError(f"tensor {min(twice)} comes twice")
                segment, places = self._segment(bucket, version)
                written.append(segment)
                files.append(segment)
                mine |= segment.write(bucket, places, version)
            digests |= mine
            update = _update(version, files, mine)
            layers[layer] = merged([layers[layer], update]) if layer in layers else update
        return replace(_update(version, written, digests), layers=layers if self._by_layer else {})

    def _layer_of(self, named: tuple[str, Tensor]) -> int:
        return layer_of(named[0]) if self._by_layer else 0

    def _write_changes(self, written: Sequence[Segment], version: int) -> Changes:
        """Compare with the last version, which is still whole."""
        last = self._last
        if last is None or [s.places for s in self._latest] != [s.places for s in written]:
            return NO_CHANGES
        files: list[Segment] = []
        self._changes[version] = files
        for old, new in zip(self._latest, written, strict=True):
            found = dict(changes(old.data, new.data))
            found["header"] = torch.from_numpy(new.header)
            places = places_of(found)
            files.append(self._make(file_bytes(places, version)))
            files[-1].write(found, places, version)
        return Changes(
            base=last.version,
            files=[str(segment.file) for segment in files],
            num_bytes=sum(len(segment.bytes) for segment in files),
        )

    def _segment(
        self, bucket: Mapping[str, Tensor], version: int
    ) -> tuple[Segment, dict[str, Place]]:
        """A file for `bucket`: a spare one of exactly its size, else a new one.

        None is ever cut: an engine that has it mapped would die of reading what is gone.
        """
        places = places_of(bucket)
        size = file_bytes(places, version)
        for spare in self._spare:
            if len(spare.bytes) == size:
                self._spare.remove(spare)
                return spare, places
        return self._make(size), places

    def _make(self, num_bytes: int) -> Segment:
        segment = Segment(self._folder.path / f"{self._made:05d}.safetensors", num_bytes)
        self._made += 1
        return segment

    def _drop(self, segments: Iterable[Segment]) -> None:
        for segment in segments:
            segment.remove()


def _update(version: int, files: Sequence[Segment], digests: dict[str, str]) -> WeightUpdate:
    return WeightUpdate(
        version=version,
        files=[str(segment.file) for segment in files],
        digests=digests,
        num_bytes=sum(len(segment.data) for segment in files),
    )


def layer_of(name: str) -> int:
    """The layer of a tensor, from 1; 0 if it is in none: embedding, last norm, head."""
    found = LAYER.search(name)
    return 1 + int(found[1]) if found else 0


def buckets(
    tensors: Iterable[tuple[str, Tensor]], bucket_bytes: int
) -> Iterable[dict[str, Tensor]]:
    """Group tensors in their order into dicts of at most `bucket_bytes`, on CPU and contiguous.

    Raises ValueError for a name that comes twice in one bucket.
    """
    bucket: dict[str, Tensor] = {}
    filled = 0
    for name, tensor in tensors:
        if name in bucket:
            raise ValueError(f"tensor {name} comes twice")
        if bucket and filled + tensor.nbytes > bucket_bytes:
            yield bucket
            bucket, filled = {}, 0
        bucket[name] = tensor.detach().to("cpu").contiguous()
        filled += tensor.nbytes
    if bucket:
        yield bucket


def tensor_digest(name: str, tensor: Tensor) -> str:
    """xxh3-128 over name, dtype, shape and bytes; the same as in `rollout/receive_segments.py`."""
    digest = started_digest(name, tensor)
    digest.update(bytes_of(tensor.contiguous()).data)
    return digest.hexdigest()


def update_digest(version: int, digests: dict[str, str]) -> str:
    """One digest over a whole update; the same as in `rollout/receive_segments.py`."""
    return xxhash.xxh3_128(json.dumps([version, sorted(digests.items())]).encode()).hexdigest()
