"""Host memory for a shard's state while its device is somebody else's.

What moves is the memory below tensors, not tensors: parameters that are views of a flat tensor stay
views of it, and nobody who holds one has to be told. Coming back is one copy from host to device
(K2 sec. 3.3.1).
"""

from collections.abc import Iterable

import torch
from torch import Tensor, UntypedStorage

BLOCK = 1 << 28  # bytes; CUDA rounds pinned memory up to a power of two


class HostMemory:
    """Takes the memory of tensors away, and gives it back as it was."""

    def __init__(self) -> None:
        """Take no memory yet."""
        self._away: list[tuple[UntypedStorage, list[Tensor]]] = []  # emptied, and what was in it
        self._spare: dict[int, list[Tensor]] = {}  # by size: to pin memory takes seconds

    def take(self, tensors: Iterable[Tensor], device: torch.device) -> int:
        """Copy the memory of those that lie on `device`, and free it; the bytes that moved.

        Tensors that share memory, or come twice, move once. Until `give_back` none may be read.
        """
        found = {s.data_ptr(): s for s in _storages(tensors, device) if s.nbytes()}
        for storage in found.values():
            blocks = []
            for part in _bytes_of(storage).split(BLOCK):
                blocks.append(self._room(len(part), device))
                blocks[-1].copy_(part, non_blocking=True)
            self._away.append((storage, blocks))
        self._spare.clear()  # sizes that come no more
        if found:
            _wait(device)
        for storage in found.values():
            storage.resize_(0)
        return sum(len(block) for _, blocks in self._away for block in blocks)

    def give_back(self) -> None:
        """Bring everything back to where it was. Does nothing if nothing is away."""
        for storage, blocks in self._away:
            storage.resize_(sum(map(len, blocks)))
            for block, part in zip(blocks, _bytes_of(storage).split(BLOCK), strict=True):
                part.copy_(block, non_blocking=True)
                self._spare.setdefault(len(block), []).append(block)
        for storage, _ in self._away[:1]:
            _wait(storage.device)
        self._away.clear()

    def _room(self, size: int, device: torch.device) -> Tensor:
        spare = self._spare.get(size)
        if spare:
            return spare.pop()
        return torch.empty(size, dtype=torch.uint8, pin_memory=device.type == "cuda")


def _storages(tensors: Iterable[Tensor], device: torch.device) -> Iterable[UntypedStorage]:
    return (t.untyped_storage() for t in tensors if t.device.type == device.type)


def _bytes_of(storage: UntypedStorage) -> Tensor:
    return torch.empty(0, dtype=torch.uint8, device=storage.device).set_(storage)


def _wait(device: torch.device) -> None:
    """Until all copies are done."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
