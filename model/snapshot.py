"""A shard's files of a checkpoint, on their way from its memory to the disk while training goes on.

    learner | step 20 | copies | step 21      | step 22 |
    thread  |                  | writes files |

A copy costs as much host memory as the files that are made of it: at most 4 bytes for each element
of the weights that the shard writes, and what it holds of the optimiser's state (4 to 12 bytes for
each element that it updates); what stays free at the end of blocks can be as much again. The memory
is taken at the first checkpoint and kept for the next.
"""

from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor, wait
from dataclasses import dataclass

import torch
from torch import Tensor

from model.formats import CheckpointError

BLOCK = 1 << 28  # bytes; CUDA rounds pinned memory up to a power of two
ALIGN = 64


@dataclass(frozen=True, slots=True, kw_only=True)
class Writing:
    """How far a shard is with its files."""

    done: bool
    error: BaseException | None = None  # why they are not all there


class Snapshot:
    """Host memory for one copy of a shard's tensors, and the thread that writes them."""

    def __init__(self) -> None:
        """Take no memory yet."""
        self._pinned = torch.cuda.is_available()
        self._blocks: list[Tensor] = []
        self._block = self._used = 0
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="checkpoint")
        self._writing: Future[None] | None = None

    @property
    def writing(self) -> Writing:
        """How the last `write` goes; nothing is as good as done."""
        if self._writing is None:
            return Writing(done=True)
        if not self._writing.done():
            return Writing(done=False)
        return Writing(done=True, error=self._writing.exception())

    def begin(self) -> None:
        """Once what is being written is on the disk: let the next copies take its place."""
        if self._writing is not None:
            wait([self._writing])
        self._block = self._used = 0

    def copy(self, tensor: Tensor) -> Tensor:
        """A contiguous copy, in host memory until the next `begin`.

        Raises CheckpointError if there is no memory for it.
        """
        room = self._room(tensor.nbytes)
        copied = room.view(tensor.dtype).view(tensor.shape)
        copied.copy_(tensor)  # not without waiting: ZeRO-3 takes the source's memory back
        return copied

    def write(self, work: Callable[[], None]) -> None:
        """Let the thread do `work`, which writes what was copied."""
        self._writing = self._thread.submit(work)

    def close(self) -> None:
        """Return when nothing is being written any more."""
        self._thread.shutdown()

    def _room(self, num_bytes: int) -> Tensor:
        """The next bytes that are free."""
        while self._block < len(self._blocks):
            block = self._blocks[self._block]
            begin = self._used
            if begin + num_bytes <= len(block):
                self._used = -(-(begin + num_bytes) // ALIGN) * ALIGN
                return block[begin : begin + num_bytes]
            self._block, self._used = self._block + 1, 0
        size = max(BLOCK, 1 << (num_bytes - 1).bit_length() if num_bytes else 0)
        try:
            self._blocks.append(torch.empty(size, dtype=torch.uint8, pin_memory=self._pinned))
        except RuntimeError as error:
            raise CheckpointError(f"no host memory to copy a checkpoint to: {error}") from error
        return self._room(num_bytes)
