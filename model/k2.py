"""The K2 network over packed sequences. Read it beside sections 1.2-1.4 of the specification.

Parameter names are those of the released checkpoint, except that the routed experts of a layer are
two fused tensors. Weights keep their own precision (fp32 masters); activations, and the weights
they meet, are in `compute_dtype`. Router, normalisation statistics, rotation and attention logits
are at least fp32 whatever the compute precision.

Shapes: T packed tokens, D hidden, N heads, E experts, K experts per token, I expert width.
"""

import math
from collections.abc import Sequence
from typing import NamedTuple

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn
from torch.nn import functional

from kernels.attention import causal_attention
from kernels.experts import routed_experts
from kernels.rms_norm import rms_norm
from model.config import K2Config, RopeScaling


class K2Output(NamedTuple):
    """What one forward pass gives back. `kernels.logprob` turns it into log-probs with lm_head."""

    hidden: Float[Tensor, "T D"]  # after the final norm
    max_logits: Float[
        Tensor, "layers N"
    ]  # largest scaled attention logit of every head, no gradient


class Linear(nn.Linear):
    """No bias; the weight is cast to the activation's precision."""

    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__(inputs, outputs, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        """x @ weight.T."""
        return functional.linear(x, self.weight.to(x.dtype))


class RMSNorm(nn.Module):
    """Root-mean-square norm with a gain."""

    def __init__(self, size: int, eps: float) -> None:
        super().__init__()
        self.eps = eps
        self.weight = nn.Parameter(torch.ones(size))

    def forward(self, x: Tensor) -> Tensor:
        """x / rms(x) * weight."""
        return rms_norm(x, self.weight, self.eps)


class SwiGLU(nn.Module):
    """down( silu(gate(x)) * up(x) )."""

    def __init__(self, hidden: int, width: int) -> None:
        super().__init__()
        self.gate_proj = Linear(hidden, width)
        self.up_proj = Linear(hidden, width)
        self.down_proj = Linear(width, hidden)

    def forward(self, x: Float[Tensor, "T D"]) -> Float[Tensor, "T D"]:
        """Spec 1.2."""
        return self.down_proj(functional.silu(self.gate_proj(x)) * self.up_proj(x))


def yarn_corrections(rope: RopeScaling, dim: int, theta: float) -> tuple[int, int]:
    """First and last rotary pair of YaRN's ramp: 19 and 20 for K2 (spec 1.3)."""

    def pair(rotations: float) -> float:
        return (
            dim
            * math.log(rope.original_max_position_embeddings / (2 * math.pi * rotations))
            / (2 * math.log(theta))
        )

    return max(math.floor(pair(rope.beta_fast)), 0), min(math.ceil(pair(rope.beta_slow)), dim - 1)


def rope_frequencies(config: K2Config) -> Float[Tensor, " pairs"]:
    """Angle per position of every rotary pair, fp32; YaRN stretches the slow ones (spec 1.3)."""
    dim, rope = config.qk_rope_head_dim, config.rope_scaling
    pairs = torch.arange(dim // 2, dtype=torch.float32)
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
    return (
        plain
        * (1 + 0.1 * config.rope_scaling.mscale_all_dim * math.log(config.rope_scaling.factor)) ** 2
    )


def rotate(x: Float[Tensor, "T N H"], rotation: Tensor) -> Float[Tensor, "T N H"]:
    """Turn the interleaved pairs (2i, 2i + 1) by rotation [T, 1, H / 2], complex."""
    pairs = torch.view_as_complex(x.to(rotation.real.dtype).unflatten(-1, (-1, 2)))
    return torch.view_as_real(pairs * rotation).flatten(-2).to(x.dtype)


class Attention(nn.Module):
    """Multi-head latent attention (spec 1.3)."""

    def __init__(self, config: K2Config) -> None:
        super().__init__()
        self.heads = config.num_attention_heads
        self.nope, self.rope, self.value = (
            config.qk_nope_head_dim,
            config.qk_rope_head_dim,
            config.v_head_dim,
        )
        self.latent, self.scale = config.kv_lora_rank, softmax_scale(config)
        self.q_a_proj = Linear(config.hidden_size, config.q_lora_rank)
        # Both latent norms take rms_norm_eps, as in the rollout engine; transformers leaves them at
        # 1e-6 whatever the config says (spec 1.1).
        self.q_a_layernorm = RMSNorm(config.q_lora_rank, config.rms_norm_eps)
        self.q_b_proj = Linear(config.q_lora_rank, self.heads * (self.nope + self.rope))
        self.kv_a_proj_with_mqa = Linear(config.hidden_size, self.latent + self.rope)
        self.kv_a_layernorm = RMSNorm(self.latent, config.rms_norm_eps)
        self.kv_b_proj = Linear(self.latent, self.heads * (self.nope + self.value))
        self.o_proj = Linear(self.heads * self.value, config.hidden_size)

    def forward(
        self, x: Float[Tensor, "T D"], rotation: Tensor, lengths: Sequence[int]
    ) -> tuple[Float[Tensor, "T D"], Float[Tensor, " N"]]:
        """Output and each head's largest logit."""
        q = self.q_b_proj(self.q_a_layernorm(self.q_a_proj(x))).unflatten(-1, (self.heads, -1))
        q_c, q_r = q.split([self.nope, self.rope], dim=-1)
        c_kv, k_r = self.kv_a_proj_with_mqa(x).split([self.latent, self.rope], dim=-1)
        kv = self.kv_b_proj(self.kv_a_layernorm(c_kv)).unflatten(-1, (self.heads, -1))
        k_c, v = kv.split([self.nope, self.value], dim=-1)
        q_r = rotate(q_r, rotation)
        k_r = rotate(k_r[:, None], rotation).expand(-1, self.heads, -1)  # one key for all heads
        q, k = torch.cat([q_c, q_r], dim=-1), torch.cat([k_c, k_r], dim=-1)
        out, max_logit = causal_attention(q, k, v, lengths, self.scale)
        return self.o_proj(out.flatten(1)), max_logit


class Router(nn.Module):
    """Sigmoid router (spec 1.4): the bias helps to choose the experts, never to weight them."""

    e_score_correction_bias: Tensor  # [E] fp32

    def __init__(self, config: K2Config) -> None:
        super().__init__()
        self.per_token, self.factor = config.num_experts_per_tok, config.routed_scaling_factor
        self.weight = nn.Parameter(torch.empty(config.n_routed_experts, config.hidden_size))
        self.register_buffer("e_score_correction_bias", torch.zeros(config.n_routed_experts))

    def forward(self, x: Float[Tensor, "T D"]) -> tuple[Int[Tensor, "T K"], Float[Tensor, "T K"]]:
        """Chosen experts and their weights."""
        precise = torch.promote_types(x.dtype, torch.float32)
        scores = functional.linear(x.to(precise), self.weight.to(precise)).sigmoid()
        chosen = (
            (scores.detach() + self.e_score_correction_bias)
            .topk(self.per_token, dim=-1, sorted=False)
            .indices
        )
        mine = scores.gather(1, chosen)
        return chosen, self.factor * mine / (mine.sum(-1, keepdim=True) + 1e-20)


class Experts(nn.Module):
    """The routed experts of one layer; an expert's gate rows come before its up rows."""

    def __init__(self, config: K2Config) -> None:
        super().__init__()
        experts, hidden, width = (
            config.n_routed_experts,
            config.hidden_size,
            config.moe_intermediate_size,
        )
        self.gate_up_proj = nn.Parameter(torch.empty(experts, 2 * width, hidden))
        self.down_proj = nn.Parameter(torch.empty(experts, hidden, width))

    def forward(self, x: Tensor, chosen: Tensor, weights: Tensor) -> Float[Tensor, "T D"]:
        """Weighted sum over a token's experts."""
        return routed_experts(
            x, self.gate_up_proj.to(x.dtype), self.down_proj.to(x.dtype), chosen, weights
        )


class MixtureOfExperts(nn.Module):
    """Routed experts plus the shared expert, which is unscaled (spec 1.4)."""

    def __init__(self, config: K2Config) -> None:
        super().__init__()
        self.gate = Router(config)
        self.experts = Experts(config)
        self.shared_experts = SwiGLU(
            config.hidden_size, config.n_shared_experts * config.moe_intermediate_size
        )

    def forward(self, x: Float[Tensor, "T D"]) -> Float[Tensor, "T D"]:
        """sum_i g_i Expert_i(x) + SharedExpert(x)."""
        return self.experts(x, *self.gate(x)) + self.shared_experts(x)


class Layer(nn.Module):
    """h = x + MLA(norm(x)); y = h + FFN(norm(h)) (spec 1.2)."""

    def __init__(self, config: K2Config, index: int) -> None:
        super().__init__()
        self.input_layernorm = RMSNorm(config.hidden_size, config.rms_norm_eps)
        self.self_attn = Attention(config)
        self.post_attention_layernorm = RMSNorm(config.hidden_size, config.rms_norm_eps)
        dense = index < config.first_k_dense_replace
        self.mlp = (
            SwiGLU(config.hidden_size, config.intermediate_size)
            if dense
            else MixtureOfExperts(config)
        )

    def forward(
        self, x: Float[Tensor, "T D"], rotation: Tensor, lengths: Sequence[int]
    ) -> tuple[Float[Tensor, "T D"], Float[Tensor, " N"]]:
        """Output and each head's largest attention logit."""
        attended, max_logit = self.self_attn(self.input_layernorm(x), rotation, lengths)
        x = x + attended
        return x + self.mlp(self.post_attention_layernorm(x)), max_logit


class Decoder(nn.Module):
    """Embedding, layers, final norm: what the released names call `model`."""

    def __init__(self, config: K2Config) -> None:
        super().__init__()
        self.embed_tokens = nn.Embedding(config.vocab_size, config.hidden_size)
        self.layers = nn.ModuleList(
            Layer(config, index) for index in range(config.num_hidden_layers)
        )
        self.norm = RMSNorm(config.hidden_size, config.rms_norm_eps)


class K2(nn.Module):
    """The network. Weights start as torch makes them: call `initialize_` or load a checkpoint."""

    def __init__(self, config: K2Config, compute_dtype: torch.dtype = torch.float32) -> None:
        super().__init__()
        self.config = config
        self.compute_dtype = compute_dtype
        self.model = Decoder(config)
        self.lm_head = Linear(config.hidden_size, config.vocab_size)

    def forward(self, ids: Int[Tensor, " T"], lengths: Sequence[int]) -> K2Output:
        """Hidden states of sequences laid end to end; `lengths` are theirs and sum to T."""
        if sum(lengths) != len(ids) or min(lengths, default=0) < 1:
            raise ValueError(
                f"lengths must be positive and sum to {len(ids)} tokens, got {list(lengths)}"
            )
        rotation = self._rotation(lengths, ids.device)
        x = self.model.embed_tokens(ids).to(self.compute_dtype)
        max_logits = []
        for layer in self.model.layers:
            x, max_logit = layer(x, rotation, lengths)
            max_logits.append(max_logit)
        return K2Output(self.model.norm(x), torch.stack(max_logits))

    def _rotation(self, lengths: Sequence[int], device: torch.device) -> Tensor:
        """e^(i position frequency) of every token: [T, 1, rotary pairs], complex."""
        precise = torch.promote_types(self.compute_dtype, torch.float32)
        sizes = torch.tensor(lengths)
        starts = (sizes.cumsum(0) - sizes).repeat_interleave(sizes)
        positions = torch.arange(len(starts)) - starts
        angles = torch.outer(positions.to(torch.float32), rope_frequencies(self.config)).to(precise)
        return torch.polar(torch.ones_like(angles), angles)[:, None].to(device)

    @torch.no_grad()
    def initialize_(self, seed: int) -> None:
        """Seeded start: matrices normal with initializer_range, gains one, router bias zero."""
        generator = torch.Generator(device=self.lm_head.weight.device).manual_seed(seed)
        for parameter in self.parameters():
            if parameter.dim() == 1:
                parameter.fill_(1.0)
            else:
                parameter.normal_(0.0, self.config.initializer_range, generator=generator)
