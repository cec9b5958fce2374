"""INT4 weights with one scale for 32 neighbours along the input dimension (spec 7).

    s = bf16(max(max|w| / 7, 1e-5));  q = clamp(round(w / s), -7, 7);  w_hat = q s

The scale is rounded before it divides, so the q that is stored and the s that is stored belong to
each other. q has 3 bits and s has 8, so q s is exact in fp32 and w_hat takes one rounding, to the
precision asked for: in bf16 it is what an engine's bf16 multiplication gives, bit for bit.

Quantising w_hat again gives the same q and s if w_hat is in fp32 and a q of its group is +-7, as
`quantise` leaves it. In bf16 that holds if the weights quantised first were bf16: other scales are
moved by the rounding of 7 s, one in nine of them, by their last bit.

Shapes: n rows (any number of dimensions), m inputs.
"""

from collections.abc import Iterator
from typing import Any, NamedTuple

import torch
from jaxtyping import BFloat16, Float, Float32, Int32
from torch import Tensor

GROUP = 32
LARGEST = 7
SMALLEST_SCALE = 1e-5
PER_WORD = 8  # values of an int32
CPU_CHUNK = 1 << 17  # elements handled together: their passes stay in cache
DEVICE_CHUNK = 1 << 26


class Int4(NamedTuple):
    """A packed weight. Bits 4 i .. 4 i + 3 of a word hold q + 8 of its i-th value."""

    packed: Int32[Tensor, "*n words"]  # words = m / 8
    scale: BFloat16[Tensor, "*n groups"]  # groups = m / 32


def naive_quantise(weight: Float[Tensor, "*n m"], group: int = GROUP) -> Int4:
    """The specification: one group at a time. Same contract as `quantise`."""
    packed, scales = [], []
    for part in weight.reshape(-1, group):
        scale = max(float(part.abs().max()) / LARGEST, SMALLEST_SCALE)
        scales.append(torch.tensor(scale, dtype=torch.bfloat16))
        values = [
            min(max(round(float(value) / float(scales[-1])), -LARGEST), LARGEST) for value in part
        ]
        for begin in range(0, group, PER_WORD):
            word = sum((q + 8) << 4 * i for i, q in enumerate(values[begin : begin + PER_WORD]))
            packed.append(word - (1 << 32) if word >= 1 << 31 else word)
    rows = weight.shape[:-1]
    return Int4(
        torch.tensor(packed, dtype=torch.int32).view(*rows, -1), torch.stack(scales).view(*rows, -1)
    )


def naive_dequantise(weight: Int4, dtype: torch.dtype) -> Float[Tensor, "*n m"]:
    """The specification: one value at a time. Same contract as `dequantise`."""
    words, scales = weight.packed.flatten().tolist(), weight.scale.flatten().tolist()
    per_scale = PER_WORD * len(words) // len(scales)
    values = [(((word & 0xFFFFFFFF) >> 4 * i) & 15) - 8 for word in words for i in range(PER_WORD)]
    products = [q * scales[place // per_scale] for place, q in enumerate(values)]
    return torch.tensor(products, dtype=dtype).view(*weight.packed.shape[:-1], -1)


def quantise(weight: Float[Tensor, "*n m"], group: int = GROUP) -> Int4:
    """q and s of the formula above, packed. ValueError unless `group` divides m."""
    grouped = _grouped(weight, group)
    packed = torch.empty(
        *grouped.shape[:-1], group // PER_WORD, dtype=torch.int32, device=weight.device
    )
    scale = torch.empty(grouped.shape[:-1], dtype=torch.bfloat16, device=weight.device)
    for part in _chunks(grouped):
        levels, scale[part] = _levels(grouped[part])
        packed[part] = _pack(levels)
    rows = weight.shape[:-1]
    return Int4(packed.view(*rows, -1), scale.view(*rows, -1))


def dequantise(weight: Int4, dtype: torch.dtype) -> Float[Tensor, "*n m"]:
    """w_hat in `dtype`. ValueError if the number of scales does not fit the number of words."""
    words, groups = weight.packed.shape[-1], weight.scale.shape[-1]
    if weight.packed.shape[:-1] != weight.scale.shape[:-1] or words % groups:
        raise ValueError(
            f"packed {list(weight.packed.shape)} and scale {list(weight.scale.shape)} do not fit"
        )
    packed = weight.packed.reshape(-1, words // groups)
    scale = weight.scale.reshape(-1, 1)
    out = torch.empty(
        *packed.shape[:-1], packed.shape[-1] * PER_WORD, dtype=dtype, device=packed.device
    )
    for part in _chunks(out):
        out[part] = _unpack(packed[part]).mul_(scale[part])
    return out.view(*weight.packed.shape[:-1], -1)


def fake_quantise(
    weight: Float[Tensor, "*n m"], group: int = GROUP, dtype: torch.dtype | None = None
) -> Float[Tensor, "*n m"]:
    """w_hat in `dtype`, the weight's own if None, without packing; dL/dw = dL/dw_hat.

    Equals `dequantise(quantise(weight, group), dtype)` in every bit. ValueError unless `group`
    divides m.
    """
    return _FakeQuantise.apply(weight, group, dtype or weight.dtype)


class _FakeQuantise(torch.autograd.Function):
    """The straight-through estimator: backward does not see the rounding."""

    @staticmethod
    def forward(ctx: Any, weight: Tensor, group: int, dtype: torch.dtype) -> Tensor:
        ctx.dtype = weight.dtype
        grouped = _grouped(weight, group)
        out = torch.empty(grouped.shape, dtype=dtype, device=weight.device)
        for part in _chunks(grouped):
            levels, scale = _levels(grouped[part])
            out[part] = levels.mul_(scale[:, None])
        return out.view(weight.shape)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        return grads[0].to(ctx.dtype), None, None


def _grouped(weight: Tensor, group: int) -> Float[Tensor, "groups group"]:
    """One group a row."""
    if group % PER_WORD or weight.shape[-1] % group:
        raise ValueError(
            f"INT4 groups of {group} do not fit {weight.shape[-1]} inputs: the last dimension of "
            f"{list(weight.shape)} must be a multiple of the group, the group of {PER_WORD}"
        )
    return weight.detach().reshape(-1, group)


def _chunks(rows: Tensor) -> Iterator[slice]:
    """Slices over rows, so that temporaries stay small."""
    elements = CPU_CHUNK if rows.device.type == "cpu" else DEVICE_CHUNK
    size = max(1, elements // rows.shape[-1])
    return (slice(begin, begin + size) for begin in range(0, len(rows), size))


def _levels(grouped: Tensor) -> tuple[Float[Tensor, "groups group"], BFloat16[Tensor, " groups"]]:
    """q, at least fp32, and s: the one place where a weight is rounded."""
    precise = grouped.to(torch.promote_types(grouped.dtype, torch.float32))
    largest = precise.abs().amax(-1)
    # A tensor: CUDA multiplies with the reciprocal of a number, which gives other scales.
    divisor = largest.new_full((), LARGEST)
    scale = largest.div_(divisor).clamp_(min=SMALLEST_SCALE).to(torch.bfloat16)
    levels = precise / scale[:, None].to(precise.dtype)
    return levels.round_().clamp_(-LARGEST, LARGEST), scale


def _pack(levels: Tensor) -> Int32[Tensor, "groups words"]:
    """Four values to a half word by a product: sums of powers of 16 are exact in any precision."""
    places = torch.tensor([1.0, 16.0, 256.0, 4096.0], dtype=levels.dtype, device=levels.device)
    halves = levels.add_(8).unflatten(-1, (-1, 4)) @ places
    return halves.to(torch.int32).to(torch.int16).view(torch.int32)


def _unpack(packed: Tensor) -> Float32[Tensor, "groups group"]:
    """The values of every word, two at a time: a byte is looked up in a table of pairs."""
    byte = torch.arange(256, device=packed.device)
    pairs = torch.stack([byte & 15, byte >> 4], dim=-1).sub_(8).float().view(torch.float64)
    found = pairs[:, 0].index_select(0, packed.view(torch.uint8).int().flatten())
    return found.view(torch.float32).view(len(packed), -1)
