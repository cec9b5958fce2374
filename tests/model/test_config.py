"""What the settings refuse by name."""

import pytest

from model.config import MuonClipConfig


def test_settings_of_the_optimiser_are_checked() -> None:
    with pytest.raises(ValueError, match=r"muonclip.momentum must be in \[0, 1\), got 1.5"):
        MuonClipConfig(momentum=1.5)
    with pytest.raises(ValueError, match=r"muonclip\.adam_betas"):
        MuonClipConfig(adam_betas=[0.9])
