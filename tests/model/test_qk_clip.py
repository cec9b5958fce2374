"""Clipped heads have exactly gamma times their old logits; the others are untouched."""

from collections.abc import Callable

import pytest
import torch

from model.k2 import K2
from model.qk_clip import qk_clip_

IDS = torch.arange(40) % 48


def test_logits_are_scaled_exactly(make_small: Callable[..., K2]) -> None:
    # One layer: a clip changes no input of another one.
    model = make_small(torch.float64, num_hidden_layers=1).double()
    before = model(IDS, [40]).max_logits
    tau = before[0].sort().values[1:3].mean().item()
    values = model.model.layers[0].self_attn.kv_b_proj.weight.detach().clone()
    assert tau > 0 and qk_clip_(model, before, tau) == 2
    after = model(IDS, [40]).max_logits
    expected = torch.where(before > tau, tau, before)
    torch.testing.assert_close(after, expected, rtol=1e-10, atol=1e-10)
    changed = model.model.layers[0].self_attn.kv_b_proj.weight.unflatten(
        0, (4, 26)
    ) != values.unflatten(0, (4, 26))
    assert not changed[:, 16:].any()
    assert changed[:, :16].flatten(1).all(1).tolist() == (before[0] > tau).tolist()


def test_row_factors(make_small: Callable[..., K2]) -> None:
    model, twin = make_small(), make_small()
    largest = torch.full((3, 4), 10.0)
    largest[1, 2] = 400.0  # gamma 1/4
    assert qk_clip_(model, largest, 100.0) == 1
    old, new = twin.state_dict(), model.state_dict()
    for name in old:
        ratio = torch.ones_like(old[name])
        if name == "model.layers.1.self_attn.q_b_proj.weight":
            ratio[2 * 80 : 2 * 80 + 16], ratio[2 * 80 + 16 : 3 * 80] = 0.5, 0.25
        if name == "model.layers.1.self_attn.kv_b_proj.weight":
            ratio[2 * 26 : 2 * 26 + 16] = 0.5
        torch.testing.assert_close(new[name], old[name] * ratio, msg=name)


def test_nothing_to_clip_and_nothing_finite(make_small: Callable[..., K2]) -> None:
    model = make_small()
    assert qk_clip_(model, torch.full((3, 4), -5.0), 100.0) == 0
    for bad in (torch.inf, torch.nan):
        largest = torch.zeros(3, 4)
        largest[2, 1] = bad
        with pytest.raises(ValueError, match=r"attention logit of layer 2, head 1 is (inf|nan)"):
            qk_clip_(model, largest, 100.0)
