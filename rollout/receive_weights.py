"""The receiving end of weight updates, inside vLLM's core process: load in place, or go back.

The process that owns the engine has verified the files (`rollout/receive_segments.py`) while
requests ran; here generation is paused. On CPU tensors go straight into what the kernels read
(`rollout/receive_plan.py`) where the model allows; else vLLM reloads layer by layer.
"""

import logging
import multiprocessing
import os
import signal
import threading
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from vllm.distributed.weight_transfer.base import (
    WeightTransferEngine,
    WeightTransferInitInfo,
    WeightTransferUpdateInfo,
)
from vllm.distributed.weight_transfer.factory import WeightTransferEngineFactory
from vllm.platforms import current_platform

from rollout.receive_cpu import fix_rotary_cpu
from rollout.receive_layers import LayersReload, Reload
from rollout.receive_plan import DirectPlan, NoPlan
from rollout.receive_segments import (
    Announced,
    Mappings,
    Refused,
    check_complete,
    read_update,
    verify,
)

BACKEND = "temper"

log = logging.getLogger(__name__)


@dataclass
class ReceiverInit(WeightTransferInitInfo):
    """Nothing to agree on beforehand: every update says where its files are."""


@dataclass
class ReceiverUpdate(WeightTransferUpdateInfo):
    """One announced update, or one layer of it, whose files are verified."""

    version: int
    files: list[str]
    digest: str
    by_layer: bool = False
    first: bool = True
    last: bool = True


class WeightReceiver(WeightTransferEngine[ReceiverInit, ReceiverUpdate]):
    """Loads announced files into the running model; vLLM drives it while generation is paused."""

    init_info_cls = ReceiverInit
    update_info_cls = ReceiverUpdate
    supports_draft_weight_update = False

    def init_transfer_engine(self, init_info: ReceiverInit) -> None:
        """Look at the checkpoint that the engine started from, and plan how to load its like."""
        self._checkpoint = Path(self.model_config.model)
        self._shapes = checkpoint_shapes(self._checkpoint)
        self._mappings = Mappings()
        self._current: Announced | None = None  # None: the checkpoint
        self._layers: LayersReload | None = None  # between the first and the last one
        self._plan: DirectPlan | None = None
        dtype: Any = self.model_config.dtype
        if can_be_direct(self.vllm_config):
            try:
                self._plan = DirectPlan(self.model, dtype, self._shapes)
            except NoPlan as reason:
                log.info("weights are reloaded layer by layer: %s", reason)

    def start_weight_update(self) -> None:
        """Nothing: a refused update must leave the model alone, so all waits for the files."""

    def receive_weights(self, update_info: ReceiverUpdate) -> None:
        """Load an update, wholly or not at all, or a layer of one.

        Raises Refused if the files are not those announced, or if loading failed and the weights
        from before are loaded again; RuntimeError if they could not be: the model is unusable then.
        Whatever is raised of a layer, it is unusable.
        """
        update = Announced(
            version=update_info.version, files=update_info.files, digest=update_info.digest
        )
        if update_info.by_layer:
            self._receive_layer(update, first=update_info.first, last=update_info.last)
        else:
            self._receive_whole(update)

    def _receive_layer(self, update: Announced, *, first: bool, last: bool) -> None:
        if first:
            self._layers = LayersReload(self.model, self.model_config, self._shapes)
        if self._layers is None:
            raise RuntimeError("the first layer has not come")
        self._mappings.trim()
        self._layers.load(read_update(update, self._mappings))
        self._check_not_written(update)
        self._mappings.trim()
        if last:
            self._layers.end()
            self._layers = None

    def _receive_whole(self, update: Announced) -> None:
        tensors = read_update(update, self._mappings)
        check_complete(tensors, self._shapes)
        try:
            self._load(tensors)
            self._check_not_written(update)
        except BaseException as error:
            self._go_back(error)
            raise Refused(
                f"version {update.version} could not be loaded ({error!r}): "
                "the weights from before it are loaded again"
            ) from error
        held = self._current.files if self._current is not None else ()
        self._mappings.keep([*update.files, *held])
        self._current = update

    def _check_not_written(self, update: Announced) -> None:
        """Raise Refused if its files were written again while they were loaded.

        They may be removed by now, with whoever made them: what is mapped of them stays.
        """
        read_update(update, self._mappings, again=True)

    def finish_weight_update(self) -> None:
        """Nothing: `receive_weights` has finished the update."""

    def shutdown(self) -> None:
        """Let go of all files."""
        if hasattr(self, "_mappings"):  # not if the engine ends while it starts
            self._mappings.keep(())

    def _go_back(self, error: BaseException) -> None:
        """Load what was served before, whose files are mapped, and not written again until the
        next version is whole.
        """
        try:
            if self._current is None:
                tensors = checkpoint_tensors(self._checkpoint)
            else:
                verify(self._current, self._mappings, again=True)
                tensors = read_update(self._current, self._mappings, again=True)
            self._load(tensors)
        except Exception as second:
            raise RuntimeError(
                f"loading failed half-way ({error!r}), and going back too: {second!r}"
            ) from error

    def _load(self, tensors: Mapping[str, torch.Tensor]) -> None:
        if self._plan is not None:
            self._plan.load(tensors)
            return
        reload = Reload(self.model, self.model_config)
        reload.load(tensors)
        reload.end()


def can_be_direct(config: Any) -> bool:
    """Whether the kernels' own copies of weights can be replaced behind the model's back.

    Compiled graphs hold them; of several ranks each takes its own part of every tensor; and other
    architectures may change tensors while they load them.
    """
    return (
        current_platform.is_cpu()
        and config.model_config.architecture == "DeepseekV3ForCausalLM"
        and config.model_config.enforce_eager
        and config.parallel_config.world_size == 1
    )


def checkpoint_shapes(folder: Path) -> dict[str, list[int]]:
    """Name -> shape of every tensor in a checkpoint folder, from the files' headers."""
    shapes: dict[str, list[int]] = {}
    for file in sorted(folder.glob("*.safetensors")):
        with safe_open(file, framework="pt") as handle:
            for name in list(handle.keys()):
                shapes[name] = handle.get_slice(name).get_shape()
    return shapes


def checkpoint_tensors(folder: Path) -> dict[str, torch.Tensor]:
    """Every tensor in a checkpoint folder, mapped."""
    tensors: dict[str, torch.Tensor] = {}
    for file in sorted(folder.glob("*.safetensors")):
        with safe_open(file, framework="pt") as handle:
            tensors |= {name: handle.get_tensor(name) for name in list(handle.keys())}
    return tensors


def end_with_parent() -> None:
    """In an engine's core: end when the process that owns the engine is killed.

    vLLM's core ends only when it is told to, and one that nobody tells keeps memory and processor.
    """
    parent = multiprocessing.parent_process()
    if parent is None or not multiprocessing.current_process().name.startswith("EngineCore"):
        return

    def wait() -> None:
        parent.join()
        os.kill(os.getpid(), signal.SIGKILL)

    threading.Thread(target=wait, name="end-with-parent", daemon=True).start()


def register() -> None:
    """vLLM calls this in each of its processes (entry point `vllm.general_plugins`)."""
    if BACKEND in WeightTransferEngineFactory._registry:
        return
    WeightTransferEngineFactory.register_engine(BACKEND, WeightReceiver)
    end_with_parent()
    if current_platform.is_cpu():
        fix_rotary_cpu()
