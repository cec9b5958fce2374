"""Routed experts: every token through its chosen SwiGLU experts, weighted and summed (spec 1.4).

Shapes: T tokens, K experts per token, E experts, D hidden, I intermediate, R = T * K rows sorted
by expert.
"""

from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor
from torch.nn import functional

GROUPED_MM = (torch.float32, torch.bfloat16, torch.float16)


def naive_routed_experts(
    x: Float[Tensor, "T D"],
    gate_up: Float[Tensor, "E twoI D"],
    down: Float[Tensor, "E D I"],
    chosen: Int[Tensor, "T K"],
    weights: Float[Tensor, "T K"],
) -> Float[Tensor, "T D"]:
    """The specification: one expert at a time. Same contract as `routed_experts`."""
    out = torch.zeros_like(x)
    for expert in range(gate_up.shape[0]):
        token, place = torch.where(chosen == expert)
        gate, up = (x[token] @ gate_up[expert].T).chunk(2, dim=-1)
        y = (functional.silu(gate) * up) @ down[expert].T
        out = out.index_add(0, token, y * weights[token, place, None].to(x.dtype))
    return out


def _grouped_mm_takes(x: Tensor, weight: Tensor) -> bool:
    """torch's grouped product wants rows that begin at multiples of 16 bytes, and no fp64.

    On CUDA it refuses a sum over no rows: an expert-parallel shard may get none.
    """
    sizes = (*weight.shape[1:], weight.storage_offset())
    aligned = all(size * weight.itemsize % 16 == 0 for size in sizes)
    return len(x) > 0 and aligned and weight.dtype in GROUPED_MM


class _GroupedLinear(torch.autograd.Function):
    """Rows sorted by expert, each block times its own matrix: x[e] @ weight[e].T.

    `ends` [E], int32, are the rows where the experts' blocks end. They stay on the device: nothing
    here waits for them.
    """

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, ends: Tensor) -> Tensor:
        ctx.save_for_backward(x, weight, ends)
        return functional.grouped_mm(x, weight.mT, offs=ends)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        x, weight, ends = ctx.saved_tensors
        dout = grads[0].contiguous()
        dx = functional.grouped_mm(dout, weight, offs=ends)
        return dx, functional.grouped_mm(dout.T, x, offs=ends), None


class _LoopedLinear(torch.autograd.Function):
    """The same for sizes and precisions that the grouped product does not take."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, ends: Tensor) -> Tensor:
        ctx.save_for_backward(x, weight)
        ctx.counts = counts = ends.diff(prepend=ends.new_zeros(1)).tolist()
        out = x.new_empty(x.shape[0], weight.shape[1])
        for rows, target, matrix in zip(x.split(counts), out.split(counts), weight, strict=True):
            torch.mm(rows, matrix.T, out=target)
        return out

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        x, weight = ctx.saved_tensors
        dout = grads[0].contiguous()
        dx, dweight = torch.empty_like(x), torch.empty_like(weight)
        blocks = zip(x.split(ctx.counts), dout.split(ctx.counts), dx.split(ctx.counts), strict=True)
        for expert, (rows, drows, target) in enumerate(blocks):
            torch.mm(drows, weight[expert], out=target)
            torch.mm(drows.T, rows, out=dweight[expert])
        return dx, dweight, None


class _Dispatch(torch.autograd.Function):
    """Tokens [T, D] -> rows [R, D] sorted by expert; backward sums K rows without atomic adds."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, order: Tensor, inverse: Tensor, per_token: int) -> Tensor:
        ctx.save_for_backward(inverse)
        ctx.shape = (len(x), per_token, x.shape[1])
        return x.index_select(0, order // per_token)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        (inverse,) = ctx.saved_tensors
        return grads[0].index_select(0, inverse).view(ctx.shape).sum(1), None, None, None


class _Combine(torch.autograd.Function):
    """Rows [R, D] back in token order, weighted [T, K] and summed -> [T, D]."""

    @staticmethod
    def forward(ctx: Any, rows: Tensor, weights: Tensor, order: Tensor, inverse: Tensor) -> Tensor:
        ctx.save_for_backward(rows, weights, order, inverse)
        mine = rows.index_select(0, inverse).view(*weights.shape, rows.shape[-1])
        return (weights[:, None, :] @ mine)[:, 0]

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        rows, weights, order, inverse = ctx.saved_tensors
        spread = grads[0].index_select(0, order // weights.shape[1])
        dweights = torch.linalg.vecdot(spread, rows)[inverse].view_as(weights)
        return spread.mul_(weights.flatten()[order, None]), dweights, None, None


def _grouped_linear(x: Tensor, weight: Tensor, ends: Tensor) -> Tensor:
    grouped = _grouped_mm_takes(x, weight)
    return (_GroupedLinear if grouped else _LoopedLinear).apply(x, weight, ends)


def routed_experts(
    x: Float[Tensor, "T D"],
    gate_up: Float[Tensor, "E twoI D"],
    down: Float[Tensor, "E D I"],
    chosen: Int[Tensor, "T K"],
    weights: Float[Tensor, "T K"],
) -> Float[Tensor, "T D"]:
    """sum_k weights[t, k] * Expert_chosen[t, k](x[t]); `gate_up` holds gate rows, then up rows."""
    # The sort tells the blocks' ends as well: counting would make a GPU's host wait.
    by_expert, order = chosen.flatten().sort(stable=True)
    every = torch.arange(gate_up.shape[0], device=x.device, dtype=by_expert.dtype)
    ends = torch.searchsorted(by_expert, every, right=True, out_int32=True)
    inverse = torch.empty_like(order).scatter_(0, order, torch.arange(len(order), device=x.device))
    rows = _Dispatch.apply(x, order, inverse, chosen.shape[1])
    gate, up = _grouped_linear(rows, gate_up, ends).chunk(2, dim=-1)
    rows = _grouped_linear(functional.silu(gate) * up, down, ends)
    return _Combine.apply(rows, weights.to(x.dtype), order, inverse)
