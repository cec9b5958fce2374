"""Root-mean-square normalisation of the last dimension.

Shapes: T rows, D size.
"""

from collections.abc import Iterator
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

CPU_CHUNK = 1 << 17  # elements handled together on CPU


def naive_rms_norm(
    x: Float[Tensor, "T D"], gain: Float[Tensor, " D"], eps: float
) -> Float[Tensor, "T D"]:
    """The specification. Same contract as `rms_norm`."""
    precise = x.to(torch.promote_types(x.dtype, torch.float32))
    return (precise * (precise.square().mean(-1, keepdim=True) + eps).rsqrt() * gain).to(x.dtype)


def _chunks(x: Tensor) -> Iterator[slice]:
    """Slices over T: on CPU a chunk's passes find it in cache, on GPU there is one chunk."""
    size = max(1, CPU_CHUNK // x.shape[-1]) if x.device.type == "cpu" else max(1, len(x))
    return (slice(begin, begin + size) for begin in range(0, len(x), size))


class _RMSNorm(torch.autograd.Function):
    """Keeps the input and one number per row."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, gain: Tensor, eps: float) -> Tensor:
        precise = torch.promote_types(x.dtype, torch.float32)
        out, inverse = torch.empty_like(x), x.new_empty(len(x), 1, dtype=precise)
        for rows in _chunks(x):
            part = x[rows].to(precise, copy=True)
            square = torch.linalg.vecdot(part, part)[:, None]
            inverse[rows] = square.div_(x.shape[-1]).add_(eps).rsqrt_()
            out[rows] = part.mul_(inverse[rows]).mul_(gain)
        ctx.save_for_backward(x, gain, inverse)
        return out

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        # y = x r g with r = 1 / rms:  dg = sum_t r (dy x),  dx = r g dy - x r^3 <g, dy x> / D
        x, gain, inverse = ctx.saved_tensors
        dx, dgain = torch.empty_like(x), torch.zeros_like(gain, dtype=inverse.dtype)
        wide = gain.to(inverse.dtype)
        for rows in _chunks(x):
            part, dy, r = x[rows].to(inverse.dtype), grads[0][rows].to(inverse.dtype), inverse[rows]
            product = dy * part
            dgain += product.mT @ r[:, 0]
            slope = (product @ wide)[:, None] * r.pow(3).div_(-x.shape[-1])
            dx[rows] = torch.mul(dy, wide, out=product).mul_(r).addcmul_(part, slope)
        return dx, dgain.to(gain.dtype), None


def rms_norm(
    x: Float[Tensor, "T D"], gain: Float[Tensor, " D"], eps: float
) -> Float[Tensor, "T D"]:
    """x / sqrt(mean(x^2) + eps) * gain in x's precision; statistics are at least fp32."""
    return _RMSNorm.apply(x, gain, eps)
