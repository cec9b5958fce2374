"""Tiled log-probabilities are the naive ones, outputs and gradients.

In fp64 both agree to rounding of sums in another order. Products in bfloat16 carry its 8 bits: a
few hundredths at values of a few units.
"""

import math
from collections.abc import Callable

import pytest
import torch

from kernels import logprob
from kernels.logprob import naive_token_logprobs, token_logprobs


@pytest.mark.parametrize("per_token_temperature", [False, True])
@pytest.mark.parametrize(
    ("tokens", "vocabulary"), [(1, 11), (64, 11), (200, 11), (9, 64), (130, 150), (0, 11)]
)
def test_equals_naive_with_gradients(
    tokens: int, vocabulary: int, per_token_temperature: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(logprob, "CPU_TILE", 1)  # tiles of 64 x 64, the least
    generator = torch.Generator().manual_seed(0)
    hidden = torch.randn(tokens, 5, generator=generator, dtype=torch.float64).requires_grad_()
    weight = torch.randn(vocabulary, 5, generator=generator, dtype=torch.float64).requires_grad_()
    targets = torch.randint(vocabulary, (tokens,), generator=generator)
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


def test_the_running_maximum_survives_large_logits(monkeypatch: pytest.MonkeyPatch) -> None:
    # Logits 0, 1000, 2000, ... : e^l overflows, and every tile holds a new maximum.
    monkeypatch.setattr(logprob, "CPU_TILE", 1)
    weight = torch.arange(0.0, 200_000.0, 1000.0)[:, None]
    logprobs, entropy = token_logprobs(torch.ones(2, 1), weight, torch.tensor([199, 198]))
    torch.testing.assert_close(logprobs, torch.tensor([0.0, -1000.0]))
    torch.testing.assert_close(entropy, torch.zeros(2))


@pytest.mark.parametrize("width", [torch.float32, torch.bfloat16])
def test_bfloat16_hidden(width: torch.dtype, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(logprob, "CPU_TILE", 1)
    generator = torch.Generator().manual_seed(0)
    hidden = torch.randn(70, 16, generator=generator).bfloat16().requires_grad_()
    weight = torch.randn(90, 16, generator=generator).to(width).requires_grad_()
    targets = torch.randint(90, (70,), generator=generator)
    ours, _ = token_logprobs(hidden, weight, targets)
    naive, _ = naive_token_logprobs(hidden, weight, targets)
    assert ours.dtype == torch.float32
    torch.testing.assert_close(ours, naive, rtol=1e-6, atol=2e-6)
    dhidden, dweight = torch.autograd.grad(ours.sum(), [hidden, weight])
    naive_dhidden, naive_dweight = torch.autograd.grad(naive.sum(), [hidden, weight])
    assert dhidden.dtype == torch.bfloat16 and dweight.dtype == width
    torch.testing.assert_close(dhidden, naive_dhidden, rtol=0.03, atol=0.03)
    torch.testing.assert_close(dweight, naive_dweight, rtol=0.03, atol=0.03)


def test_bfloat16_gradients_are_summed_up_in_float32(monkeypatch: pytest.MonkeyPatch) -> None:
    """Over 24 tiles either way, against float64: as near as the rounding of the products."""
    monkeypatch.setattr(logprob, "CPU_TILE", 64 * 64)
    monkeypatch.setattr(logprob, "CPU_ROWS", 64)
    generator = torch.Generator().manual_seed(0)
    hidden = torch.randn(64 * 24, 8, generator=generator).bfloat16().requires_grad_()
    weight = torch.randn(64 * 24, 8, generator=generator).bfloat16().requires_grad_()
    targets = torch.randint(64 * 24, (64 * 24,), generator=generator)
    exact = [each.detach().double().requires_grad_() for each in (hidden, weight)]
    ours = torch.autograd.grad(token_logprobs(hidden, weight, targets)[0].sum(), [hidden, weight])
    theirs = torch.autograd.grad(naive_token_logprobs(*exact, targets)[0].sum(), exact)
    for one, other in zip(ours, theirs, strict=True):
        assert (one.double() - other).norm() < 4e-3 * other.norm()


@pytest.mark.parametrize("token", [-1, 11])
def test_a_target_outside_the_vocabulary_is_named(token: int) -> None:
    with pytest.raises(ValueError, match=f"token {token} is not in the vocabulary of 11"):
        token_logprobs(torch.ones(2, 3), torch.ones(11, 3), torch.tensor([4, token]))


def test_never_holds_all_logits(
    largest_result: Callable[[Callable[[], object]], int], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(logprob, "CPU_TILE", 1)
    hidden = torch.ones(256, 4, requires_grad=True)
    weight = torch.ones(512, 4, requires_grad=True)
    targets = torch.zeros(256, dtype=torch.long)

    def tiled() -> None:
        token_logprobs(hidden, weight, targets)[0].sum().backward()

    def naive() -> None:
        naive_token_logprobs(hidden, weight, targets)[0].sum().backward()

    assert largest_result(naive) == 256 * 512
    assert largest_result(tiled) == 64 * 64
