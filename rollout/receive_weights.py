"""The receiving end of weight updates, inside vLLM's core process: verify, then load in place.

An update is a list of safetensors files on this host (`model/send_weights.py` writes them). Their
metadata carries `version` and `digests`, a JSON object of one xxh3-128 per tensor; the announced
digest covers them all. vLLM reloads layer by layer what it is given; on CPU that alone is wrong
(see `CpuReload`) and nothing but the log-probs would say so.
"""

import contextlib
import json
import multiprocessing
import os
import signal
import threading
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import torch
import xxhash
from safetensors import SafetensorError, safe_open
from vllm.distributed.weight_transfer.base import (
    WeightTransferEngine,
    WeightTransferInitInfo,
    WeightTransferUpdateInfo,
)
from vllm.distributed.weight_transfer.factory import WeightTransferEngineFactory
from vllm.model_executor.layers.attention.mla_attention import MLAAttention
from vllm.model_executor.layers.fused_moe.routed_experts import RoutedExperts
from vllm.model_executor.layers.rotary_embedding.base import RotaryEmbedding
from vllm.model_executor.layers.vocab_parallel_embedding import (
    ParallelLMHead,
    VocabParallelEmbedding,
)
from vllm.model_executor.model_loader.reload import (
    finalize_layerwise_reload,
    initialize_layerwise_reload,
)
from vllm.model_executor.model_loader.reload.layerwise import get_layerwise_info
from vllm.platforms import current_platform

BACKEND = "temper"
REFUSED = "weight update refused:"  # errors cross the process border as text


class Refused(ValueError):
    """The update is not what was announced; the model has not been touched."""

    def __init__(self, reason: str) -> None:
        """Mark the reason for the other side of the process border."""
        super().__init__(f"{REFUSED} {reason}")


class Update(Protocol):
    """What a sender tells of new weights (`model.send_weights.WeightUpdate` is one)."""

    @property
    def version(self) -> int: ...

    @property
    def files(self) -> list[str]: ...

    @property
    def digest(self) -> str: ...


@dataclass
class ReceiverInit(WeightTransferInitInfo):
    """Nothing to agree on beforehand: every update says where its files are."""


@dataclass
class ReceiverUpdate(WeightTransferUpdateInfo):
    """One announced update."""

    version: int
    files: list[str]
    digest: str


class WeightReceiver(WeightTransferEngine[ReceiverInit, ReceiverUpdate]):
    """Loads announced files into the running model; vLLM drives it while generation is paused."""

    init_info_cls = ReceiverInit
    update_info_cls = ReceiverUpdate
    supports_draft_weight_update = False

    def init_transfer_engine(self, init_info: ReceiverInit) -> None:
        """Remember the names and shapes of the checkpoint that the engine started from."""
        self.shapes = checkpoint_shapes(Path(self.model_config.model))

    def start_weight_update(self) -> None:
        """Nothing: a refused update must leave the model alone, so all waits for verification."""

    def receive_weights(self, update_info: ReceiverUpdate) -> None:
        """Verify every tensor of the update, then load them. Raises Refused before any change."""
        tensors = verified_tensors(update_info, self.shapes)
        model: Any = self.model
        with CpuReload(model) if current_platform.is_cpu() else contextlib.nullcontext():
            initialize_layerwise_reload(model)
            model.load_weights(iter(tensors.items()))
            finalize_layerwise_reload(model, self.model_config)
        if getattr(self.model_config.hf_text_config, "tie_word_embeddings", False):
            tie_head(model)

    def finish_weight_update(self) -> None:
        """Nothing: `receive_weights` has finished the update."""

    def shutdown(self) -> None:
        """Nothing is held between updates."""


def checkpoint_shapes(folder: Path) -> dict[str, list[int]]:
    """Name -> shape of every tensor in a checkpoint folder, from the files' headers."""
    shapes: dict[str, list[int]] = {}
    for file in sorted(folder.glob("*.safetensors")):
        with safe_open(file, framework="pt") as handle:
            for name in list(handle.keys()):
                shapes[name] = handle.get_slice(name).get_shape()
    return shapes


def verified_tensors(
    update: ReceiverUpdate, shapes: dict[str, list[int]]
) -> dict[str, torch.Tensor]:
    """The update's tensors, mapped from its files.

    Raises Refused, naming file or tensor, unless version, digests, names and shapes all agree.
    """
    tensors: dict[str, torch.Tensor] = {}
    digests: dict[str, str] = {}
    for file in update.files:
        try:
            with safe_open(file, framework="pt") as handle:
                metadata = handle.metadata() or {}
                if metadata.get("version") != str(update.version):
                    raise Refused(
                        f"{file} holds version {metadata.get('version')}, not {update.version}"
                    )
                expected = json.loads(metadata["digests"])
                found = {name: handle.get_tensor(name) for name in list(handle.keys())}
        except (OSError, SafetensorError) as error:
            raise Refused(f"{file} cannot be read: {error}") from error
        for name, tensor in found.items():
            if tensor_digest(name, tensor) != expected.get(name):
                raise Refused(f"{file}: the content of {name} does not match its digest")
        tensors |= found
        digests |= expected
    check_complete(tensors, shapes)
    if update_digest(update.version, digests) != update.digest:
        raise Refused(f"the files are not those announced for version {update.version}")
    return tensors


def check_complete(tensors: dict[str, torch.Tensor], shapes: dict[str, list[int]]) -> None:
    """Refuse an update that would leave some old weights in place."""
    if wrong := sorted(tensors.keys() ^ shapes.keys()):
        kind = "missing" if wrong[0] in shapes else "unknown"
        raise Refused(f"{kind} tensor {wrong[0]} ({len(wrong)} names differ)")
    for name, tensor in tensors.items():
        if list(tensor.shape) != shapes[name]:
            raise Refused(f"{name} has shape {list(tensor.shape)}, not {shapes[name]}")


def tensor_digest(name: str, tensor: torch.Tensor) -> str:
    """xxh3-128 over name, dtype, shape and bytes; the same as in `model/send_weights.py`."""
    digest = xxhash.xxh3_128(f"{name} {tensor.dtype} {list(tensor.shape)}".encode())
    digest.update(tensor.contiguous().reshape(-1).view(torch.uint8).numpy().data)
    return digest.hexdigest()


def update_digest(version: int, digests: dict[str, str]) -> str:
    """One digest over a whole update; the same as in `model/send_weights.py`."""
    return xxhash.xxh3_128(json.dumps([version, sorted(digests.items())]).encode()).hexdigest()


class CpuReload:
    """Around a layer-wise reload on CPU: the two steps that vLLM 0.32 leaves out there.

    1. With the AMX back end MLA drops the raw weight of kv_b_proj once it is packed, so that the
       reload has nothing of the right shape to copy into. It is given memory again; attention
       packs it at the end of the reload and drops it itself.
    2. Routed experts are left in checkpoint layout under a kernel that reads its packed layout.
       The packing of the first load is repeated by the expert kernel's own method, which knows
       its instruction set (AMX or plain vectors).
    """

    def __init__(self, model: torch.nn.Module) -> None:
        """Find the layers that need it."""
        self._kv_b: list[Any] = [
            m.kv_b_proj for m in model.modules() if isinstance(m, MLAAttention)
        ]
        self._experts = [m for m in model.modules() if isinstance(m, RoutedExperts)]

    def __enter__(self) -> None:
        """Give every dropped kv_b_proj memory of its checkpoint shape."""
        for layer in self._kv_b:
            if layer.weight.numel() == 0:
                raw = get_layerwise_info(layer).restore_metadata[0]["weight"]
                data = torch.empty(raw.shape, dtype=raw.dtype)
                layer.weight = torch.nn.Parameter(data, requires_grad=False)

    def __exit__(self, error: type[BaseException] | None, *rest: object) -> None:
        """Pack the experts; after an error the engine is lost anyway."""
        if error is None:
            self.pack_experts()

    def pack_experts(self) -> None:
        """From checkpoint layout into the layout of the expert kernel."""
        for layer in self._experts:
            method: Any = layer.quant_method
            method.moe_kernel.fused_experts.process_weights_after_loading(layer)


def tie_head(model: torch.nn.Module) -> None:
    """Make the head the embedding again: the layer-wise reload parts them and fills only one."""
    layers = [m for m in model.modules() if isinstance(m, VocabParallelEmbedding)]
    (embedding,) = (m for m in layers if not isinstance(m, ParallelLMHead))
    for head in layers:
        if isinstance(head, ParallelLMHead):
            head.tie_weights(embedding)
            head.quant_method.process_weights_after_loading(head)


def fix_rotary_cpu() -> None:
    """Send 3-D queries past vLLM 0.32's CPU rotary kernel, which reads their strides wrongly.

    The kernel takes the token stride from `stride(-2)`: right for [tokens, heads * dim], wrong
    for [tokens, heads, dim]. YaRN-scaled rotary embeddings never reach it.
    """
    packaged = RotaryEmbedding.forward_cpu

    def forward_cpu(
        self: RotaryEmbedding,
        positions: torch.Tensor,
        query: torch.Tensor,
        key: torch.Tensor | None = None,
    ) -> tuple[torch.Tensor, torch.Tensor | None]:
        if query.dim() == 2 and (key is None or key.dim() == 2):
            return packaged(self, positions, query, key)
        return self.forward_native(positions, query, key)

    RotaryEmbedding.forward_cpu = forward_cpu  # type: ignore[method-assign]


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
