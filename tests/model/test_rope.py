"""The rotation's and the softmax's numbers in the specification (1.1, 1.3)."""

import math

import pytest
import torch

from model.config import K2Config, RopeScaling
from model.releases import deepseek_v3, kimi_k2_instruct, kimi_k2_thinking, kimi_k2p5, moonlight_16b
from model.rope import rope_frequencies, rotate, rotations, softmax_scale, yarn_corrections


def test_softmax_scale() -> None:
    assert softmax_scale(kimi_k2_instruct()) == pytest.approx(0.130861, abs=5e-7)
    assert softmax_scale(kimi_k2_thinking()) == pytest.approx(0.144680, abs=5e-7)
    assert softmax_scale(kimi_k2p5()) == pytest.approx(0.144680, abs=5e-7)
    assert softmax_scale(moonlight_16b()) == pytest.approx(0.072169, abs=5e-7)
    # DeepSeek-V3: 192^-0.5 (1 + 0.1 ln 40)^2
    assert softmax_scale(deepseek_v3()) == pytest.approx(0.135234, abs=5e-7)


def test_the_ramp_of_every_release() -> None:
    assert yarn_corrections(RopeScaling(), 64, 50000.0) == (19, 20)
    assert yarn_corrections(RopeScaling(beta_fast=32.0), 64, 50000.0) == (8, 20)
    plain = 50000.0 ** (-torch.arange(32) / 32)
    # beta_fast 1, a hard switch: pairs up to 19 as they are, from 20 on slowed 32 or 64 times.
    for config, factor in ((kimi_k2_instruct(), 32), (kimi_k2_thinking(), 64)):
        torch.testing.assert_close(rope_frequencies(config)[:20], plain[:20])
        torch.testing.assert_close(rope_frequencies(config)[20:], plain[20:] / factor)
    # beta_fast 32: pair 14 is half way up from 8 to 20.
    gentle = rope_frequencies(kimi_k2p5())
    torch.testing.assert_close(gentle[:9], plain[:9])
    torch.testing.assert_close(gentle[14], plain[14] * (0.5 + 0.5 / 64))
    torch.testing.assert_close(gentle[20:], plain[20:] / 64)
    torch.testing.assert_close(rope_frequencies(moonlight_16b()), plain)


def test_neighbouring_numbers_turn_together() -> None:
    # One pair at one radian per position, positions 0, 1 and, in the second sequence, 0.
    config = K2Config(qk_rope_head_dim=2, rope_scaling=None)
    turn = rotations(config, [2, 1], torch.float64)
    x = torch.tensor([[3.0, 4.0]], dtype=torch.float64).expand(3, 1, 2)
    cos, sin = math.cos(1), math.sin(1)
    expected = torch.tensor([[3, 4], [3 * cos - 4 * sin, 3 * sin + 4 * cos], [3, 4]])
    torch.testing.assert_close(rotate(x, turn)[:, 0], expected.double(), rtol=0, atol=1e-6)
