"""What transformers calls, called as it calls it."""

from types import SimpleNamespace

import pytest
import torch
from torch import Tensor

from kernels.attention import naive_causal_attention
from model.hf_backend import Packing, packed_attention


@pytest.fixture
def qkv() -> list[Tensor]:
    """One key head for two query heads; what projections give under autocast."""
    generator = torch.Generator().manual_seed(0)
    return [torch.randn(1, n, 12, 16, generator=generator).bfloat16() * 3 for n in (4, 2, 2)]


def _attend(qkv: list[Tensor], **given: object) -> tuple[Tensor, Tensor]:
    packing = Packing((5, 7), {})
    out, _ = packed_attention(
        SimpleNamespace(layer_idx=6), *qkv, None, scaling=0.3, temper_packing=packing, **given
    )
    return out, packing.max_logits[6]


def test_attention_is_the_naive_one_inside_each_sequence(qkv: list[Tensor]) -> None:
    wide = [x.double() for x in qkv]
    q, k, v = (x[0].transpose(0, 1) for x in wide)
    k, v = (x.repeat_interleave(2, dim=1) for x in (k, v))
    expected, largest = naive_causal_attention(q, k, v, (5, 7), 0.3)
    out, found = _attend(wide)
    # Two orders of fp64 sums.
    torch.testing.assert_close(out[0], expected, rtol=0, atol=1e-12)
    torch.testing.assert_close(found, largest, rtol=0, atol=1e-12)


def test_autocast_does_not_narrow_the_logits(qkv: list[Tensor]) -> None:
    plain = _attend(qkv)
    with torch.autocast("cpu", torch.bfloat16):
        found = _attend(qkv)
    assert found[1].dtype == torch.float32
    assert torch.equal(found[0], plain[0])
    assert torch.equal(found[1], plain[1])


@pytest.mark.parametrize(
    ("given", "says"),
    [
        ({"s_aux": torch.zeros(4)}, "s_aux"),
        ({"softcap": 50.0}, "softcap"),
        ({"sliding_window": 6}, "a sliding window of 6 tokens"),
    ],
)
def test_what_would_change_the_result_is_refused(
    qkv: list[Tensor], given: dict[str, object], says: str
) -> None:
    with pytest.raises(NotImplementedError, match=says):
        _attend(qkv, **given)


def test_a_window_wider_than_every_sequence_changes_nothing(qkv: list[Tensor]) -> None:
    assert torch.equal(_attend(qkv, sliding_window=7)[0], _attend(qkv)[0])
