"""The K2 objective against autograd of the formula as the paper writes it."""

import torch

from rl.objectives import k2_loss, ptx_loss, sequence_sums

SEQUENCE = torch.tensor([0, 0, 0, 1, 1, 2, 2, 2, 2])


def _tokens(seed: int) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    return -torch.rand(len(SEQUENCE), generator=generator, dtype=torch.float64)


def _squared_residual(
    logprobs: torch.Tensor, old: torch.Tensor, advantages: torch.Tensor, tau: float
) -> torch.Tensor:
    """K2 sec. 3.2.3, term by term, over sequences of different lengths."""
    total = torch.zeros((), dtype=torch.float64)
    for i in range(3):
        chosen = i == SEQUENCE
        ratio = (logprobs[chosen] - old[chosen]).sum()
        total = total + (advantages[i] - tau * ratio) ** 2
    return total / 3


def test_gradient_is_that_of_the_squared_residual_over_two_tau() -> None:
    tau, advantages = 0.3, torch.tensor([0.75, -0.25, -0.5], dtype=torch.float64)
    logprobs, old = _tokens(1).requires_grad_(), _tokens(2)
    (written,) = torch.autograd.grad(
        _squared_residual(logprobs, old, advantages, tau) / (2 * tau), logprobs
    )
    sums = sequence_sums(logprobs, old, SEQUENCE, 3)
    (ours,) = torch.autograd.grad(k2_loss(sums, advantages, tau=tau, total_sequences=3), logprobs)
    torch.testing.assert_close(ours, written, rtol=1e-12, atol=1e-12)  # float64: rounding only


def test_value_on_literal_numbers() -> None:
    logprobs = torch.tensor([-1.0, -2.0, -0.5])
    old = torch.tensor([-1.5, -2.0, -1.0])
    sums = sequence_sums(logprobs, old, torch.tensor([0, 0, 1]), 2)
    # sequence 0: -(0.5)(-3) + 0.05 * 0.5^2; sequence 1: -(-0.5)(-0.5) + 0.05 * 0.5^2
    loss = k2_loss(sums, torch.tensor([0.5, -0.5]), tau=0.1, total_sequences=2)
    torch.testing.assert_close(loss, torch.tensor((1.5 + 0.0125 - 0.25 + 0.0125) / 2))


def test_length_normalised_ratio_divides_by_tokens() -> None:
    logprobs, old = torch.tensor([-1.0, -2.0]), torch.tensor([-2.0, -4.0])
    sums = sequence_sums(logprobs, old, torch.tensor([0, 0]), 1)
    plain = k2_loss(sums, torch.zeros(1), tau=2.0, total_sequences=1)
    normalised = k2_loss(sums, torch.zeros(1), tau=2.0, total_sequences=1, length_normalised=True)
    assert (plain.item(), normalised.item()) == (9.0, 2.25)


def test_micro_batches_add_up_to_one_batch() -> None:
    advantages = torch.tensor([0.75, -0.25, -0.5], dtype=torch.float64)
    logprobs, old = _tokens(3), _tokens(4)
    whole = k2_loss(
        sequence_sums(logprobs, old, SEQUENCE, 3), advantages, tau=0.1, total_sequences=3
    )
    first, rest = SEQUENCE < 1, SEQUENCE >= 1
    parts = k2_loss(
        sequence_sums(logprobs[first], old[first], SEQUENCE[first], 1),
        advantages[:1],
        tau=0.1,
        total_sequences=3,
    ) + k2_loss(
        sequence_sums(logprobs[rest], old[rest], SEQUENCE[rest] - 1, 2),
        advantages[1:],
        tau=0.1,
        total_sequences=3,
    )
    torch.testing.assert_close(parts, whole, rtol=1e-12, atol=1e-12)


def test_on_policy_gradient_is_reinforce_with_mean_baseline() -> None:
    advantages = torch.tensor([0.5, -0.5, 0.0], dtype=torch.float64)
    logprobs = _tokens(5).requires_grad_()
    sums = sequence_sums(logprobs, logprobs.detach(), SEQUENCE, 3)
    (gradient,) = torch.autograd.grad(
        k2_loss(sums, advantages, tau=0.1, total_sequences=3), logprobs
    )
    torch.testing.assert_close(gradient, -advantages[SEQUENCE] / 3)


def test_ptx_loss_is_the_token_mean() -> None:
    assert ptx_loss(torch.tensor([-1.0, -3.0]), total_tokens=4).item() == 1.0
