"""What the largest tensor inside a computation was."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode


class _Largest(TorchDispatchMode):
    """Notes the largest result of any operation, in elements."""

    elements = 0

    def __torch_dispatch__(
        self,
        func: Callable[..., Any],
        types: Any,
        args: tuple[Any, ...] = (),
        kwargs: dict[str, Any] | None = None,
    ) -> Any:
        result = func(*args, **(kwargs or {}))
        if isinstance(result, torch.Tensor):
            self.elements = max(self.elements, result.numel())
        return result


@pytest.fixture
def largest_result() -> Callable[[Callable[[], object]], int]:
    """Runs a computation; elements of the largest tensor that any operation in it returned."""

    def run(call: Callable[[], object]) -> int:
        with _Largest() as seen:
            call()
        return seen.elements

    return run
