"""A group of processes through which one sends bytes to all others, each step within a time.

Gloo between processors, NCCL between GPUs: the same calls, on pieces of host memory that NCCL takes
by way of two buffers on the device. A step that fails ends the group: what was being sent is void.
"""

import os
import time
from collections import deque
from dataclasses import dataclass
from datetime import timedelta
from typing import Any

import torch
from torch import Tensor
from torch.distributed import PrefixStore, ProcessGroupGloo, TCPStore

from rollout.errors import WeightUpdateError

PIECE = 1 << 26  # bytes of one broadcast, at the most
IN_FLIGHT = 2  # pieces: one is on its way while the next is brought to the device, or off it
DEVICE_BYTES = 1 << 28  # of a process's device, for the pieces of all its groups
MEET_S = 30.0  # for all to come: they are started before
LIMIT_S = 30.0  # of a piece: 2 MB/s
POLL_S = 0.001
CPU, CUDA = "cpu", "cuda"


class LinkError(RuntimeError):
    """A member of the group is gone or silent: the group is of no more use."""


class GroupOver(WeightUpdateError):
    """An update did not come because its group broke, maybe through another member."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Meeting:
    """Where a group meets: rank 0, the sender, listens."""

    address: str
    port: int
    size: int
    device: str  # "cuda": NCCL; "cpu": gloo
    piece: int  # bytes: `piece_bytes`
    meet_s: float = MEET_S
    limit_s: float = LIMIT_S


def piece_bytes(groups: int) -> int:
    """Of one broadcast, where a process may be in so many groups at a time.

    All may have pieces on its device at once. They share it by being small, not by taking turns:
    members that wait for their turns in different groups would wait for each other.
    """
    return min(PIECE, DEVICE_BYTES // (IN_FLIGHT * groups))


def device() -> str:
    """What this process can send from, and receive on."""
    return CUDA if torch.cuda.is_available() else CPU


def listen(address: str) -> TCPStore:
    """Begin to listen, on a port that the store names."""
    wait = timedelta(seconds=MEET_S)
    return TCPStore(address, 0, is_master=True, timeout=wait, wait_for_workers=False)


class Link:
    """One member's end of a group."""

    def __init__(
        self, meeting: Meeting, rank: int, address: str, store: TCPStore | None = None
    ) -> None:
        """Meet the others.

        Args:
            meeting: the same for all.
            rank: 0 sends.
            address: of this host, where the others can reach it.
            store: of rank 0, from `listen`.

        Raises LinkError if one does not come in time.
        """
        self.meeting, self.rank = meeting, rank
        self._limit = timedelta(seconds=meeting.limit_s)
        wait = timedelta(seconds=meeting.meet_s)
        try:
            if store is None:
                store = TCPStore(
                    meeting.address,
                    meeting.port,
                    is_master=False,
                    timeout=wait,
                    wait_for_workers=False,
                )
            groups = gloo if meeting.device == CPU else nccl
            self._group: Any = groups(meeting, rank, PrefixStore("weights", store), address)
            self._buffers: deque[Tensor] = deque()
            if meeting.device == CUDA:
                self._buffers.extend(
                    torch.empty(meeting.piece, dtype=torch.uint8, device=CUDA)
                    for _ in range(IN_FLIGHT)
                )
        except RuntimeError as error:
            where = f"{meeting.address}:{meeting.port}"
            raise LinkError(f"not all {meeting.size} members met at {where}: {error}") from error

    def gather(self, mine: int) -> list[int]:
        """The number that each member brings, by rank. Raises LinkError."""
        try:
            number = torch.tensor([mine], device=self.meeting.device)
            found = [torch.zeros_like(number) for _ in range(self.meeting.size)]
            self._wait(self._group.allgather(found, number, self._limit))
            return [int(each.item()) for each in found]
        except RuntimeError as error:
            why = str(error)
        raise LinkError(f"member {self.rank}: {why}")  # without its cause, as below

    def broadcast(self, data: Tensor) -> None:
        """The bytes [n] of rank 0, in host memory, into `data` of all others. Raises LinkError."""
        under_way: deque[tuple[Any, Tensor, Tensor]] = deque()
        try:
            for piece in data.split(self.meeting.piece) if len(data) else ():
                if len(under_way) == IN_FLIGHT:
                    self._arrive(*under_way.popleft())
                carried = self._staged(piece)
                under_way.append((self._group.broadcast(carried, 0, self._limit), carried, piece))
            while under_way:
                self._arrive(*under_way.popleft())
            return
        except RuntimeError as error:
            why = str(error)
        # Without its cause, whose frames hold steps that keep the sockets open: as long as they
        # are, the others wait.
        under_way.clear()
        raise LinkError(f"member {self.rank}: {why}")

    def close(self) -> None:
        """Leave: whoever waits for this member has an error. May be called twice."""
        group, self._group = self._group, None
        self._buffers.clear()
        if group is not None and self.meeting.device == CUDA:
            group.abort()

    def _staged(self, piece: Tensor) -> Tensor:
        """Where the group carries a piece: itself, or a buffer on the device."""
        if not self._buffers:
            return piece
        self._buffers.rotate()
        carried = self._buffers[0][: len(piece)]
        if self.rank == 0:
            carried.copy_(piece, non_blocking=True)
        return carried

    def _arrive(self, work: Any, carried: Tensor, piece: Tensor) -> None:
        self._wait(work)
        if carried is not piece and self.rank:
            piece.copy_(carried)

    def _wait(self, work: Any) -> None:
        """Until it is done, at most for the limit."""
        if self.meeting.device == CPU:
            work.wait(self._limit)
            return
        deadline = time.monotonic() + self.meeting.limit_s
        while not work.is_completed():  # NCCL's own wait is the device's, without an end
            if time.monotonic() > deadline:
                raise RuntimeError(f"a step took longer than {self.meeting.limit_s:g} s")
            time.sleep(POLL_S)
        work.wait()


def gloo(meeting: Meeting, rank: int, store: PrefixStore, address: str) -> Any:
    """A group of processors."""
    settings: Any = ProcessGroupGloo
    options = settings._Options()
    # By itself it takes what the host's name resolves to, which no other host may reach.
    options._devices = [ProcessGroupGloo.create_device(hostname=address)]
    options._timeout = timedelta(seconds=meeting.meet_s)
    return ProcessGroupGloo(store, rank, meeting.size, options)


def nccl(meeting: Meeting, rank: int, store: PrefixStore, address: str) -> Any:
    """A group of GPUs; NCCL finds its addresses itself."""
    # Else torch's watchdog ends the process when a member is lost or late: a relay lives on and
    # meets anew. Nobody else in its process uses NCCL. Read when a group is made.
    os.environ["TORCH_NCCL_ASYNC_ERROR_HANDLING"] = "0"
    # Builds of torch for processors do not have it.
    groups: Any = torch.distributed.ProcessGroupNCCL
    options = groups.Options()
    options._timeout = timedelta(seconds=meeting.meet_s)
    return groups(store, rank, meeting.size, options)
