"""torch believes that there is AMX, in every Python that starts with this folder on its path."""

import importlib.abc
import importlib.machinery
import importlib.util
import sys
from collections.abc import Sequence
from types import MappingProxyType, ModuleType


class AmxInTorch(importlib.abc.MetaPathFinder):
    """Waits for the import of `torch.cpu`: a Python without torch pays nothing."""

    def find_spec(
        self, name: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> importlib.machinery.ModuleSpec | None:
        if name != "torch.cpu":
            return None
        sys.meta_path.remove(self)
        spec = importlib.util.find_spec(name)
        assert spec is not None
        assert spec.loader is not None
        execute = spec.loader.exec_module

        def exec_module(module: ModuleType) -> None:
            execute(module)
            found = module.get_capabilities
            amx = {"amx_tile": True, "amx_bf16": True}
            module.get_capabilities = lambda: MappingProxyType({**found(), **amx})

        spec.loader.exec_module = exec_module
        return spec


sys.meta_path.insert(0, AmxInTorch())
