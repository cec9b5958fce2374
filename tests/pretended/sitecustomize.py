"""A machine that is not there, in every Python that starts with this folder on its path.

TEMPER_PRETENDS says what is pretended: "amx", that the processor has it, as torch is asked; "gpus",
that what Ray counts as GPUs are processors, so that vLLM's ranks that Ray places run on them.
"""

import importlib.abc
import importlib.machinery
import importlib.util
import os
import sys
from collections.abc import Callable, Sequence
from types import MappingProxyType, ModuleType


def with_amx(torch_cpu: ModuleType) -> None:
    found = torch_cpu.get_capabilities
    amx = {"amx_tile": True, "amx_bf16": True}
    torch_cpu.get_capabilities = lambda: MappingProxyType({**found(), **amx})


def processors_as_gpus(platform: ModuleType) -> None:
    platform.CpuPlatform.ray_device_key = "GPU"


class Pretended(importlib.abc.MetaPathFinder):
    """Waits for the import of one module: a Python that never does it pays nothing."""

    def __init__(self, name: str, change: Callable[[ModuleType], None]) -> None:
        self._name, self._change = name, change

    def find_spec(
        self, name: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> importlib.machinery.ModuleSpec | None:
        if name != self._name:
            return None
        sys.meta_path.remove(self)
        spec = importlib.util.find_spec(name)
        assert spec is not None
        assert spec.loader is not None
        execute = spec.loader.exec_module

        def exec_module(module: ModuleType) -> None:
            execute(module)
            self._change(module)

        spec.loader.exec_module = exec_module
        return spec


MACHINES = {"amx": ("torch.cpu", with_amx), "gpus": ("vllm.platforms.cpu", processors_as_gpus)}
sys.meta_path.insert(0, Pretended(*MACHINES[os.environ["TEMPER_PRETENDS"]]))
