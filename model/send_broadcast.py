"""Weight updates to hosts that do not share this one's memory: the files, broadcast in pieces.

One group is one sender and every receiver (`rollout/receive_broadcast.py`); several senders have a
group each, so that no weights travel between senders. What arrives are the same files that engines
of this host map, and the same digests verify them. Gloo carries bytes between processors; NCCL
needs the same three calls on device memory.
"""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import timedelta
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.distributed import PrefixStore, ProcessGroupGloo, TCPStore

from model.send_weights import WeightUpdate

PIECE = 1 << 26  # bytes of one broadcast: each has the whole time limit
NOTHING = -1 << 62  # what a receiver says that holds no version


class BroadcastError(RuntimeError):
    """A receiver is gone or silent: the group is of no more use, and what was sent is void."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Meeting:
    """Where a group meets: the sender listens, and is rank 0."""

    address: str
    port: int
    rank: int
    size: int
    meet_s: float  # to wait for the others: engines take minutes to start
    limit_s: float  # of every step after that


class Broadcaster:
    """The sending end of one group."""

    def __init__(self, meeting: Meeting) -> None:
        """Meet the receivers. Raises BroadcastError if one does not come in time."""
        self._limit = timedelta(seconds=meeting.limit_s)
        wait = timedelta(seconds=meeting.meet_s)
        try:
            store = TCPStore(
                meeting.address, meeting.port, meeting.size, is_master=True, timeout=wait
            )
            self._group: Any = ProcessGroupGloo(
                PrefixStore("weights", store), meeting.rank, meeting.size, wait
            )
        except RuntimeError as error:
            raise BroadcastError(
                f"not all of {meeting.size - 1} receivers came: {error}"
            ) from error

    def send(self, update: WeightUpdate) -> bool:
        """Bring an update to all receivers; only its changes, if all of them hold their base.

        Returns:
            Whether it was sent whole.

        Raises BroadcastError if a receiver does not take its part in time.
        """
        try:
            held = self._held()
            changes = update.changes
            whole = changes is None or changes.base is None or set(held) != {changes.base}
            files = update.files if whole or changes is None else changes.files
            data = [np.memmap(file, np.uint8, "r+") for file in files]
            self._send_header(update, whole, [len(each) for each in data])
            for each in data:
                self._send_bytes(torch.from_numpy(each))
        except RuntimeError as error:
            raise BroadcastError(f"version {update.version} was not sent: {error}") from error
        return whole

    def _held(self) -> list[int]:
        """The version that each receiver holds."""
        mine = torch.tensor([NOTHING])
        all_held = [torch.zeros_like(mine) for _ in range(self._group.size())]
        self._group.allgather(all_held, mine, self._limit).wait(self._limit)
        return [int(each.item()) for each in all_held[1:]]

    def _send_header(self, update: WeightUpdate, whole: bool, sizes: Sequence[int]) -> None:
        changes = update.changes
        header = {
            "version": update.version,
            "digests": update.digests,
            "num_bytes": update.num_bytes,
            "sizes": sizes,
            "whole": whole,
            "base": changes.base if changes is not None else None,
            "delta": changes is not None,
        }
        encoded = torch.frombuffer(bytearray(json.dumps(header).encode()), dtype=torch.uint8)
        self._send_bytes(torch.tensor([len(encoded)]))
        self._send_bytes(encoded)

    def _send_bytes(self, tensor: Tensor) -> None:
        for piece in tensor.split(PIECE):
            self._group.broadcast(piece, 0, self._limit).wait(self._limit)
