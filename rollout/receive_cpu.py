"""What vLLM 0.32 gets wrong on CPU, and nothing but the log-probs would say; and what it lacks."""

from typing import Any

import torch
from vllm.distributed.aux_output_connector.connector import AuxOutputSchedulerConnector
from vllm.model_executor.layers.attention.mla_attention import MLAAttention
from vllm.model_executor.layers.fused_moe.routed_experts import RoutedExperts
from vllm.model_executor.layers.rotary_embedding.base import RotaryEmbedding
from vllm.model_executor.model_loader.reload.layerwise import get_layerwise_info
from vllm.v1.core.sched.scheduler import Scheduler


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


class RoutingScheduler(Scheduler):
    """vLLM's, asking for the experts of every token, as it does for Model Runner V2 alone."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        """With its arguments."""
        super().__init__(*args, **kwargs)
        self.aux_output_connector = AuxOutputSchedulerConnector()
