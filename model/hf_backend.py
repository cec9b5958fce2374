"""What transformers calls in place of its own attention and experts, and what stays in fp32.

`model.causal_lm` registers the two functions; this file does not know transformers.

Shapes: T packed tokens, D hidden, N query heads, G key heads, H head size, W value size, K experts
per token.
"""

from dataclasses import dataclass
from functools import cache
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn
from torch.nn.utils.stateless import _reparametrize_module

from kernels.attention import causal_attention
from kernels.experts import routed_experts

NARROW = (torch.bfloat16, torch.float16)
# Arguments that some networks give their attention and that change its result.
ATTENTION_CHANGES = ("s_aux", "softcap", "position_bias")


@dataclass(frozen=True, slots=True)
class Packing:
    """What every attention layer of one forward pass is told, and where it leaves its maxima."""

    lengths: tuple[int, ...]
    max_logits: dict[int, Float[Tensor, " N"]]  # by layer; a recomputed layer writes the same again


def packed_attention(
    module: Any,
    query: Float[Tensor, "1 N T H"],
    key: Float[Tensor, "1 G T H"],
    value: Float[Tensor, "1 G T W"],
    attention_mask: Tensor | None,
    **given: Any,
) -> tuple[Float[Tensor, "1 T N W"], None]:
    """Attention inside each packed sequence, with the signature of transformers' interface.

    On the meta device shapes only. Raises NotImplementedError for what would change the result.
    """
    packing: Packing = given["temper_packing"]
    changes = [name for name in ATTENTION_CHANGES if given.get(name) is not None]
    if attention_mask is not None:
        changes.append("a mask of its own")
    if (window := given.get("sliding_window")) is not None and max(packing.lengths) > window:
        changes.append(f"a sliding window of {window} tokens")
    if changes:
        raise NotImplementedError(f"attention with {' and '.join(changes)}")
    q, k, v = (x[0].transpose(0, 1) for x in (query, key, value))
    if (shared := q.shape[1] // k.shape[1]) > 1:
        k, v = (x.repeat_interleave(shared, dim=1) for x in (k, v))
    if query.is_meta:
        packing.max_logits[module.layer_idx] = query.new_empty(q.shape[1])
        return torch.empty_like(v)[None], None
    scale = given.get("scaling") or q.shape[-1] ** -0.5
    # Autocast would compute the logits in the narrow precision.
    with torch.autocast(query.device.type, enabled=False):
        out, largest = causal_attention(q.to(v.dtype), k.to(v.dtype), v, packing.lengths, scale)
    packing.max_logits[module.layer_idx] = largest
    return out[None], None


def fused_experts(
    module: Any,
    hidden: Float[Tensor, "T D"],
    chosen: Int[Tensor, "T K"],
    weights: Float[Tensor, "T K"],
) -> Float[Tensor, "T D"]:
    """Routed experts in the compute precision, with the signature of transformers' interface."""
    if hidden.is_meta:
        return torch.empty_like(hidden)
    x = _in_compute_dtype(hidden)
    gate_up, down = module.gate_up_proj.to(x.dtype), module.down_proj.to(x.dtype)
    # Autocast would widen their sums on a GPU.
    with torch.autocast(x.device.type, enabled=False):
        return routed_experts(x, gate_up, down, chosen, weights)


def _in_compute_dtype(x: Tensor) -> Tensor:
    """What autocast would make of it."""
    device = x.device.type
    if x.is_meta or not torch.is_autocast_enabled(device):
        return x
    return x.to(torch.get_autocast_dtype(device))


class _FullPrecision(nn.Module):
    """Mixed into a module: fp32 whatever the activations and its weights are."""

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        """The module's own forward pass on widened inputs, by widened weights."""
        weights = {name: widened(weight) for name, weight in self.named_parameters()}
        device = "cpu" if args[0].is_meta else args[0].device.type
        # Not by `functional_call`: the module's hooks have run, and gathered what it replaces.
        with torch.autocast(device, enabled=False), _reparametrize_module(self, weights):
            return super().forward(
                *map(widened, args), **{name: widened(x) for name, x in kwargs.items()}
            )


def widened(x: Any) -> Any:
    """A narrow tensor in fp32; anything else as it is."""
    return x.to(torch.float32) if isinstance(x, Tensor) and x.dtype in NARROW else x


class _NarrowResult(nn.Module):
    """Mixed into a norm: a wide gain would widen what every projection narrows for itself."""

    def forward(self, *args: Any, **kwargs: Any) -> Tensor:
        """The module's own forward pass, its result in the compute precision."""
        return _in_compute_dtype(super().forward(*args, **kwargs))


@cache
def _mixed(mixin: Any, kind: Any) -> Any:
    return type(kind.__name__, (mixin, kind), {})


def set_precisions_(network: nn.Module) -> None:
    """Routers and rotary embeddings compute in fp32: a rounded logit would choose other experts.

    Modules change their class, not their forward attribute: a copy must not call the original.
    """
    for module in network.modules():
        kind: Any = type(module)
        if "Router" in kind.__name__ or is_rotary(module):
            module.__class__ = _mixed(_FullPrecision, kind)
        elif kind.__name__.endswith("Norm"):
            module.__class__ = _mixed(_NarrowResult, kind)


def is_rotary(module: nn.Module) -> bool:
    """Whether its buffers follow from the config alone."""
    return "RotaryEmbedding" in type(module).__name__
