"""Block FP8 against its own specification and against vLLM's quantiser.

Everything but the comparison with vLLM is in every bit: there is one rounding per number.
"""

from collections.abc import Callable
from contextlib import AbstractContextManager

import pytest
import torch
from torch import Tensor
from vllm.utils.deep_gemm import per_block_cast_to_fp8

from kernels.fp8 import Fp8, blocks, dequantise, naive_dequantise, naive_quantise, quantise

SHAPES = [(128, 128), (576, 256), (300, 200), (1, 1), (129, 127), (5, 640), (130, 2100)]


def _weight(dtype: torch.dtype, rows: int, columns: int) -> Tensor:
    """Blocks of very different sizes."""
    generator = torch.Generator().manual_seed(0)
    weight = torch.randn(rows, columns, generator=generator)
    sizes = torch.rand(rows // 128 + 1, columns // 128 + 1, generator=generator) * 8 - 6
    sizes = sizes.repeat_interleave(128, 0)[:rows].repeat_interleave(128, 1)[:, :columns]
    return (weight * 10**sizes).to(dtype)


def _bits(weight: Fp8) -> tuple[Tensor, Tensor]:
    return weight.weight.view(torch.uint8), weight.weight_scale_inv


def _equal(one: Fp8, other: Fp8) -> None:
    for mine, theirs in zip(_bits(one), _bits(other), strict=True):
        assert torch.equal(mine, theirs)


def test_by_hand() -> None:
    weight = torch.zeros(129, 2)
    weight[:2] = torch.tensor([[896.0, -2.0], [17.0, 0.001]])
    weight[128, 0] = -0.5
    quantised, scale_inv = quantise(weight)
    assert torch.equal(scale_inv, torch.tensor([[2.0], [0.5 / 448]]))
    # 8.5 lies between 8 and 9 and takes the even one; 0.0005 is below half the smallest, 2^-9.
    assert quantised[:2].float().tolist() == [[448, -1], [8, 0]]
    assert quantised[128].float().tolist() == [-448, 0]


def test_blocks_are_counted_up() -> None:
    assert blocks((576, 7168)) == (5, 56)
    assert blocks((1, 129)) == (1, 2)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("shape", SHAPES)
def test_is_the_specification(shape: tuple[int, int], dtype: torch.dtype) -> None:
    weight = _weight(dtype, *shape)
    stored = quantise(weight)
    _equal(stored, naive_quantise(weight))
    for precision in (torch.float32, torch.bfloat16):
        assert torch.equal(dequantise(stored, precision), naive_dequantise(stored, precision))


def test_every_number_of_the_format() -> None:
    every = torch.arange(256, dtype=torch.uint8).view(torch.float8_e4m3fn).view(2, 128)
    stored = Fp8(every, torch.tensor([[0.375]]))
    expected = every.float() * 0.375
    assert torch.allclose(dequantise(stored, torch.float32), expected, 0, 0, equal_nan=True)


@pytest.mark.parametrize("scale", [0.0, 1e-37, 1e-40])
def test_blocks_of_nearly_nothing_become_zero(scale: float) -> None:
    stored = quantise(_weight(torch.float32, 128, 128).sign() * scale)
    assert stored.weight_scale_inv.item() == 1
    assert dequantise(stored, torch.float32).abs().max() == 0


@pytest.mark.parametrize("shape", SHAPES)
def test_is_vllms_quantiser(shape: tuple[int, int]) -> None:
    weight = _weight(torch.float32, *shape)
    with torch.compiler.set_stance("force_eager"):  # compiled, it divides otherwise
        theirs, scale = per_block_cast_to_fp8(weight, [128, 128])
    ours = quantise(weight)
    # vLLM holds scales above 1e-4 / 448; the blocks here that are smaller are left out.
    large = scale > 1.1e-4 / 448
    assert torch.equal(ours.weight_scale_inv[large], scale[large])
    rows, columns = (torch.arange(n) // 128 for n in shape)
    mask = large[rows[:, None], columns]
    assert torch.equal(ours.weight.float()[mask], theirs.float()[mask])


@pytest.mark.parametrize("shape", SHAPES)
def test_quantising_again_changes_nothing(shape: tuple[int, int]) -> None:
    wide, narrow = _weight(torch.float32, *shape), _weight(torch.bfloat16, *shape)
    for weight, precision in (
        (wide, torch.float32),
        (narrow, torch.float32),
        (narrow, torch.bfloat16),
    ):
        stored = quantise(weight)
        _equal(quantise(dequantise(stored, precision)), stored)


def test_quantising_again_on_a_gpu_changes_nothing(
    cuda_division: Callable[[], AbstractContextManager[object]],
) -> None:
    weight = _weight(torch.float32, 640, 640)
    with cuda_division():
        stored = quantise(weight)
        _equal(quantise(dequantise(stored, torch.float32)), stored)
    _equal(stored, quantise(weight))


def test_error_is_that_of_four_bits() -> None:
    # Three bits behind the point: half a unit is 2^-4 of the number, or 2^-10 of the scale.
    weight = _weight(torch.float32, 256, 256)
    stored = quantise(weight)
    scale = stored.weight_scale_inv.repeat_interleave(128, 0).repeat_interleave(128, 1)
    error = (dequantise(stored, torch.float32) - weight).abs()
    assert (error <= torch.maximum(weight.abs() / 16, scale / 1024) * 1.0001).all()
    assert error.max() > 0


def test_not_a_number_stays_in_its_block() -> None:
    weight = _weight(torch.float32, 130, 130)
    weight[3, 4] = float("nan")
    result = dequantise(quantise(weight), torch.float32)
    assert result[:128, :128].isnan().all()
    assert not result[128:].isnan().any() and not result[:, 128:].isnan().any()


def test_refuses_scales_that_do_not_fit() -> None:
    stored = quantise(torch.ones(576, 128))
    with pytest.raises(ValueError, match=r"scales \[4, 1\] do not fit a weight of \[576, 128\]"):
        dequantise(Fp8(stored.weight, stored.weight_scale_inv[:4]), torch.float32)
