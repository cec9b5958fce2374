"""Weight updates from another host, into files on this one (`model/send_broadcast.py` sends them).

What arrives lies here like a sender's own: verified once, for all engines of this host, which then
verify and load it as they do anything. Two sets of files take turns, so that the version before is
whole while the next one comes.
"""

import json
import os
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor

from rollout.errors import WeightUpdateError
from rollout.receive_changes import HeldCopy
from rollout.receive_segments import (
    Announced,
    Mappings,
    announced,
    private_folder,
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


class Inbox:
    """What one sender has sent to this host. Its methods block: call them in a thread."""

    def __init__(self, *, delta: bool = False, root: Path = SHARED_MEMORY) -> None:
        """Make a private folder; with `delta`, keep a copy that changes can be made to."""
        self._folder = private_folder(root)
        self._held = HeldCopy(root) if delta else None
        self._version = NOTHING  # of that copy
        self._turn = 0
        self._maps: dict[str, Tensor] = {}
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
            files = [self._file(link, *each) for each in enumerate(header["sizes"])]
            taken = self._take(arrived(header, files))
        except (ValueError, OSError) as error:
            raise WeightUpdateError(
                f"version {header['version']} of the weights did not arrive: {error}"
            ) from error
        self._turn = 1 - self._turn
        if self._held is not None:  # it has a copy
            self._remove()
        return list(taken.files)

    def close(self) -> None:
        """Remove the files. May be called twice."""
        shutil.rmtree(self._folder, ignore_errors=True)
        if self._held is not None:
            self._held.close()

    def _remove(self) -> None:
        for file in self._maps:
            Path(file).unlink(missing_ok=True)
        self._maps.clear()

    def _take(self, update: Arrived) -> Announced:
        if self._held is not None:
            self._version = NOTHING
            here = self._held.take(update)
            self._version = update.version
            return here
        here = announced(update)
        verify(here, self._mappings)
        return here

    def _file(self, link: Link, number: int, num_bytes: int) -> str:
        """Receive one file, into the pages of the last one of its turn where it fits."""
        file = self._folder / f"{self._turn}-{number:05d}.safetensors"
        mapped = self._maps.get(str(file))
        if mapped is None or len(mapped) != num_bytes:
            file.unlink(missing_ok=True)  # never cut: it may be mapped
            with file.open("xb") as handle:
                os.posix_fallocate(handle.fileno(), 0, num_bytes)
            mapped = torch.from_numpy(np.memmap(file, np.uint8, "r+"))
            self._maps[str(file)] = mapped
        link.broadcast(mapped)
        return str(file)


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
