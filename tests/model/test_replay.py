"""Routing replay in the learner's network: against loops over tokens and experts, and by its parts.

Tolerance 1e-5 in fp32, on numbers of a few units: some ten roundings.
"""

from collections.abc import Callable

import pytest
import torch
from torch import Tensor
from torch.nn import functional

from model.feed_forward import MixtureOfExperts
from model.k2 import K2
from model.policy import Policy

LENGTHS = [5, 1, 17, 30]
TOKENS = sum(LENGTHS)


def _ids() -> Tensor:
    return torch.randint(3, 48, (TOKENS,), generator=torch.Generator().manual_seed(1))


def _choices() -> Tensor:
    """Three different experts of eight for every token and layer."""
    noise = torch.rand(2, TOKENS, 8, generator=torch.Generator().manual_seed(3))
    return noise.topk(3).indices.to(torch.int16)


def _replay() -> Tensor:
    """The same, without a record of every third token."""
    chosen = _choices()
    chosen[:, ::3] = -1
    return chosen


def _naive(layer: MixtureOfExperts, x: Tensor, replay: Tensor) -> tuple[Tensor, int]:
    """Spec 1.4 with R3: token by token, expert by expert; and how many choices differ."""
    rows, differing = [], 0
    for token, told in zip(x, replay.tolist(), strict=True):
        scores = (layer.gate.weight @ token).sigmoid()
        biased = (scores + layer.gate.e_score_correction_bias).tolist()
        own = sorted(range(8), key=lambda expert: -biased[expert])[:3]
        chosen = own if told[0] < 0 else told
        differing += len(set(chosen) - set(own))
        total = sum(scores[expert] for expert in chosen)
        row = layer.shared_experts(token[None])[0]
        for expert in chosen:
            gate, up = (layer.experts.gate_up_proj[expert] @ token).chunk(2)
            out = layer.experts.down_proj[expert] @ (functional.silu(gate) * up)
            row = row + layer.gate.factor * scores[expert] / total * out
        rows.append(row)
    return torch.stack(rows), differing


def test_output_and_gradients_are_those_of_the_loops(make_small: Callable[..., K2]) -> None:
    layer = make_small().model.layers[1].mlp
    assert isinstance(layer, MixtureOfExperts)
    replay = _replay()[0].long()
    random = torch.Generator().manual_seed(4)
    x = torch.randn(TOKENS, 32, generator=random, requires_grad=True)
    slope = torch.randn(TOKENS, 32, generator=random)
    wanted = [x, *layer.parameters()]
    out, routed = layer(x, replay)
    expected, differing = _naive(layer, x, replay)
    torch.testing.assert_close(out, expected, rtol=0, atol=1e-5)
    assert routed.differing == differing > TOKENS / 3
    ours = torch.autograd.grad((out * slope).sum(), wanted)
    theirs = torch.autograd.grad((expected * slope).sum(), wanted)
    for one, other in zip(ours, theirs, strict=True):
        assert other.norm() > 0 and (one - other).norm() < 1e-5 * other.norm()


def test_tokens_without_a_record_keep_the_routers_choice(make_small: Callable[..., K2]) -> None:
    model, ids = make_small(), _ids()
    own = model(ids, LENGTHS).hidden
    assert model.differing is None
    nothing = torch.full((2, TOKENS, 3), -1, dtype=torch.int16)
    assert torch.equal(model(ids, LENGTHS, nothing).hidden, own)
    assert model.differing == 0
    # Of the last sequence alone: the others are as they were.
    replay = _replay()
    replay[:, : -LENGTHS[-1]] = -1
    told = model(ids, LENGTHS, replay).hidden
    assert torch.equal(told[: -LENGTHS[-1]], own[: -LENGTHS[-1]])
    assert not torch.equal(told[-LENGTHS[-1] :], own[-LENGTHS[-1] :])


def test_a_network_that_does_not_follow_only_compares(make_small: Callable[..., K2]) -> None:
    model, ids, replay = make_small(), _ids(), _replay()
    own = model(ids, LENGTHS).hidden
    model.follow_(False)
    assert torch.equal(model(ids, LENGTHS, replay).hidden, own)
    differing = model.differing
    model.follow_(True)
    assert not torch.equal(model(ids, LENGTHS, replay).hidden, own)
    assert differing is not None and 0 < differing < (replay >= 0).sum()


def test_load_counts_the_experts_that_were_used(make_small: Callable[..., K2]) -> None:
    small, replay = make_small(), _choices()
    model = K2(small.config, count_load=True, checkpoint_layers=True)
    model.load_state_dict(small.state_dict())
    model(_ids(), LENGTHS, replay).hidden.sum().backward()
    counts = torch.stack([layer.flatten().long().bincount(minlength=8) for layer in replay])
    assert model.load is not None and torch.equal(model.load, counts)


def test_a_policy_has_the_logprobs_of_the_replay(make_small: Callable[..., K2]) -> None:
    model, ids = make_small(), _ids()
    mask = torch.ones(TOKENS, dtype=torch.bool)
    mask[torch.tensor([0, *LENGTHS]).cumsum(0)[:-1]] = False
    policy, warmth = Policy(model), torch.full((4,), 0.7)
    replay = _replay()
    logits = model.lm_head(model(ids, LENGTHS, replay).hidden) / 0.7
    expected = logits.log_softmax(-1)[:-1].gather(1, ids[1:, None])[mask[1:], 0]
    output = policy(ids, mask, LENGTHS, warmth, replay)
    torch.testing.assert_close(output.logprobs, expected, rtol=0, atol=1e-5)
    assert (output.logprobs - policy(ids, mask, LENGTHS, warmth).logprobs).abs().max() > 0.1


@pytest.mark.parametrize("row", [[-2, -2, -2], [0, 1, -1], [0, 1, 8]])
def test_half_a_record_is_refused(make_small: Callable[..., K2], row: list[int]) -> None:
    replay = _replay()
    replay[1, 7] = torch.tensor(row)
    with pytest.raises(ValueError, match="experts below 8, or -1 for all of a token, got"):
        make_small()(_ids(), LENGTHS, replay)
