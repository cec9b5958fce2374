"""Chunked log-probabilities are the naive ones, outputs and gradients."""

import math

import pytest
import torch

from kernels import logprob
from kernels.logprob import naive_token_logprobs, token_logprobs


@pytest.mark.parametrize("per_token_temperature", [False, True])
@pytest.mark.parametrize("tokens", [1, 64, 200])
def test_equals_naive_with_gradients(
    tokens: int, per_token_temperature: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(logprob, "CPU_CHUNK", 1)  # chunks of 64 tokens, the least
    generator = torch.Generator().manual_seed(0)
    hidden = torch.randn(tokens, 5, generator=generator, dtype=torch.float64).requires_grad_()
    weight = torch.randn(11, 5, generator=generator, dtype=torch.float64).requires_grad_()
    targets = torch.randint(11, (tokens,), generator=generator)
    tempered = torch.rand(tokens, generator=generator, dtype=torch.float64) + 0.5
    temperature = tempered if per_token_temperature else 0.7
    ours, entropy = token_logprobs(hidden, weight, targets, temperature)
    naive, naive_entropy = naive_token_logprobs(hidden, weight, targets, temperature)
    torch.testing.assert_close(ours, naive, rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(entropy, naive_entropy, rtol=1e-12, atol=1e-12)
    assert not entropy.requires_grad
    dout = torch.randn(tokens, generator=generator, dtype=torch.float64)
    torch.testing.assert_close(
        torch.autograd.grad(ours, [hidden, weight], dout),
        torch.autograd.grad(naive, [hidden, weight], dout),
        rtol=1e-11,
        atol=1e-12,
    )


def test_values_by_hand() -> None:
    # Logits (0, ln 3) over temperature 1 and 0.5: probabilities (1/4, 3/4) and (1/10, 9/10).
    hidden, weight = torch.ones(2, 1), torch.tensor([[0.0], [math.log(3)]])
    logprobs, entropy = token_logprobs(
        hidden, weight, torch.tensor([1, 0]), torch.tensor([1.0, 0.5])
    )
    torch.testing.assert_close(logprobs, torch.tensor([0.75, 0.1]).log())
    torch.testing.assert_close(entropy, torch.tensor([0.5623351, 0.3250830]))


def test_bfloat16_hidden_with_float32_weight() -> None:
    generator = torch.Generator().manual_seed(0)
    hidden = torch.randn(30, 16, generator=generator).bfloat16().requires_grad_()
    weight = torch.randn(20, 16, generator=generator).requires_grad_()
    targets = torch.randint(20, (30,), generator=generator)
    ours, _ = token_logprobs(hidden, weight, targets)
    naive, _ = naive_token_logprobs(hidden, weight, targets)
    torch.testing.assert_close(ours, naive, rtol=1e-6, atol=1e-6)
    dhidden, dweight = torch.autograd.grad(ours.sum(), [hidden, weight])
    naive_dhidden, naive_dweight = torch.autograd.grad(naive.sum(), [hidden, weight])
    assert dhidden.dtype == torch.bfloat16 and dweight.dtype == torch.float32
    torch.testing.assert_close(dhidden, naive_dhidden, rtol=0.03, atol=0.03)
    torch.testing.assert_close(dweight, naive_dweight, rtol=0.03, atol=0.03)
