"""On CPU: K2's checkpoint tensors straight into what vLLM's kernels read.

vLLM's reload copies every tensor four times and looks each up among all experts. A plan finds
beforehand which tensors every layer is made of; loading then runs each layer's own packing once, on
views of the files where the parts of a layer lie there one after another.
"""

import itertools
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from vllm.model_executor.layers.attention.mla_attention import MLAAttention
from vllm.model_executor.layers.fused_moe.experts.cpu_moe import CPUUnquantizedExperts
from vllm.model_executor.layers.fused_moe.routed_experts import RoutedExperts
from vllm.model_executor.layers.linear import LinearBase, UnquantizedLinearMethod
from vllm.model_executor.layers.vocab_parallel_embedding import (
    ParallelLMHead,
)

STACKED = {
    "gate_up_proj": ("gate_proj", "up_proj"),
    "fused_qkv_a_proj": ("q_a_proj", "kv_a_proj_with_mqa"),
}
DERIVED = ("W_UV", "W_UK_T")


class NoPlan(Exception):
    """The model has parts that no plan is known for."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Step:
    """Some tensors, and what takes them."""

    names: Sequence[str]
    load: Callable[[Sequence[Tensor]], None]


class DirectPlan:
    """Where every tensor of a checkpoint goes in one loaded model."""

    def __init__(
        self, model: nn.Module, dtype: torch.dtype, shapes: Mapping[str, Sequence[int]]
    ) -> None:
        """Plan for checkpoints of these `shapes`; the model computes in `dtype`.

        Raises NoPlan if a tensor or a layer is of a kind that is not known.
        """
        self._dtype = dtype
        self._modules = dict(model.named_modules())
        self._shapes = shapes
        self._attention = {
            id(m.kv_b_proj): m for m in self._modules.values() if isinstance(m, MLAAttention)
        }
        self._seen: set[int] = set()
        self._steps = [
            step for name, module in self._modules.items() for step in self._of(name, module)
        ]
        used = [name for step in self._steps for name in step.names]
        if sorted(used) != sorted(shapes):
            left_over = sorted(set(shapes) ^ set(used))
            raise NoPlan(f"{len(left_over)} tensors have no place, as {left_over[:1]}")
        if left := [n for n, p in model.named_parameters() if id(p) not in self._seen]:
            raise NoPlan(f"nothing fills {left[0]}")

    @torch.no_grad()
    def load(self, tensors: Mapping[str, Tensor]) -> None:
        """Put all tensors in place."""
        for step in self._steps:
            step.load([tensors[name] for name in step.names])

    def _of(self, name: str, module: Any) -> Iterator[Step]:
        """How the tensors of one module, without its children, are loaded."""
        own: dict[str, Any] = {
            key: each
            for key, each in module.named_parameters(recurse=False)
            if id(each) not in self._seen
        }
        self._seen |= {id(each) for each in own.values()}
        if isinstance(module, RoutedExperts):
            yield from self._experts(name, module, own)
            return
        if isinstance(module, MLAAttention):
            # Made of kv_b_proj whenever it is loaded, in place.
            own = {key: each for key, each in own.items() if key not in DERIVED}
        if isinstance(module, ParallelLMHead):
            own.pop("weight", None)
            yield self._head(name, module)
        elif isinstance(module, LinearBase):
            own.pop("weight", None)
            yield self._linear(name, module)
        for key, parameter in own.items():
            if parameter.shape[1:] != tuple(self._shape(f"{name}.{key}")[1:]):
                raise NoPlan(f"{name}.{key} is of another shape")
            yield Step(names=[f"{name}.{key}"], load=rows_of(parameter))

    def _experts(self, name: str, layer: Any, own: Mapping[str, Any]) -> Iterator[Step]:
        """Gate and up of every expert packed together, and down."""
        kernel = layer.quant_method.moe_kernel
        kernel = kernel and kernel.fused_experts
        base = name[: name.rindex(".experts") + len(".experts")]
        count = layer.w13_weight.shape[0]
        if (
            not isinstance(kernel, CPUUnquantizedExperts)
            or kernel._use_zentorch
            or own.keys() != {"w13_weight", "w2_weight"}
            or f"{base}.{count}.gate_proj.weight" in self._shapes
        ):
            raise NoPlan(f"{name} has another kernel")
        for key, parts in (("w13_weight", ("gate", "up")), ("w2_weight", ("down",))):
            names = [f"{base}.{e}.{part}_proj.weight" for e in range(count) for part in parts]
            rows = sum(self._shape(each)[0] for each in names)
            if own[key].shape != (count, rows // count, self._shape(names[0])[1]):
                raise NoPlan(f"{name} is padded")
            target = partial(getattr, layer, key)  # a reload by vLLM replaces it
            yield Step(names=names, load=packed_experts(target, kernel.isa, len(parts)))

    def _head(self, name: str, head: Any) -> Step:
        """The output matrix, with a packed copy."""
        fill = rows_of(head.weight)

        def load(tensors: Sequence[Tensor]) -> None:
            fill(tensors)
            head.quant_method.process_weights_after_loading(head)

        return Step(names=[f"{name}.weight"], load=load)

    def _linear(self, name: str, layer: Any) -> Step:
        """A matrix, or several stacked, packed by the layer's own method."""
        if not isinstance(layer.quant_method, UnquantizedLinearMethod) or layer.bias is not None:
            raise NoPlan(f"{name} is quantised, or has a bias")
        parent, _, leaf = name.rpartition(".")
        parts = [f"{parent}.{part}" for part in STACKED.get(leaf, (leaf,))]
        attention = self._attention.get(id(layer))

        def load(tensors: Sequence[Tensor]) -> None:
            fill_linear(layer, joined([each.to(self._dtype) for each in tensors]))
            if attention is not None:
                attention.process_weights_after_loading(self._dtype)

        return Step(names=[f"{part}.weight" for part in parts], load=load)

    def _shape(self, name: str) -> Sequence[int]:
        if name not in self._shapes:
            raise NoPlan(f"the checkpoint has no {name}")
        return self._shapes[name]


def rows_of(target: Tensor) -> Callable[[Sequence[Tensor]], None]:
    """Fills the first rows of `target`: what lies beyond them is padding."""

    def load(tensors: Sequence[Tensor]) -> None:
        source = joined(tensors)
        target.data[: len(source)].copy_(source)

    return load


def fill_linear(layer: Any, source: Tensor) -> None:
    """Give a linear layer its matrix [out, in]; if the kernel keeps a packed one, only that."""
    packs = layer.weight.numel() == 0
    if packs:
        layer.weight = nn.Parameter(source, requires_grad=False)
    else:
        layer.weight.data.copy_(source)
    layer.quant_method.process_weights_after_loading(layer)


def packed_experts(
    target: Callable[[], Tensor], isa: str, parts: int
) -> Callable[[Sequence[Tensor]], None]:
    """Fills the packed matrices [experts, out, in] of all experts, each from `parts` tensors."""

    def load(tensors: Sequence[Tensor]) -> None:
        packed, start = target().data, 0
        for end in range(parts, len(tensors) + 1, parts):
            if end < len(tensors) and follows(tensors[end - 1], tensors[end]):
                continue
            experts = slice(start // parts, end // parts)
            out = packed[experts]
            source = joined(tensors[start:end]).to(packed.dtype).view(out.shape)
            torch.ops._C.prepack_moe_weight(source, out, isa)
            start = end

    return load


def joined(tensors: Sequence[Tensor]) -> Tensor:
    """The tensors on top of each other: a view where they lie so in memory, else a copy."""
    first = tensors[0]
    if len(tensors) == 1:
        return first
    if not all(follows(one, other) for one, other in itertools.pairwise(tensors)):
        return torch.cat(list(tensors))
    rows = sum(len(each) for each in tensors)
    return first.as_strided((rows, *first.shape[1:]), first.stride())


def follows(one: Tensor, other: Tensor) -> bool:
    """Whether `other` begins where `one` ends, in one block of memory, with rows of one shape."""
    return (
        one.untyped_storage().data_ptr() == other.untyped_storage().data_ptr()
        and one.data_ptr() + one.nbytes == other.data_ptr()
        and one.shape[1:] == other.shape[1:]
        and one.dtype == other.dtype
        and one.is_contiguous()
        and other.is_contiguous()
    )
