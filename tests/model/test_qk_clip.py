"""Clipped heads have exactly gamma times their old logits; the others are untouched."""

from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from model.config import MuonClipConfig
from model.k2 import K2
from model.muonclip import MuonClip, parameter_groups
from model.qk_clip import qk_clip_gamma

IDS = torch.arange(40) % 48


def _clip(model: K2, gamma: Tensor) -> None:
    """Clip without an update: the optimiser's step with a rate of zero."""
    config = MuonClipConfig(learning_rate=0.0)
    optimizer = MuonClip(parameter_groups(model.named_parameters()), config)
    for parameter in model.parameters():
        parameter.grad = torch.zeros_like(parameter)
    optimizer.clip(dict(model.clip_rows(gamma)))
    optimizer.step()


def test_gamma_is_tau_over_the_largest_logit() -> None:
    largest = torch.tensor([[50.0, 100.0, 400.0], [-7.0, 0.0, 125.0]])
    gamma = qk_clip_gamma(largest, 100.0)
    torch.testing.assert_close(gamma, torch.tensor([[1.0, 1.0, 0.25], [1.0, 1.0, 0.8]]))


def test_logits_are_scaled_exactly(make_small: Callable[..., K2]) -> None:
    """Tolerance 1e-6 in float32: one rounding of each weight. One layer: a clip changes no input
    of another one.
    """
    model = make_small(num_hidden_layers=1)
    before = model(IDS, [40]).max_logits
    tau = before[0].sort().values[1:3].mean().item()
    assert tau > 0 and int((before > tau).sum()) == 2
    values = model.model.layers[0].self_attn.kv_b_proj.weight.detach().clone()
    _clip(model, qk_clip_gamma(before, tau))
    after = model(IDS, [40]).max_logits
    expected = torch.where(before > tau, tau, before)
    torch.testing.assert_close(after, expected, rtol=1e-6, atol=1e-6)
    changed = model.model.layers[0].self_attn.kv_b_proj.weight.unflatten(
        0, (4, 26)
    ) != values.unflatten(0, (4, 26))
    assert not changed[:, 16:].any()
    assert changed[:, :16].flatten(1).all(1).tolist() == (before[0] > tau).tolist()


def test_row_factors(make_small: Callable[..., K2]) -> None:
    model, twin = make_small(), make_small()
    gamma = torch.ones(3, 4)
    gamma[1, 2] = 0.25
    _clip(model, gamma)
    old, new = twin.state_dict(), model.state_dict()
    for name in old:
        ratio = torch.ones_like(old[name])
        if name == "model.layers.1.self_attn.q_b_proj.weight":
            ratio[2 * 80 : 2 * 80 + 16], ratio[2 * 80 + 16 : 3 * 80] = 0.5, 0.25
        if name == "model.layers.1.self_attn.kv_b_proj.weight":
            ratio[2 * 26 : 2 * 26 + 16] = 0.5
        torch.testing.assert_close(new[name], old[name] * ratio, msg=name)


@pytest.mark.parametrize("bad", [torch.inf, torch.nan])
def test_nothing_finite(bad: float) -> None:
    largest = torch.zeros(3, 4)
    largest[2, 1] = bad
    with pytest.raises(
        FloatingPointError, match=r"attention logit of layer 2, head 1 is (inf|nan)"
    ):
        qk_clip_gamma(largest, 100.0)
