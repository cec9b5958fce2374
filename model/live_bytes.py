"""Counts the bytes of tensors that are alive, and their peak, exactly and without the allocator.

What an allocator keeps back, a library's workspace inside one operation, and memory that Python
holds are not seen.
"""

import weakref
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_iter


class LiveBytes(TorchDispatchMode):
    """`with LiveBytes() as live:` counts every storage made inside it until it dies.

    Storages that exist before are counted from the moment they are handed to `watch`.
    """

    def __init__(self) -> None:
        super().__init__()
        self.now = 0  # bytes
        self.peak = 0  # bytes, since the start or `reset_peak`
        self._known: set[int] = set()

    def watch(self, tensor: Tensor) -> None:
        """Count the tensor's storage from now on; meta tensors have none."""
        if tensor.is_meta:
            return
        storage = tensor.untyped_storage()
        key = storage._cdata
        if key in self._known:
            return
        size = storage.nbytes()
        self._known.add(key)
        self.now += size
        self.peak = max(self.peak, self.now)
        weakref.finalize(storage, self._forget, key, size)

    def reset_peak(self) -> None:
        """Start a new phase."""
        self.peak = self.now

    def _forget(self, key: int, size: int) -> None:
        self._known.discard(key)
        self.now -= size

    def __torch_dispatch__(
        self,
        func: Callable[..., Any],
        types: Sequence[type],
        args: Sequence[Any] = (),
        kwargs: Mapping[str, Any] | None = None,
    ) -> Any:
        """Run the operation and count what it made."""
        result = func(*args, **(kwargs or {}))
        for value in tree_iter(result):
            if isinstance(value, torch.Tensor):
                self.watch(value)
        return result
