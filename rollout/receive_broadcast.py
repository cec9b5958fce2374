"""Weight updates from another host, into files on this one (`model/send_broadcast.py` sends them).

What arrives is an update like a sender's of this host: the engine verifies and loads it the same
way. Files are kept and written again, as a sender does.
"""

import json
import os
import shutil
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch.distributed import PrefixStore, ProcessGroupGloo, TCPStore

from rollout.errors import WeightUpdateError
from rollout.receive_segments import private_folder, update_digest

SHARED_MEMORY = Path("/dev/shm")
PIECE = 1 << 26  # bytes of one broadcast; the sender's
NOTHING = -1 << 62  # no version


@dataclass(frozen=True, slots=True, kw_only=True)
class Meeting:
    """Where a group meets: the sender listens, receivers are ranks 1 and up."""

    address: str
    port: int
    rank: int
    size: int
    meet_s: float  # to wait for the others
    limit_s: float  # of every step after that


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


class BroadcastReceiver:
    """The receiving end of one group. Its methods block: call them in a thread."""

    def __init__(self, meeting: Meeting, root: Path = SHARED_MEMORY) -> None:
        """Meet the sender. Raises WeightUpdateError if the group does not meet in time."""
        self._limit = timedelta(seconds=meeting.limit_s)
        self._rank = meeting.rank
        wait = timedelta(seconds=meeting.meet_s)
        try:
            store = TCPStore(
                meeting.address, meeting.port, meeting.size, is_master=False, timeout=wait
            )
            self._group: Any = ProcessGroupGloo(
                PrefixStore("weights", store), meeting.rank, meeting.size, wait
            )
        except RuntimeError as error:
            raise WeightUpdateError(
                f"no meeting with the sender at {meeting.address}:{meeting.port}: {error}"
            ) from error
        self._folder = private_folder(root)
        self._turn = 0  # the version before stays whole while the next one comes

    def receive(self, held: int | None) -> Arrived:
        """The next update; only its changes, if every receiver holds their base.

        Raises WeightUpdateError if the sender is gone or silent: the group is of no more use then.
        """
        try:
            mine = torch.tensor([NOTHING if held is None else held])
            everyone = [torch.zeros_like(mine) for _ in range(self._group.size())]
            self._group.allgather(everyone, mine, self._limit).wait(self._limit)
            length = torch.zeros(1, dtype=torch.int64)
            self._fill(length)
            encoded = torch.empty(int(length.item()), dtype=torch.uint8)
            self._fill(encoded)
            header: dict[str, Any] = json.loads(encoded.numpy().tobytes())
            kind = f"whole-{self._turn}" if header["whole"] else "changes"
            files = [
                self._file(f"{kind}-{number:05d}.safetensors", size)
                for number, size in enumerate(header["sizes"])
            ]
            self._turn = 1 - self._turn
        except RuntimeError as error:
            raise WeightUpdateError(
                f"receiver {self._rank}: the update after version {held} did not come: {error}"
            ) from error
        changes = None
        if header["delta"]:
            base = None if header["whole"] else header["base"]
            changes = ArrivedChanges(base=base, files=[] if header["whole"] else files)
        return Arrived(
            version=header["version"],
            files=files if header["whole"] else [],
            digests=header["digests"],
            num_bytes=header["num_bytes"],
            changes=changes,
        )

    def close(self) -> None:
        """Remove the files. May be called twice."""
        shutil.rmtree(self._folder, ignore_errors=True)

    def _file(self, name: str, num_bytes: int) -> str:
        """Receive one file."""
        file = self._folder / name
        if not file.exists() or file.stat().st_size != num_bytes:
            file.unlink(missing_ok=True)  # never cut: it may be mapped
            with file.open("xb") as handle:
                os.posix_fallocate(handle.fileno(), 0, num_bytes)
        self._fill(torch.from_numpy(np.memmap(file, np.uint8, "r+")))
        return str(file)

    def _fill(self, tensor: torch.Tensor) -> None:
        for piece in tensor.split(PIECE):
            self._group.broadcast(piece, 0, self._limit).wait(self._limit)
