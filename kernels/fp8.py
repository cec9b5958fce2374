"""FP8 weights (e4m3) with one fp32 scale for 128 x 128 neighbours (spec 1.6).

    s = max|w| / 448 over the block, 1 for a block of zeros;  q = e4m3(w / s);  w_hat = q s

The last row and column of blocks may be smaller: a matrix of 576 rows has five rows of blocks.

Quantising w_hat again gives the same q and s if w_hat is in fp32 and the s were made as above; in
bf16 also the weights quantised first must have been bf16, so that 448 s is a number of bf16.
Scales made otherwise, as powers of two for example, are not kept.

Shapes: n rows, m inputs, N = ceil(n / 128), M = ceil(m / 128) blocks.
"""

import math
from collections.abc import Iterator
from typing import NamedTuple

import torch
from jaxtyping import Float, Float8e4m3fn, Float32
from torch import Tensor
from torch.nn import functional

BLOCK = 128
LARGEST = 448.0
CPU_TILE = 1024  # columns handled together; a multiple of BLOCK
# Below this the scale would lose bits, or be zero.
SMALLEST = LARGEST * torch.finfo(torch.float32).tiny


class Fp8(NamedTuple):
    """A quantised matrix, with the names of the released checkpoint."""

    weight: Float8e4m3fn[Tensor, "n m"]
    weight_scale_inv: Float32[Tensor, "N M"]


def blocks(shape: tuple[int, ...] | torch.Size) -> tuple[int, int]:
    """N and M of a matrix of that shape."""
    rows, columns = shape
    return math.ceil(rows / BLOCK), math.ceil(columns / BLOCK)


def naive_quantise(weight: Float[Tensor, "n m"]) -> Fp8:
    """The specification: one block at a time. Same contract as `quantise`."""
    out = torch.empty(weight.shape, dtype=torch.float8_e4m3fn)
    scales = torch.empty(blocks(weight.shape), dtype=torch.float32)
    for i, j in torch.cartesian_prod(*(torch.arange(n) for n in scales.shape)).tolist():
        place = slice(i * BLOCK, (i + 1) * BLOCK), slice(j * BLOCK, (j + 1) * BLOCK)
        block = weight[place].float()
        largest = block.abs().max()
        scales[i, j] = largest / LARGEST if largest >= SMALLEST else 1.0
        out[place] = (block / scales[i, j]).to(torch.float8_e4m3fn)
    return Fp8(out, scales)


def naive_dequantise(weight: Fp8, dtype: torch.dtype) -> Float[Tensor, "n m"]:
    """The specification: every value times its own scale. Same contract as `dequantise`."""
    rows, columns = (torch.arange(n) // BLOCK for n in weight.weight.shape)
    return (weight.weight.float() * weight.weight_scale_inv[rows[:, None], columns]).to(dtype)


def quantise(weight: Float[Tensor, "n m"]) -> Fp8:
    """q and s of the formula above."""
    weight = weight.detach()
    out = torch.empty(weight.shape, dtype=torch.float8_e4m3fn, device=weight.device)
    scales = torch.empty(blocks(weight.shape), dtype=torch.float32, device=weight.device)
    for place, of_scales in _tiles(weight):
        part = weight[place].float()
        width = part.shape[1]
        part = functional.pad(part, (0, -width % BLOCK)).unflatten(1, (-1, BLOCK))
        largest = part.abs().amax((0, 2))
        # A tensor: CUDA multiplies with the reciprocal of a number, which gives other scales.
        divisor = largest.new_full((), LARGEST)
        scale = (largest / divisor).masked_fill_(largest < SMALLEST, 1.0)
        out[place] = (part / scale[:, None]).flatten(1)[:, :width]
        scales[of_scales] = scale
    return Fp8(out, scales)


def dequantise(weight: Fp8, dtype: torch.dtype) -> Float[Tensor, "n m"]:
    """w_hat, rounded once from fp32 to `dtype`. ValueError if the scales do not fit the weight."""
    quantised, scales = weight
    if tuple(scales.shape) != blocks(quantised.shape):
        raise ValueError(
            f"scales {list(scales.shape)} do not fit a weight of {list(quantised.shape)}: "
            f"it has {list(blocks(quantised.shape))} blocks of {BLOCK} x {BLOCK}"
        )
    out = torch.empty(quantised.shape, dtype=dtype, device=quantised.device)
    for place, of_scales in _tiles(quantised):
        part = _values(quantised[place])
        per_column = scales[of_scales].float().repeat_interleave(BLOCK)
        out[place] = part.mul_(per_column[: part.shape[1]])
    return out


def _values(quantised: Float8e4m3fn[Tensor, "n m"]) -> Float32[Tensor, "n m"]:
    """The numbers as fp32. On CPU a table is five times as fast as the conversion."""
    if quantised.device.type != "cpu":
        return quantised.float()
    table = torch.arange(256, dtype=torch.uint8).view(torch.float8_e4m3fn).float()
    return table.index_select(0, quantised.view(torch.uint8).int().flatten()).view(quantised.shape)


def _tiles(matrix: Tensor) -> Iterator[tuple[tuple[slice, slice], tuple[int, slice]]]:
    """Where each run of blocks lies in the matrix, and where in the scales.

    A run is one row of blocks; on CPU its passes should stay in cache, so it is cut.
    """
    rows, columns = matrix.shape
    width = CPU_TILE if matrix.device.type == "cpu" else columns + -columns % BLOCK
    for top in range(0, rows, BLOCK):
        for left in range(0, columns, width):
            place = slice(top, top + BLOCK), slice(left, left + width)
            yield place, (top // BLOCK, slice(left // BLOCK, (left + width) // BLOCK))
