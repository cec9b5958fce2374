"""The sorted experts are the naive ones, outputs and gradients.

Sums are taken in another order: tolerances are some roundings of the precision, bfloat16's 8 bits
included.
"""

import pytest
import torch

from kernels.experts import naive_routed_experts, routed_experts

TOLERANCES = {torch.float64: 1e-11, torch.float32: 2e-5, torch.bfloat16: 0.05}


# fp64, and rows of 7 or 6 numbers, go expert by expert; the others through the grouped product.
@pytest.mark.parametrize(
    ("dtype", "hidden", "width"),
    [
        (torch.float64, 7, 6),
        (torch.float32, 7, 6),
        (torch.float32, 8, 12),
        (torch.bfloat16, 16, 8),
    ],
)
@pytest.mark.parametrize("unused", [0, 3])
@pytest.mark.parametrize("tokens", [23, 1, 0])
def test_equals_naive_with_gradients(
    dtype: torch.dtype, hidden: int, width: int, unused: int, tokens: int
) -> None:
    generator = torch.Generator().manual_seed(0)
    experts, per_token = 5, 2

    def make(*shape: int) -> torch.Tensor:
        return torch.randn(shape, generator=generator).to(dtype).requires_grad_()

    inputs = [make(tokens, hidden), make(experts, 2 * width, hidden), make(experts, hidden, width)]
    weights = make(tokens, per_token)
    scores = torch.rand(tokens, experts - unused, generator=generator)
    chosen = scores.topk(per_token, dim=-1).indices
    ours = routed_experts(*inputs, chosen, weights)
    naive = naive_routed_experts(*inputs, chosen, weights)
    close = {"rtol": TOLERANCES[dtype], "atol": 4 * TOLERANCES[dtype]}
    torch.testing.assert_close(ours, naive, **close)
    dout = torch.randn(ours.shape, generator=generator).to(dtype)
    grads = torch.autograd.grad(ours, [*inputs, weights], dout)
    torch.testing.assert_close(grads, torch.autograd.grad(naive, [*inputs, weights], dout), **close)
    # An expert that saw no token has a gradient of exactly zero.
    if unused:
        assert grads[1][-1].abs().max() == 0 and grads[2][-1].abs().max() == 0


def test_no_rows_never_reach_the_grouped_product(monkeypatch: pytest.MonkeyPatch) -> None:
    """CUDA's refuses the gradient of weights that no row went through, a sum over nothing."""

    def refuse(x: torch.Tensor, weight: torch.Tensor, *, offs: torch.Tensor) -> torch.Tensor:
        raise AssertionError(f"grouped_mm of {list(x.shape)} and {list(weight.shape)}")

    monkeypatch.setattr(torch.nn.functional, "grouped_mm", refuse)
    x, weights = torch.ones(0, 8, requires_grad=True), torch.ones(0, 2)
    experts = torch.ones(5, 16, 8, requires_grad=True), torch.ones(5, 8, 8, requires_grad=True)
    out = routed_experts(x, *experts, torch.ones(0, 2, dtype=torch.int64), weights)
    grads = torch.autograd.grad(out.sum(), [x, *experts])
    assert [each.shape for each in (out, *grads)] == [(0, 8), (0, 8), (5, 16, 8), (5, 8, 8)]
    assert not any(each.any() for each in grads)
