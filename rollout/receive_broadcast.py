"""Weight updates from another host, into files on this one (`model/send_broadcast.py` sends them).

What arrives lies here like a sender's own: verified once, for all engines of this host, which then
verify and load it as they do anything. Two sets of files take turns, so that the version before is
whole while the next one comes. What comes layer by layer has layers in the place of versions.
"""

import contextlib
import json
import mmap
import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import torch
from torch import Tensor

from rollout.errors import WeightUpdateError
from rollout.receive_changes import HeldCopy
from rollout.receive_folder import PrivateFolder
from rollout.receive_segments import (
    Announced,
    Mappings,
    announced,
    update_digest,
    verify,
)

SHARED_MEMORY = Path("/dev/shm")
NOTHING = -1 << 62  # no version


class Link(Protocol):
    """The group, seen from a receiver (`rl.weight_link.Link`)."""

    def gather(self, mine: int) -> list[int]:
        """The number that each member brings, by rank."""
        ...

    def broadcast(self, data: Tensor) -> None:
        """The sender's bytes into `data` [n]."""
        ...


@dataclass(frozen=True, slots=True, kw_only=True)
class ArrivedChanges:
    """Changes that lie on this host (a `rollout.receive_segments.Changes`)."""

    base: int | None
    files: list[str]


@dataclass(frozen=True, slots=True, kw_only=True)
class Arrived:
    """An update that lies on this host (a `rollout.receive_segments.Update`)."""

    version: int
    files: list[str]  # none if only changes came
    digests: dict[str, str]
    num_bytes: int
    changes: ArrivedChanges | None

    @property
    def digest(self) -> str:
        """Over version, names and content of all tensors."""
        return update_digest(self.version, self.digests)


@dataclass(frozen=True, slots=True, eq=False)
class Place:
    """A file that bytes are received into."""

    path: Path
    mapped: mmap.mmap
    data: Tensor  # [bytes], mapped

    def remove(self) -> None:
        """Give its memory back at once, which engines that have it mapped would keep.

        They read zeros from then on, and no end of the file.
        """
        with contextlib.suppress(OSError):  # a file system that cannot
            self.mapped.madvise(mmap.MADV_REMOVE)
        self.path.unlink(missing_ok=True)


class Inbox:
    """What one sender has sent to this host. Its methods block: call them in a thread."""

    def __init__(self, *, delta: bool = False, root: Path = SHARED_MEMORY) -> None:
        """Make a private folder; with `delta`, keep a copy that changes can be made to."""
        self._folder = PrivateFolder(root)
        self._held = HeldCopy(root) if delta else None
        self._version = NOTHING  # of that copy
        self._turn = 0
        self._turns: tuple[list[Place], list[Place]] = ([], [])
        self._made = 0
        self._mappings = Mappings()

    def receive(self, link: Link) -> list[str]:
        """The files of the next update, whole and verified, in load order.

        Raises WeightUpdateError if the bytes that came are not those announced, or shared memory is
        full; and what the link raises. What lay here before is whole then.
        """
        link.gather(self._version)
        length = torch.zeros(8, dtype=torch.uint8)
        link.broadcast(length)
        encoded = torch.empty(int(length.view(torch.int64).item()), dtype=torch.uint8)
        link.broadcast(encoded)
        header: dict[str, Any] = json.loads(encoded.numpy().tobytes())
        try:
            places = self._places(header["sizes"])
            for place in places:
                link.broadcast(place.data)
            taken = self._take(arrived(header, [str(place.path) for place in places]))
        except (ValueError, OSError) as error:
            raise WeightUpdateError(
                f"version {header['version']} of the weights did not arrive: {error}"
            ) from error
        self._turn = 1 - self._turn
        if self._held is not None:  # it has a copy
            for received in self._turns:
                self._remove(received)
        return list(taken.files)

    def close(self) -> None:
        """Remove the files. May be called twice."""
        self._folder.close()
        if self._held is not None:
            self._held.close()

    def _remove(self, places: list[Place]) -> None:
        for place in places:
            place.remove()
        places.clear()
        self._mappings.trim()

    def _take(self, update: Arrived) -> Announced:
        if self._held is not None:
            self._version = NOTHING
            here = self._held.take(update)
            self._version = update.version
            return here
        here = announced(update)
        verify(here, self._mappings)
        return here

    def _places(self, sizes: Sequence[int]) -> list[Place]:
        """Files of these sizes [bytes]: the last ones of this turn where they fit, and no others.

        To write into pages that are there is faster. None is ever cut: it may be mapped. What does
        not fit is removed before anything is made in its stead.
        """
        mine = self._turns[self._turn]
        spare = mine.copy()
        fitting = [_taken(spare, size) for size in sizes]
        mine[:] = [place for place in fitting if place is not None]
        self._remove(spare)
        places = []
        for place, size in zip(fitting, sizes, strict=True):
            if place is None:
                place = self._make(size)
                mine.append(place)
            places.append(place)
        return places

    def _make(self, num_bytes: int) -> Place:
        path = self._folder.path / f"{self._made:05d}.safetensors"
        self._made += 1
        with path.open("x+b") as handle:
            try:
                os.posix_fallocate(handle.fileno(), 0, num_bytes)
            except OSError:
                path.unlink()
                raise
            mapped = mmap.mmap(handle.fileno(), num_bytes)
        return Place(path, mapped, torch.frombuffer(mapped, dtype=torch.uint8))


def _taken(spare: list[Place], num_bytes: int) -> Place | None:
    """Take a file of that size out of `spare`."""
    for position, place in enumerate(spare):
        if len(place.data) == num_bytes:
            return spare.pop(position)
    return None


def arrived(header: dict[str, Any], files: list[str]) -> Arrived:
    """The update that a sender's header and files are."""
    base = header["base"]
    return Arrived(
        version=header["version"],
        files=[] if base is not None else files,
        digests=header["digests"],
        num_bytes=header["num_bytes"],
        changes=None if base is None else ArrivedChanges(base=base, files=files),
    )
