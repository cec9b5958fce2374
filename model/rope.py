"""Rotary positions with YaRN, and the softmax scale that goes with them (spec 1.3).

Shapes: T packed tokens, N heads, H size of the rotary part.
"""

import math
from collections.abc import Sequence

import torch
from jaxtyping import Float
from torch import Tensor

from model.k2_config import K2Config, RopeScaling


def yarn_corrections(rope: RopeScaling, dim: int, theta: float) -> tuple[int, int]:
    """First and last rotary pair of YaRN's ramp: 19 and 20 for K2."""

    def pair(rotations: float) -> float:
        return (
            dim
            * math.log(rope.original_max_position_embeddings / (2 * math.pi * rotations))
            / (2 * math.log(theta))
        )

    return max(math.floor(pair(rope.beta_fast)), 0), min(math.ceil(pair(rope.beta_slow)), dim - 1)


def rope_frequencies(config: K2Config) -> Float[Tensor, " pairs"]:
    """Angle per position of every rotary pair, fp32; YaRN stretches the slow ones."""
    dim, rope = config.qk_rope_head_dim, config.rope_scaling
    pairs = torch.arange(dim // 2, dtype=torch.float32, device="cpu")
    plain = config.rope_theta ** (-2 * pairs / dim)
    if rope is None:
        return plain
    low, high = yarn_corrections(rope, dim, config.rope_theta)
    ramp = ((pairs - low) / max(high - low, 0.001)).clamp(0, 1)
    return plain / rope.factor * ramp + plain * (1 - ramp)


def softmax_scale(config: K2Config) -> float:
    """s of spec 1.3: 0.130861 for K2-Instruct, not 192^-0.5."""
    plain = (config.qk_nope_head_dim + config.qk_rope_head_dim) ** -0.5
    if config.rope_scaling is None:
        return plain
    m = 1 + 0.1 * config.rope_scaling.mscale_all_dim * math.log(config.rope_scaling.factor)
    return plain * m**2


def rotations(config: K2Config, lengths: Sequence[int], dtype: torch.dtype) -> Tensor:
    """Complex [T, 1, H / 2] of positions that start anew in every sequence; `dtype` is real."""
    sizes = torch.tensor(lengths, device="cpu")
    starts = (sizes.cumsum(0) - sizes).repeat_interleave(sizes)
    positions = torch.arange(len(starts), device="cpu") - starts
    angles = torch.outer(positions.to(torch.float32), rope_frequencies(config)).to(dtype)
    return torch.polar(torch.ones_like(angles), angles)[:, None]


def rotate(x: Float[Tensor, "T N H"], rotation: Tensor) -> Float[Tensor, "T N H"]:
    """Turn the interleaved pairs (2i, 2i + 1) by rotation [T, 1, H / 2], complex."""
    pairs = torch.view_as_complex(x.to(rotation.real.dtype).unflatten(-1, (-1, 2)))
    return torch.view_as_real(pairs * rotation).flatten(-2).to(x.dtype)
