"""INT4 against its own specification and against compressed-tensors, which engines unpack with.

Everything here is compared in every bit: there is one rounding per number, so no tolerance.
"""

from collections.abc import Callable
from contextlib import AbstractContextManager

import pytest
import torch
from compressed_tensors.compressors.pack_quantized import pack_to_int32, unpack_from_int32
from compressed_tensors.quantization import QuantizationArgs
from compressed_tensors.quantization.lifecycle.forward import dequantize, quantize
from torch import Tensor

from kernels.int4 import (
    Int4,
    dequantise,
    fake_quantise,
    naive_dequantise,
    naive_quantise,
    quantise,
)

ARGS = QuantizationArgs(num_bits=4, type="int", symmetric=True, strategy="group", group_size=32)


def _weight(dtype: torch.dtype, *shape: int) -> Tensor:
    """Groups of many sizes: ordinary, all zero, below and near the smallest scale, with ties."""
    weight = torch.randn(shape, generator=torch.Generator().manual_seed(0)) * 0.05
    weight.view(-1, 32)[0] = 0
    weight.view(-1, 32)[1] *= 1e-6
    weight.view(-1, 32)[2] *= 1e-3
    weight.view(-1, 32)[3] = torch.arange(-16, 16) / 2 * 0.0625
    return weight.to(dtype)


def _equal(one: Int4, other: Int4) -> None:
    assert torch.equal(one.packed, other.packed)
    assert torch.equal(one.scale, other.scale)


def test_a_group_by_hand() -> None:
    weight = torch.zeros(32)
    weight[:5] = torch.tensor([7.0, -7.0, 1.5, 2.5, -3.4])
    packed, scale = quantise(weight)
    # q + 8 of the first eight: 15, 1, 10 (1.5 to even), 10 (2.5 to even), 5, 8, 8, 8
    assert packed.tolist() == [0x8885AA1F - (1 << 32)] + [0x88888888 - (1 << 32)] * 3
    assert scale.tolist() == [1.0]
    assert dequantise(Int4(packed, scale), torch.float32)[:5].tolist() == [7, -7, 2, 2, -3]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64])
@pytest.mark.parametrize("shape", [(32,), (16, 64), (3, 8, 96)])
def test_is_the_specification(dtype: torch.dtype, shape: tuple[int, ...]) -> None:
    weight = _weight(dtype, 16, 64).reshape(-1)[: torch.Size(shape).numel()]
    weight = torch.cat([weight, _weight(dtype, 48, 32).flatten()])[: torch.Size(shape).numel()]
    weight = weight.view(shape)
    stored = quantise(weight)
    _equal(stored, naive_quantise(weight))
    for precision in (torch.float32, torch.bfloat16):
        assert torch.equal(dequantise(stored, precision), naive_dequantise(stored, precision))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_what_training_computes_is_what_is_stored(dtype: torch.dtype) -> None:
    weight = _weight(dtype, 24, 128)
    stored = quantise(weight)
    for precision in (torch.float32, torch.bfloat16):
        fake = fake_quantise(weight, dtype=precision)
        assert fake.dtype == precision
        assert torch.equal(fake, dequantise(stored, precision))
    # One rounding, wherever it is done.
    assert torch.equal(fake_quantise(weight.float()).bfloat16(), dequantise(stored, torch.bfloat16))


def test_the_smallest_scale_by_hand() -> None:
    assert quantise(torch.full((32,), 1e-9)).scale.item() == torch.tensor(1e-5).bfloat16().item()


def test_halves_are_rounded_to_even_under_every_scale() -> None:
    """The weight is divided by its scale: a product with 1 / s misses some of the ties."""
    scale = (1 + torch.arange(128) / 128)[:, None]
    weight = torch.zeros(128, 32)
    weight[:, :7] = scale * torch.tensor([7, 0.5, 1.5, 2.5, 3.5, 4.5, 5.5])
    stored = quantise(weight)
    assert torch.equal(stored.scale.float(), scale)
    levels = dequantise(stored, torch.float32)[:, :7] / scale
    assert torch.equal(levels, torch.tensor([7.0, 0, 2, 2, 4, 4, 6]).expand(128, 7))


def test_a_gpu_trains_on_what_a_processor_stores(
    cuda_division: Callable[[], AbstractContextManager[object]],
) -> None:
    """Largest weights whose seventh lies between two scales: the reciprocal takes another one."""
    halves = (1 + (torch.arange(0, 128, 2) + 0.5) / 128)[:, None]
    tops = 7 * halves * (1 + torch.tensor([-2, -1, 0, 1, 2]) * 2**-23)
    weight = tops.flatten()[:, None] * torch.linspace(-1, 1, 32)
    with cuda_division():
        trained, stored = fake_quantise(weight), quantise(weight)
    _equal(stored, quantise(weight))
    assert torch.equal(trained, fake_quantise(weight))


def test_a_scale_halfway_between_two_is_rounded_to_the_even_one() -> None:
    """The largest weight is divided by 7: a product with 1 / 7 misses some of the ties."""
    halfway = 1 + (torch.arange(128) + 0.5) / 128
    weight = torch.zeros(128, 32)
    weight[:, 0] = 7 * halfway
    assert torch.equal(quantise(weight).scale[:, 0], halfway.bfloat16())


def test_chunks_do_not_show() -> None:
    weight = _weight(torch.float32, 4, 700, 96)  # more than one chunk
    assert torch.equal(fake_quantise(weight)[2], fake_quantise(weight[2]))
    _equal(Int4(*(part[3] for part in quantise(weight))), quantise(weight[3]))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_compressed_tensors_reads_and_writes_the_same(dtype: torch.dtype) -> None:
    weight = _weight(dtype, 24, 128)
    packed, scale = quantise(weight)
    theirs = quantize(weight.float(), scale.float(), torch.zeros(()), ARGS, dtype=torch.int8)
    # Theirs may use -8, which w / s never reaches: the scale holds the largest to +-7.
    assert torch.equal(pack_to_int32(theirs, 4), packed)
    unpacked = unpack_from_int32(packed, 4, weight.shape)
    assert torch.equal(dequantize(unpacked, scale), dequantise(Int4(packed, scale), torch.bfloat16))


def test_gradient_passes_straight_through() -> None:
    weight = _weight(torch.float32, 8, 64).requires_grad_()
    x = torch.randn(5, 64, generator=torch.Generator().manual_seed(1))
    slope = torch.randn(5, 8, generator=torch.Generator().manual_seed(2))
    rounded = fake_quantise(weight).detach().requires_grad_()
    for each in (fake_quantise(weight), rounded):
        ((x @ each.T).tanh() * slope).sum().backward()
    assert rounded.grad is not None
    assert rounded.grad.abs().min() > 0
    assert torch.equal(weight.grad, rounded.grad)


def test_gradient_has_the_precision_of_the_weight() -> None:
    weight = _weight(torch.float32, 4, 32).requires_grad_()
    fake_quantise(weight, dtype=torch.bfloat16).backward(torch.full((4, 32), 3.0).bfloat16())
    assert weight.grad.dtype == torch.float32
    assert torch.equal(weight.grad, torch.full((4, 32), 3.0))


def test_quantising_again_changes_nothing() -> None:
    wide, narrow = _weight(torch.float32, 64, 256), _weight(torch.bfloat16, 64, 256)
    for weight, precision in (
        (wide, torch.float32),
        (narrow, torch.float32),
        (narrow, torch.bfloat16),
    ):
        stored = quantise(weight)
        _equal(quantise(dequantise(stored, precision)), stored)


def test_not_a_number_stays_in_its_group() -> None:
    weight = _weight(torch.float32, 2, 64)
    weight[1, 40] = float("nan")
    for result in (fake_quantise(weight), dequantise(quantise(weight), torch.float32)):
        assert result[1, 32:].isnan().all()
        assert not result[0].isnan().any() and not result[1, :32].isnan().any()


def test_refuses_what_does_not_fit() -> None:
    with pytest.raises(ValueError, match=r"groups of 32 do not fit 40 inputs"):
        quantise(torch.ones(2, 40))
    with pytest.raises(ValueError, match=r"groups of 12 do not fit 24 inputs"):
        fake_quantise(torch.ones(2, 24), group=12)
    packed, scale = quantise(torch.ones(2, 96))
    with pytest.raises(ValueError, match=r"packed \[2, 12\] and scale \[2, 5\] do not fit"):
        dequantise(Int4(packed, torch.ones(2, 5).bfloat16()), torch.float32)
    with pytest.raises(ValueError, match="do not fit"):
        dequantise(Int4(packed, scale[:1]), torch.float32)
