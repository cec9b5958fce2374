"""What the largest tensor inside a computation was, and how CUDA divides."""

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


class CudaDivision(TorchDispatchMode):
    """Divides by Python numbers as CUDA does, by products with their reciprocals."""

    def __torch_dispatch__(
        self,
        func: Callable[..., Any],
        types: Any,
        args: tuple[Any, ...] = (),
        kwargs: dict[str, Any] | None = None,
    ) -> Any:
        aten = torch.ops.aten
        if func in (aten.div.Tensor, aten.div_.Tensor) and not isinstance(args[1], torch.Tensor):
            product = args[0] * torch.tensor(1 / args[1], dtype=args[0].dtype)
            return args[0].copy_(product) if func is aten.div_.Tensor else product
        return func(*args, **(kwargs or {}))


@pytest.fixture
def cuda_division() -> Callable[[], CudaDivision]:
    """Contexts in which numbers are divided by as on a GPU."""
    return CudaDivision


@pytest.fixture
def largest_result() -> Callable[[Callable[[], object]], int]:
    """Runs a computation; elements of the largest tensor that any operation in it returned."""

    def run(call: Callable[[], object]) -> int:
        with _Largest() as seen:
            call()
        return seen.elements

    return run
