"""Every objective against autograd of the formula as its paper writes it, token by token."""

import math
from collections.abc import Callable
from dataclasses import dataclass, replace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from rl.objective_config import Clip
from rl.objectives import (
    Loss,
    Tokens,
    cispo_loss,
    dapo_loss,
    dr_grpo_loss,
    grpo_loss,
    gspo_loss,
    k2_loss,
    k2p5_loss,
    ptx_loss,
    ratio_of,
)

SEQUENCE = torch.tensor([0, 0, 0, 1, 1, 2, 2, 2, 2, 3])
ADVANTAGES = torch.tensor([0.75, -0.25, -0.5, 1.5], dtype=torch.float64)
CLIP = Clip(0.2, 0.3)
TAU = 0.3
S, N = 4, 10

Run = Callable[[Tokens], Loss]
OBJECTIVES: dict[str, Run] = {
    "k2": lambda tokens: k2_loss(tokens, tau=TAU, total_sequences=S),
    "k2p5": lambda tokens: k2p5_loss(tokens, tau=TAU, clip=CLIP, total_tokens=N),
    "grpo": lambda tokens: grpo_loss(tokens, clip=CLIP, total_sequences=S),
    "dapo": lambda tokens: dapo_loss(tokens, clip=CLIP, total_tokens=N),
    "dr_grpo": lambda tokens: dr_grpo_loss(tokens, clip=CLIP, total_sequences=S),
    "gspo": lambda tokens: gspo_loss(tokens, clip=CLIP, total_sequences=S),
    "cispo": lambda tokens: cispo_loss(tokens, clip=CLIP, total_tokens=N),
}
everyone = pytest.mark.parametrize("kind", OBJECTIVES)


def _random(seed: int, low: float, high: float) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return low + (high - low) * torch.rand(len(SEQUENCE), generator=generator, dtype=torch.float64)


def _tokens(seed: int, weights: Tensor | None = None, spread: float = 0.9) -> Tokens:
    """Log-ratios reach over both bounds."""
    logprobs = _random(seed, -2, -0.1)
    return Tokens(
        logprobs=logprobs.requires_grad_(),
        old_logprobs=(logprobs - _random(seed + 1, -spread, spread)).detach(),
        weights=torch.ones_like(logprobs).detach() if weights is None else weights,
        sequence=SEQUENCE,
        advantages=ADVANTAGES,
    )


def _gradient(value: Tensor, tokens: Tokens) -> Tensor:
    (gradient,) = torch.autograd.grad(value, tokens.logprobs)
    return gradient


@dataclass
class Token:
    """One token of a naive loop."""

    logprob: Tensor
    old: Tensor
    weight: float

    @property
    def ratio(self) -> Tensor:
        return (self.logprob - self.old).exp()


def _sequences(tokens: Tokens) -> list[tuple[list[Token], float]]:
    return [
        (
            [
                Token(tokens.logprobs[t], tokens.old_logprobs[t], tokens.weights[t].item())
                for t in range(len(SEQUENCE))
                if SEQUENCE[t] == i
            ],
            ADVANTAGES[i].item(),
        )
        for i in range(S)
    ]


def _clip(ratio: Tensor) -> Tensor:
    low, high = torch.tensor([1 - CLIP.low, 1 + CLIP.high], dtype=torch.float64)
    return min(max(ratio, low), high)


def _naive_k2(tokens: Tokens) -> Tensor:
    """The squared residual of K2 sec. 3.2.3, over 2 tau."""
    total = torch.zeros((), dtype=torch.float64)
    for sequence, advantage in _sequences(tokens):
        rho = sum((t.logprob - t.old for t in sequence), start=torch.zeros(()))
        total = total + (advantage - TAU * rho) ** 2 / (2 * TAU)
    return total / S


def _naive_k2p5(tokens: Tokens) -> Tensor:
    total = torch.zeros((), dtype=torch.float64)
    for sequence, advantage in _sequences(tokens):
        for t in sequence:
            gain = _clip(t.ratio) * advantage - TAU * t.ratio.log() ** 2
            total = total - t.weight * gain
    return total / N


def _naive_surrogates(tokens: Tokens, per_sequence: Callable[[int], float]) -> Tensor:
    """PPO's clipped surrogate of every token, those of a sequence over what its length says."""
    total = torch.zeros((), dtype=torch.float64)
    for sequence, advantage in _sequences(tokens):
        for t in sequence:
            gain = min(t.ratio * advantage, _clip(t.ratio) * advantage)
            total = total - t.weight * gain / per_sequence(len(sequence))
    return total


def _naive_gspo(tokens: Tokens) -> Tensor:
    total = torch.zeros((), dtype=torch.float64)
    for sequence, advantage in _sequences(tokens):
        product = torch.ones((), dtype=torch.float64)
        for t in sequence:
            product = product * t.ratio
        s = product ** (1 / len(sequence))
        total = total - min(s * advantage, _clip(s) * advantage)
    return total / S


def _naive_cispo(tokens: Tokens) -> Tensor:
    total = torch.zeros((), dtype=torch.float64)
    for sequence, advantage in _sequences(tokens):
        for t in sequence:
            total = total - t.weight * _clip(t.ratio).item() * advantage * t.logprob
    return total / N


NAIVE: dict[str, Callable[[Tokens], Tensor]] = {
    "k2": _naive_k2,
    "k2p5": _naive_k2p5,
    "grpo": lambda tokens: _naive_surrogates(tokens, lambda length: length * S),
    "dapo": lambda tokens: _naive_surrogates(tokens, lambda length: N),
    "dr_grpo": lambda tokens: _naive_surrogates(tokens, lambda length: S),
    "gspo": _naive_gspo,
    "cispo": _naive_cispo,
}
WEIGHTED = ["k2p5", "grpo", "dapo", "dr_grpo", "cispo"]  # the token's loss times its weight


@everyone
@pytest.mark.parametrize("seed", range(5))
def test_gradient_is_that_of_the_paper(kind: str, seed: int) -> None:
    weights = _random(seed + 50, 0, 2) if kind in WEIGHTED else None
    tokens = _tokens(10 * seed, weights)
    ours, paper = OBJECTIVES[kind](tokens), NAIVE[kind](tokens)
    torch.testing.assert_close(
        _gradient(ours.value, tokens), _gradient(paper, tokens), rtol=1e-9, atol=1e-9
    )
    if kind != "k2":  # whose loss differs from the squared residual by what has no gradient
        torch.testing.assert_close(ours.value, paper, rtol=1e-9, atol=1e-9)


def test_the_samples_meet_both_bounds_on_both_sides() -> None:
    tokens = _tokens(30)
    clipped = OBJECTIVES["grpo"](tokens).clipped
    gains = {(ADVANTAGES[SEQUENCE[t]].item() > 0) for t in clipped.nonzero().flatten()}
    assert gains == {True, False} and not clipped.all()
    outside = (tokens.log_ratio.exp() > 1.3) | (tokens.log_ratio.exp() < 0.8)
    assert OBJECTIVES["k2p5"](tokens).clipped.tolist() == outside.tolist()
    assert OBJECTIVES["cispo"](tokens).clipped.tolist() == outside.tolist()
    assert not OBJECTIVES["k2"](tokens).clipped.any()


def test_k2_weights_stand_where_the_mask_stands() -> None:
    """The gradient of a token is its own weight times the residual of the weighted ratio."""
    weights = _random(60, 0, 2)
    tokens = _tokens(1, weights)
    residual = torch.stack(
        [
            ADVANTAGES[i] - TAU * (weights * tokens.log_ratio.detach())[i == SEQUENCE].sum()
            for i in range(S)
        ]
    )
    gradient = _gradient(OBJECTIVES["k2"](tokens).value, tokens)
    torch.testing.assert_close(gradient, -weights * residual[SEQUENCE] / S)


def test_k2_value_on_literal_numbers() -> None:
    tokens = Tokens(
        logprobs=torch.tensor([-1.0, -2.0, -0.5]),
        old_logprobs=torch.tensor([-1.5, -2.0, -1.0]),
        weights=torch.ones(3),
        sequence=torch.tensor([0, 0, 1]),
        advantages=torch.tensor([0.5, -0.5]),
    )
    # sequence 0: -(0.5)(-3) + 0.05 * 0.5^2; sequence 1: -(-0.5)(-0.5) + 0.05 * 0.5^2
    loss = k2_loss(tokens, tau=0.1, total_sequences=2).value
    torch.testing.assert_close(loss, torch.tensor((1.5 + 0.0125 - 0.25 + 0.0125) / 2))


def test_length_normalised_ratio_divides_by_tokens() -> None:
    tokens = Tokens(
        logprobs=torch.tensor([-1.0, -2.0]),
        old_logprobs=torch.tensor([-2.0, -4.0]),
        weights=torch.tensor([2.0, 1.0]),
        sequence=torch.tensor([0, 0]),
        advantages=torch.zeros(1),
    )
    plain = k2_loss(tokens, tau=2.0, total_sequences=1).value
    normalised = k2_loss(tokens, tau=2.0, total_sequences=1, length_normalised=True).value
    assert (plain.item(), normalised.item()) == (16.0, 4.0)


def test_a_ratio_is_exact_up_to_its_bound() -> None:
    found = ratio_of(torch.tensor([-30.0, -19.0, 19.0, 30.0], dtype=torch.float64))
    assert found.tolist() == pytest.approx([math.exp(x) for x in (-20, -19, 19, 20)])


def _one_sequence(log_ratio: list[float], weights: list[float]) -> Tokens:
    """Of advantage 1."""
    return Tokens(
        logprobs=torch.full((3,), -1.0, dtype=torch.float64),
        old_logprobs=-1.0 - torch.tensor(log_ratio, dtype=torch.float64),
        weights=torch.tensor(weights, dtype=torch.float64),
        sequence=torch.zeros(3, dtype=torch.long),
        advantages=torch.ones(1, dtype=torch.float64),
    )


def test_gspo_takes_the_mean_over_the_tokens_that_count() -> None:
    tokens = _one_sequence([0.2, 0.4, 9.0], [1.0, 1.0, 0.0])
    loss = gspo_loss(tokens, clip=Clip(1.0, 9.0), total_sequences=1)
    assert loss.value.item() == pytest.approx(-math.exp(0.3) * 2 / 3)


def test_gspo_clips_all_tokens_of_a_sequence() -> None:
    tokens = _one_sequence([0.0, 0.3, 0.6], [1.0, 1.0, 1.0])
    loss = gspo_loss(tokens, clip=Clip(0.2, 0.2), total_sequences=1)
    assert loss.clipped.tolist() == [True, True, True]
    assert loss.value.item() == pytest.approx(-1.2)


def _part(tokens: Tokens, sequences: list[int]) -> Tokens:
    """Some of the sequences, in this order."""
    chosen = torch.cat([torch.eq(SEQUENCE, i).nonzero().flatten() for i in sequences])
    number = {i: place for place, i in enumerate(sequences)}
    return Tokens(
        logprobs=tokens.logprobs[chosen],
        old_logprobs=tokens.old_logprobs[chosen],
        weights=tokens.weights[chosen],
        sequence=torch.tensor([number[i] for i in SEQUENCE[chosen].tolist()]),
        advantages=tokens.advantages[sequences],
    )


@everyone
@pytest.mark.parametrize("cut", [[[0], [1, 2, 3]], [[3, 1], [0], [2]]])
def test_micro_batches_in_any_order_add_up_to_one_batch(kind: str, cut: list[list[int]]) -> None:
    tokens = _tokens(7, _random(8, 0.5, 1.5))
    whole = OBJECTIVES[kind](tokens).value
    parts = sum(
        (OBJECTIVES[kind](_part(tokens, sequences)).value for sequences in cut),
        start=torch.zeros((), dtype=torch.float64),
    )
    torch.testing.assert_close(parts, whole, rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(_gradient(parts, tokens), _gradient(whole, tokens))


@everyone
def test_on_policy_gradient_is_reinforce(kind: str) -> None:
    """Under pi_old itself all are `-A ln pi(y_t)`, and differ by their denominators alone."""
    lengths = torch.bincount(SEQUENCE)[SEQUENCE]
    every = torch.ones(N, dtype=torch.float64)
    sums, means = every / S, every / lengths / S
    share = {"k2": sums, "dr_grpo": sums, "grpo": means, "gspo": means}
    tokens = _tokens(5, spread=0.0)
    gradient = _gradient(OBJECTIVES[kind](tokens).value, tokens)
    torch.testing.assert_close(gradient, -ADVANTAGES[SEQUENCE] * share.get(kind, every / N))


@everyone
def test_a_token_of_weight_0_has_no_gradient_and_changes_none(kind: str) -> None:
    weights = torch.ones(N, dtype=torch.float64)
    weights[[1, 6, 9]] = 0.0  # the last one is a whole sequence
    tokens = _tokens(12, weights)
    elsewhere = tokens.old_logprobs.clone()
    elsewhere[[1, 6, 9]] -= 5.0
    gradient = _gradient(OBJECTIVES[kind](tokens).value, tokens)
    assert gradient[[1, 6, 9]].tolist() == [0.0, 0.0, 0.0]
    moved = replace(tokens, old_logprobs=elsewhere)
    assert torch.equal(_gradient(OBJECTIVES[kind](moved).value, moved), gradient)


@everyone
@settings(max_examples=30, deadline=None)
@given(data=st.data())
def test_nothing_overflows(kind: str, data: st.DataObject) -> None:
    """One-token sequences, sequences without a loss token, equal rewards, absurd ratios."""
    lengths = data.draw(st.lists(st.integers(0, 3), min_size=1, max_size=4).filter(any))
    sequence = torch.repeat_interleave(torch.arange(len(lengths)), torch.tensor(lengths))
    count = len(sequence)
    number = st.floats(-1e4, 0, width=32)
    logprobs = torch.tensor(data.draw(st.lists(number, min_size=count, max_size=count)))
    tokens = Tokens(
        logprobs=logprobs.requires_grad_(),
        old_logprobs=torch.tensor(data.draw(st.lists(number, min_size=count, max_size=count))),
        weights=torch.tensor(
            data.draw(st.lists(st.sampled_from([0.0, 1.0, 2.0]), min_size=count, max_size=count))
        ),
        sequence=sequence,
        advantages=torch.tensor(
            data.draw(
                st.lists(
                    st.sampled_from([-1.0, 0.0, 1.0]),
                    min_size=len(lengths),
                    max_size=len(lengths),
                )
            )
        ),
    )
    loss = OBJECTIVES[kind](tokens)
    assert loss.value.isfinite() and loss.clipped.shape == sequence.shape
    assert _gradient(loss.value, tokens).isfinite().all()


def test_ptx_loss_is_the_token_mean() -> None:
    assert ptx_loss(torch.tensor([-1.0, -3.0]), total_tokens=4).item() == 1.0
