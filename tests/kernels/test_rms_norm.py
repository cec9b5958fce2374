"""The norm with its own backward pass is the naive one."""

import torch

from kernels.rms_norm import naive_rms_norm, rms_norm


def test_equals_naive_with_gradients() -> None:
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(9, 6, generator=generator, dtype=torch.float64).requires_grad_()
    gain = torch.randn(6, generator=generator, dtype=torch.float64).requires_grad_()
    dout = torch.randn(9, 6, generator=generator, dtype=torch.float64)
    ours, naive = rms_norm(x, gain, 0.1), naive_rms_norm(x, gain, 0.1)
    torch.testing.assert_close(ours, naive, rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(
        torch.autograd.grad(ours, [x, gain], dout),
        torch.autograd.grad(naive, [x, gain], dout),
        rtol=1e-11,
        atol=1e-12,
    )


def test_value_by_hand_and_bfloat16() -> None:
    x = torch.tensor([[3.0, 4.0]])  # mean square 12.5
    torch.testing.assert_close(
        rms_norm(x, torch.tensor([1.0, 2.0]), 0.0), torch.tensor([[0.8485281, 2.2627417]])
    )
    assert rms_norm(x.bfloat16(), torch.ones(2), 1e-6).dtype == torch.bfloat16


def test_bfloat16_is_rounded_once_after_the_gain() -> None:
    """Statistics are summed in float32: half a unit in the last place is all that is lost."""
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(64, 512, generator=generator).bfloat16()
    gain = torch.randn(512, generator=generator)
    exact = naive_rms_norm(x.double(), gain.double(), 1e-6)
    error = (rms_norm(x, gain, 1e-6).double() - exact) / exact
    assert error.abs().max() <= 2**-8 * 1.01
