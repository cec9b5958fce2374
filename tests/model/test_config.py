"""What the settings refuse by name."""

import math

import pytest

from model.config import MuonClipConfig


def test_settings_of_the_optimiser_are_checked() -> None:
    with pytest.raises(ValueError, match=r"optimizer.momentum must be in \[0, 1\), got 1.5"):
        MuonClipConfig(momentum=1.5)
    with pytest.raises(ValueError, match=r"optimizer\.adam_betas"):
        MuonClipConfig(adam_betas=[0.9])
    for name in ("learning_rate", "weight_decay", "adam_eps", "qk_clip_tau"):
        for value in (math.nan, math.inf, -1.0):
            with pytest.raises(ValueError, match=rf"optimizer\.{name} must be .*, got {value}"):
                MuonClipConfig(**{name: value})
