"""The sorted experts are the naive ones, outputs and gradients."""

import pytest
import torch

from kernels.experts import naive_routed_experts, routed_experts


@pytest.mark.parametrize("unused", [0, 3])
def test_equals_naive_with_gradients(unused: int) -> None:
    generator = torch.Generator().manual_seed(0)
    tokens, experts, per_token, hidden, width = 23, 5, 2, 7, 6

    def make(*shape: int) -> torch.Tensor:
        return torch.randn(shape, generator=generator, dtype=torch.float64).requires_grad_()

    inputs = [make(tokens, hidden), make(experts, 2 * width, hidden), make(experts, hidden, width)]
    weights = make(tokens, per_token)
    scores = torch.rand(tokens, experts - unused, generator=generator)
    chosen = scores.topk(per_token, dim=-1).indices
    ours = routed_experts(*inputs, chosen, weights)
    naive = naive_routed_experts(*inputs, chosen, weights)
    torch.testing.assert_close(ours, naive, rtol=1e-12, atol=1e-12)
    dout = torch.randn(ours.shape, generator=generator, dtype=torch.float64)
    grads = torch.autograd.grad(ours, [*inputs, weights], dout)
    torch.testing.assert_close(
        grads, torch.autograd.grad(naive, [*inputs, weights], dout), rtol=1e-11, atol=1e-12
    )
    # An expert that saw no token has a gradient of exactly zero.
    assert not unused or grads[1][-1].abs().max() == 0
