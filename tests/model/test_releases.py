"""The released networks on the meta device. 1.026 T, 16 B and 671 B are the published sizes."""

from collections.abc import Callable

import pytest
import torch

from model.config import K2Config
from model.k2 import K2
from model.releases import deepseek_v3, kimi_k2_instruct, kimi_k2_thinking, kimi_k2p5, moonlight_16b


@pytest.mark.parametrize(
    ("release", "parameters"),
    [
        # Spec 1.5, router biases included; K2's releases differ in settings only.
        (kimi_k2_instruct, 1_026_408_232_448),
        (kimi_k2_thinking, 1_026_408_232_448),
        (kimi_k2p5, 1_026_408_232_448),
        (moonlight_16b, 15_960_110_208),
        (deepseek_v3, 671_026_419_200),
    ],
)
def test_parameters(release: Callable[[], K2Config], parameters: int) -> None:
    with torch.device("meta"):
        model = K2(release())
    assert sum(tensor.numel() for tensor in model.state_dict().values()) == parameters
