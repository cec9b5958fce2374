"""Tensors go into packed layouts from wherever they lie, without a copy where they lie together."""

import pytest
import torch
from torch import Tensor
from vllm import _custom_ops  # loads the kernels

from rollout.receive_plan import follows, joined, packed_experts, rows_of

EXPERTS, WIDTH, HIDDEN = 6, 32, 64


def expert_parts(lie: str) -> list[Tensor]:
    """Gate [WIDTH, HIDDEN] and up of every expert, in one block, two, or each on its own."""
    generator = torch.Generator().manual_seed(0)
    whole = torch.randn(EXPERTS * 2 * WIDTH, HIDDEN, generator=generator).bfloat16()
    parts = list(whole.split(WIDTH))
    if lie == "apart":
        return [part.clone() for part in parts]
    if lie == "in two files":  # the second begins in the middle of an expert
        cut = 5
        return [*parts[:cut], *whole[cut * WIDTH :].clone().split(WIDTH)]
    return parts


@pytest.mark.parametrize("lie", ["together", "in two files", "apart"])
def test_experts_are_packed_as_vllm_packs_them(lie: str):
    parts = expert_parts(lie)
    raw = torch.cat(parts).view(EXPERTS, 2 * WIDTH, HIDDEN)
    expected = _custom_ops.cpu_prepack_moe_weight(raw, "vec")
    target = torch.zeros_like(raw)
    packed_experts(lambda: target, "vec", 2)(parts)
    assert torch.equal(target, expected)
    assert not torch.equal(target, raw)
    target.zero_()
    packed_experts(lambda: target, "vec", 2)([part.float() for part in parts])
    assert torch.equal(target, expected)


def test_what_lies_together_is_not_copied():
    parts = expert_parts("together")
    view = joined(parts)
    assert view.data_ptr() == parts[0].data_ptr()
    assert torch.equal(view, torch.cat(parts))
    for other in (parts[1:] + parts[:1], parts[::2], [parts[0], parts[1].clone()]):
        copy = joined(other)
        assert copy.data_ptr() != other[0].data_ptr()
        assert torch.equal(copy, torch.cat(other))


def test_types_and_shapes_keep_tensors_apart():
    block = torch.arange(24.0)
    one, other = block[:12].view(3, 4), block[12:].view(3, 4)
    assert follows(one, other)
    assert not follows(other, one)
    assert not follows(one, block[12:].view(4, 3))
    assert not follows(one, block[12:].view(torch.int32).view(3, 4))
    assert not follows(one.T, other)


def test_padding_is_left_alone():
    target = torch.full((4, 2), 9.0)
    rows_of(target)([torch.ones(3, 2, dtype=torch.bfloat16)])
    assert target.tolist() == [[1, 1], [1, 1], [1, 1], [9, 9]]
