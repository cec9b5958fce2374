"""The batched kernel against the formula in float64, and torch's Muon."""

import math

import pytest
import torch
from torch import Tensor, nn
from torch.optim._muon import _zeropower_via_newtonschulz

from kernels import newton_schulz as kernel
from kernels.newton_schulz import Form, naive_newton_schulz, newton_schulz

FORMS: list[Form] = ["plain", "gram"]
# fp32 rounding is 6e-8; five iterations raise what is small by up to 3.4445^5 = 485.
FP32 = 1e-5
# bfloat16 rounding is 4e-3, and where a matrix has few directions, most of the result is what the
# iteration made of the cast's own noise; so the plain form's error is the yardstick there.
BF16 = 0.03


def _normal(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def _with_spectrum(values: Tensor, n: int, m: int) -> Tensor:
    u, _, v = torch.linalg.svd(_normal(n, m, seed=1), full_matrices=False)
    return u * values @ v


def _spectra(n: int, m: int) -> dict[str, Tensor]:
    """From well conditioned to rank one, float64 [n, m]."""
    size = min(n, m)
    spike = torch.full((size,), 1e-3, dtype=torch.float64)
    spike[0] = 1
    half = torch.ones(size, dtype=torch.float64)
    half[size // 2 :] = 0
    return {
        "normal": _normal(n, m),
        "to 1e-4": _with_spectrum(torch.logspace(0, -4, size, dtype=torch.float64), n, m),
        "to 1e-8": _with_spectrum(torch.logspace(0, -8, size, dtype=torch.float64), n, m),
        "spike": _with_spectrum(spike, n, m),
        "half the rank": _with_spectrum(half, n, m),
        "almost constant": 1 + 1e-3 * _normal(n, m),
        "rank 1": torch.outer(_normal(n), _normal(m)),
    }


def _reference(x: Tensor) -> Tensor:
    return torch.stack([naive_newton_schulz(each.double()) for each in x])


def _error(ours: Tensor, reference: Tensor) -> float:
    return float((ours.double() - reference).norm() / reference.norm())


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("shape", [(48, 48), (32, 128), (128, 32), (17, 41), (1, 9), (9, 1)])
def test_fp32_equals_the_formula_in_float64(form: Form, shape: tuple[int, int]) -> None:
    for name, x in _spectra(*shape).items():
        x = x.float()[None]
        ours = newton_schulz(x, 5, torch.float32, form)
        assert ours.dtype == torch.float32 and ours.shape == x.shape
        torch.testing.assert_close(
            ours.double(), _reference(x), rtol=0, atol=FP32, msg=lambda m, n=name: f"{n}: {m}"
        )


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("shape", [(102, 300), (300, 102), (128, 128)])
def test_upper_blocks_give_the_whole_product(
    form: Form, shape: tuple[int, int], monkeypatch: pytest.MonkeyPatch
) -> None:
    """At small sizes, one of which four blocks do not divide."""
    monkeypatch.setattr(kernel, "SYMMETRIC_FROM", 100)
    x = torch.stack([_normal(*shape, seed=seed) for seed in range(3)])
    for chunk in (1, 1 << 20):  # one matrix at a time, and all three together
        monkeypatch.setattr(kernel, "CPU_CHUNK", chunk)
        ours = newton_schulz(x, 5, torch.float64, form)
        torch.testing.assert_close(ours, _reference(x), rtol=0, atol=1e-12)


def test_sizes_that_multiply_upper_blocks_in_fp32() -> None:
    for shape in ((512, 600), (768, 512)):
        x = _normal(1, *shape).float()
        ours = newton_schulz(x, 5, torch.float32)
        torch.testing.assert_close(ours.double(), _reference(x), rtol=0, atol=FP32)


def test_norm_of_millions_of_elements() -> None:
    """Summed at one go in fp32 it is 6e-5 off."""
    x = _normal(1, 1024, 4096).float()
    start = newton_schulz(x, 0, torch.float32)
    assert abs(float(start.double().norm()) - 1) < 2e-6


def test_norm_of_bfloat16_is_at_least_fp32() -> None:
    """So dividing by it is the only rounding."""
    x = torch.stack([_normal(170, 170, seed=seed) for seed in range(4)]).to(torch.bfloat16)
    exact = x.double() / x.double().norm(dim=(1, 2), keepdim=True)
    error = (newton_schulz(x, 0).double() - exact) / exact
    assert error.abs().max() <= 2**-8 * 1.01


@pytest.mark.parametrize("shape", [(64, 64), (64, 256), (256, 64)])
def test_bfloat16_stays_close(shape: tuple[int, int]) -> None:
    for name, x in _spectra(*shape).items():
        x = x.to(torch.bfloat16)[None]
        reference = _reference(x)
        plain, gram = (_error(newton_schulz(x, form=form), reference) for form in FORMS)
        assert gram < max(1.5 * plain, BF16), f"{name}: gram {gram}, plain {plain}"
        if name == "normal":
            assert plain < BF16


def test_gram_without_restart_would_fail(monkeypatch: pytest.MonkeyPatch) -> None:
    """Why RESTART is 2: rounding makes eigenvalues of R negative, and they explode."""
    x = _spectra(64, 256)["spike"].to(torch.bfloat16)[None]
    reference = _reference(x)
    assert _error(newton_schulz(x, form="gram"), reference) < 0.1
    monkeypatch.setattr(kernel, "RESTART", 5)
    assert _error(newton_schulz(x, form="gram"), reference) > 1


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("form", FORMS)
def test_batch_equals_one_by_one(
    dtype: torch.dtype, form: Form, monkeypatch: pytest.MonkeyPatch
) -> None:
    x = torch.stack([_normal(24, 40, seed=seed) for seed in range(7)])
    alone = torch.cat([newton_schulz(each[None], 5, dtype, form) for each in x])
    for chunk in (1, 3 * 24 * 40, 1 << 20):
        monkeypatch.setattr(kernel, "CPU_CHUNK", chunk)
        ours = newton_schulz(x, 5, dtype, form)
        # Only the order of summation inside a product may differ.
        torch.testing.assert_close(ours, alone, rtol=0, atol=1e-6 if dtype.itemsize == 4 else 0.02)


def test_equals_torch_muon() -> None:
    """As it is: torch computes in bfloat16 whatever it is given."""
    for seed, shape in enumerate([(32, 32), (24, 96), (96, 24)]):
        x = _normal(*shape, seed=seed).float()
        theirs = _zeropower_via_newtonschulz(x, kernel.COEFFICIENTS, 5, kernel.EPS)
        ours = newton_schulz(x[None], 5, torch.bfloat16, "plain")[0]
        assert theirs.dtype == torch.bfloat16
        assert _error(ours, theirs.double()) < BF16


def _no_bfloat16(x: Tensor) -> Tensor:
    """In place of Tensor.bfloat16, lets torch.optim.Muon compute in the gradient's precision."""
    return x.clone()


@pytest.mark.parametrize("exact", [True, False])
@pytest.mark.parametrize("shape", [(32, 48), (48, 32), (40, 40)])
def test_several_steps_equal_torch_muon(
    shape: tuple[int, int], exact: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nesterov momentum, 0.2 sqrt(max(n, m)) and decay around the kernel, against torch.optim."""
    dtype = torch.bfloat16
    if exact:
        dtype = torch.float32
        monkeypatch.setattr(Tensor, "bfloat16", _no_bfloat16)
    weight = _normal(*shape, seed=9).float()
    theirs = nn.Parameter(weight.clone())
    reference = torch.optim.Muon(
        [theirs], lr=0.02, weight_decay=0.3, momentum=0.9, adjust_lr_fn="match_rms_adamw"
    )
    momentum, moved = torch.zeros(shape), 0.0
    for step in range(4):
        grad = _normal(*shape, seed=20 + step).float()
        momentum = 0.9 * momentum + 0.1 * grad  # torch's lerp; the scale drops out of the step
        theirs.grad = grad.clone()
        reference.step()
        direction = 0.1 * grad + 0.9 * momentum
        update = newton_schulz(direction[None], 5, dtype)[0].float() * 0.2 * math.sqrt(max(shape))
        before, weight = weight, weight * (1 - 0.02 * 0.3) - 0.02 * update
        moved = max(moved, float((weight - before).abs().max()))
        tolerance = 1e-5 if exact else 0.03 * 0.02 * (step + 1)
        torch.testing.assert_close(weight, theirs.data, rtol=0, atol=tolerance)
    assert moved > 0.005


@pytest.mark.parametrize("shape", [(64, 64), (64, 256), (256, 64)])
def test_singular_values_and_update_rms(shape: tuple[int, int]) -> None:
    """Spec 2.1: 0.68-1.13 where sigma / ||.||_F > 0.02; RMS 0.14-0.19 with 0.2 sqrt(max(n, m))."""
    steep = torch.full((64,), 0.022, dtype=torch.float64)
    steep[0] = 1
    for values in (torch.linspace(1.0, 0.15, 64, dtype=torch.float64), steep):
        assert values.min() / values.norm() > 0.02
        y = newton_schulz(_with_spectrum(values, *shape).float()[None], 5, torch.float32)[0]
        after = torch.linalg.svdvals(y)
        assert after.min() > 0.675 and after.max() < 1.135
        rms = float(y.square().mean().sqrt()) * 0.2 * math.sqrt(max(shape))
        assert 0.14 < rms < 0.19


def test_scale_of_the_gradient_does_not_matter() -> None:
    x = _normal(2, 24, 40).float()
    one = newton_schulz(x, 5, torch.float32)
    for scale in (1e-3, 1e4):
        # EPS against a norm of 0.03 is 3e-6.
        torch.testing.assert_close(
            newton_schulz(scale * x, 5, torch.float32), one, rtol=0, atol=FP32
        )


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("form", FORMS)
def test_zero_matrices_stay_zero_beside_others(dtype: torch.dtype, form: Form) -> None:
    x = _normal(3, 16, 48).float()
    x[1] = 0
    y = newton_schulz(x, 5, dtype, form)
    assert y[1].abs().max() == 0
    assert torch.isfinite(y).all() and y[0].norm() > 3 and y[2].norm() > 3


def test_casting_first_changes_nothing() -> None:
    x = 1e-3 * _normal(2, 24, 40).float()
    assert torch.equal(newton_schulz(x), newton_schulz(x.to(torch.bfloat16)))
    assert torch.equal(newton_schulz(x), newton_schulz(x.to(torch.bfloat16).float()))


def test_the_input_is_left_alone_and_may_be_a_view() -> None:
    x = _normal(40, 3, 24).float()
    view = x.movedim(1, 0).mT  # [3, 24, 40], not contiguous
    before = x.clone()
    ours = newton_schulz(view, 5, torch.float32)
    assert torch.equal(x, before)
    torch.testing.assert_close(ours.double(), _reference(view), rtol=0, atol=FP32)


def test_empty_batch() -> None:
    assert newton_schulz(torch.empty(0, 4, 8)).shape == (0, 4, 8)


def test_auto_takes_the_cheaper_form() -> None:
    square, wide = _normal(1, 32, 32), _normal(1, 32, 64)
    for x, form in ((square, "plain"), (wide, "gram"), (wide.mT, "gram")):
        assert torch.equal(newton_schulz(x, form="auto"), newton_schulz(x, form=form))
    assert not torch.equal(newton_schulz(wide, form="plain"), newton_schulz(wide, form="gram"))
