"""vLLM's layer-wise reload, in one go or in several: what it leaves is what it leaves of a
checkpoint, whatever the device and however many ranks.
"""

import contextlib
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from vllm.model_executor.layers.vocab_parallel_embedding import (
    ParallelLMHead,
    VocabParallelEmbedding,
)
from vllm.model_executor.model_loader.reload import (
    finalize_layerwise_reload,
    initialize_layerwise_reload,
)
from vllm.model_executor.model_loader.reload.layerwise import (
    _place_kernel_tensors,
    get_layerwise_info,
)
from vllm.platforms import current_platform

from rollout.receive_cpu import CpuReload
from rollout.receive_segments import Refused, check_known


class Reload:
    """One reload of a model; the model is unusable until `end`."""

    def __init__(self, model: Any, config: Any) -> None:
        """Take the kernels' tensors away from the layers; `config` is vLLM's of the model."""
        abandon_reload(model)
        self._model, self._config = model, config
        self._cpu = contextlib.ExitStack()
        if current_platform.is_cpu():
            self._cpu.enter_context(CpuReload(model))
        initialize_layerwise_reload(model)

    def load(self, tensors: Mapping[str, torch.Tensor]) -> None:
        """Load these: at once where they complete a module, at the end where others are to come."""
        self._model.load_weights(iter(tensors.items()))

    def end(self) -> None:
        """All have been loaded."""
        finalize_layerwise_reload(self._model, self._config)
        self._cpu.close()
        if getattr(self._config.hf_text_config, "tie_word_embeddings", False):
            tie_head(self._model)


class LayersReload:
    """A reload layer by layer, from files that are written again as soon as a layer is loaded."""

    def __init__(self, model: Any, config: Any, shapes: Mapping[str, Sequence[int]]) -> None:
        """Begin; `shapes` are those of all tensors that have to come."""
        self._model, self._reload = model, Reload(model, config)
        self._shapes, self._loaded = shapes, set[str]()

    def load(self, tensors: Mapping[str, torch.Tensor]) -> None:
        """Load one layer. Raises Refused if it has a tensor that does not belong to the model."""
        check_known(tensors, self._shapes)
        self._reload.load(tensors)
        keep_waiting(self._model, tensors)
        self._loaded |= tensors.keys()

    def end(self) -> None:
        """That was the last one. Raises Refused if tensors are missing."""
        if missing := sorted(self._shapes.keys() - self._loaded):
            raise Refused(f"missing tensor {missing[0]} ({len(missing)} in all)")
        self._reload.end()


def keep_waiting(model: torch.nn.Module, tensors: Mapping[str, torch.Tensor]) -> None:
    """Copy those of `tensors` that modules keep until the rest of them comes."""
    passing = {_storage(tensor) for tensor in tensors.values()}
    for module in model.modules():
        for _, call in get_layerwise_info(module).loaded_weights:
            for name, value in call.arguments.items():
                if isinstance(value, torch.Tensor) and _storage(value) in passing:
                    call.arguments[name] = value.clone()


def _storage(tensor: torch.Tensor) -> int:
    return 0 if tensor.is_meta else tensor.untyped_storage().data_ptr()


def abandon_reload(model: torch.nn.Module) -> None:
    """Put the tensors of the kernels back into layers that a failed reload has left without."""
    for layer in model.modules():
        info = get_layerwise_info(layer)
        if info.can_load() and info.kernel_tensors is not None:
            _place_kernel_tensors(layer, info)
            info.reset()


def tie_head(model: torch.nn.Module) -> None:
    """Make the head the embedding again: the layer-wise reload parts them and fills only one."""
    layers = [m for m in model.modules() if isinstance(m, VocabParallelEmbedding)]
    (embedding,) = (m for m in layers if not isinstance(m, ParallelLMHead))
    for head in layers:
        if isinstance(head, ParallelLMHead):
            head.tie_weights(embedding)
            head.quant_method.process_weights_after_loading(head)
