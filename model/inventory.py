"""Every tensor of a network by its configuration alone: nothing is built. Pure arithmetic.

Names and shapes are those of `named_parameters()`, so that the list can be held against the network
built on the meta device. Buffers (the routers' biases) are listed too, as `Role.buffer`.
"""

import math
from collections.abc import Iterator
from dataclasses import dataclass
from enum import Enum

from model.gqa import GqaConfig
from model.k2_config import K2Config

Architecture = K2Config | GqaConfig


class Role(Enum):
    """How a tensor is trained and shared out."""

    matrix = "matrix"  # Muon
    expert = "expert"  # Muon, a stack of routed experts: spread over the expert-parallel ranks
    adamw = "adamw"  # gains, embedding, head
    buffer = "buffer"  # no gradient; every rank has it


@dataclass(frozen=True, slots=True, kw_only=True)
class Weight:
    """One tensor."""

    name: str
    shape: tuple[int, ...]
    role: Role
    layer: int | None = None  # None: outside the layers
    stacked: int = 1  # matrices that lie above one another in the last two dimensions

    @property
    def elements(self) -> int:
        """Numbers in it."""
        return math.prod(self.shape)

    @property
    def matrix_elements(self) -> int:
        """Numbers of one matrix that Newton-Schulz sees alone."""
        return self.shape[-2] // self.stacked * self.shape[-1]


def inventory(config: Architecture) -> tuple[Weight, ...]:
    """All tensors in the order of the network's modules."""
    head = Weight(
        name="lm_head.weight", shape=(config.vocab_size, config.hidden_size), role=Role.adamw
    )
    tied = isinstance(config, GqaConfig) and config.tie_word_embeddings
    return (
        Weight(
            name="model.embed_tokens.weight",
            shape=(config.vocab_size, config.hidden_size),
            role=Role.adamw,
        ),
        *(w for layer in range(config.num_hidden_layers) for w in layer_weights(config, layer)),
        Weight(name="model.norm.weight", shape=(config.hidden_size,), role=Role.adamw),
        *(() if tied else (head,)),
    )


def layer_weights(config: Architecture, layer: int) -> Iterator[Weight]:
    """The tensors of one layer."""
    prefix = f"model.layers.{layer}."
    shapes = _k2_shapes(config, layer) if isinstance(config, K2Config) else _gqa_shapes(config)
    for name, shape in shapes:
        expert = name.startswith("mlp.experts.")
        role = Role.expert if expert else Role.adamw if len(shape) == 1 else Role.matrix
        yield Weight(
            name=prefix + name,
            shape=shape,
            role=Role.buffer if name.endswith("_bias") else role,
            layer=layer,
            stacked=2 if name.endswith("experts.gate_up_proj") else 1,
        )


def is_moe(config: Architecture, layer: int) -> bool:
    """Whether a layer has routed experts."""
    if isinstance(config, K2Config):
        return layer >= config.first_k_dense_replace
    return config.num_experts > 0


def routed_experts(config: Architecture) -> int:
    """Experts of a MoE layer; 0 for a dense network."""
    return config.n_routed_experts if isinstance(config, K2Config) else config.num_experts


def parameter_count(config: Architecture) -> int:
    """Numbers in the released checkpoint: 1,026,408,232,448 for K2 (spec 1.5)."""
    return sum(weight.elements for weight in inventory(config))


def active_count(config: Architecture) -> int:
    """Numbers that one token meets: all but the experts not chosen (spec 1.5: 32.86 B for K2)."""
    experts = max(routed_experts(config), 1)
    return sum(
        w.elements * config.num_experts_per_tok // experts if w.role is Role.expert else w.elements
        for w in inventory(config)
    )


def kv_values_per_token(config: Architecture) -> int:
    """Numbers that the rollout engine caches for one token in all layers."""
    if isinstance(config, K2Config):
        return config.num_hidden_layers * (config.kv_lora_rank + config.qk_rope_head_dim)
    return config.num_hidden_layers * 2 * config.num_key_value_heads * config.head_dim


def _swiglu(prefix: str, hidden: int, width: int) -> Iterator[tuple[str, tuple[int, ...]]]:
    yield f"{prefix}gate_proj.weight", (width, hidden)
    yield f"{prefix}up_proj.weight", (width, hidden)
    yield f"{prefix}down_proj.weight", (hidden, width)


def _experts(experts: int, hidden: int, width: int) -> Iterator[tuple[str, tuple[int, ...]]]:
    yield "mlp.experts.gate_up_proj", (experts, 2 * width, hidden)
    yield "mlp.experts.down_proj", (experts, hidden, width)


def _k2_shapes(config: K2Config, layer: int) -> Iterator[tuple[str, tuple[int, ...]]]:
    hidden, heads = config.hidden_size, config.num_attention_heads
    nope, rope, value = config.qk_nope_head_dim, config.qk_rope_head_dim, config.v_head_dim
    q_rank, kv_rank = config.q_lora_rank, config.kv_lora_rank
    yield "input_layernorm.weight", (hidden,)
    if q_rank is None:
        yield "self_attn.q_proj.weight", (heads * (nope + rope), hidden)
    else:
        yield "self_attn.q_a_proj.weight", (q_rank, hidden)
        yield "self_attn.q_a_layernorm.weight", (q_rank,)
        yield "self_attn.q_b_proj.weight", (heads * (nope + rope), q_rank)
    yield "self_attn.kv_a_proj_with_mqa.weight", (kv_rank + rope, hidden)
    yield "self_attn.kv_a_layernorm.weight", (kv_rank,)
    yield "self_attn.kv_b_proj.weight", (heads * (nope + value), kv_rank)
    yield "self_attn.o_proj.weight", (hidden, heads * value)
    yield "post_attention_layernorm.weight", (hidden,)
    if not is_moe(config, layer):
        yield from _swiglu("mlp.", hidden, config.intermediate_size)
        return
    experts, width = config.n_routed_experts, config.moe_intermediate_size
    yield "mlp.gate.weight", (experts, hidden)
    yield "mlp.gate.e_score_correction_bias", (experts,)
    yield from _experts(experts, hidden, width)
    yield from _swiglu("mlp.shared_experts.", hidden, config.n_shared_experts * width)


def _gqa_shapes(config: GqaConfig) -> Iterator[tuple[str, tuple[int, ...]]]:
    hidden, size = config.hidden_size, config.head_dim
    heads, groups = config.num_attention_heads, config.num_key_value_heads
    for name, outputs in (("q", heads), ("k", groups), ("v", groups)):
        yield f"self_attn.{name}_proj.weight", (outputs * size, hidden)
        if config.qkv_bias:
            yield f"self_attn.{name}_proj.bias", (outputs * size,)
    yield "self_attn.o_proj.weight", (hidden, heads * size)
    if config.qk_norm:
        yield "self_attn.q_norm.weight", (size,)
        yield "self_attn.k_norm.weight", (size,)
    if config.num_experts:
        yield "mlp.gate.weight", (config.num_experts, hidden)
        yield from _experts(config.num_experts, hidden, config.moe_intermediate_size)
    else:
        yield from _swiglu("mlp.", hidden, config.intermediate_size)
    yield "input_layernorm.weight", (hidden,)
    yield "post_attention_layernorm.weight", (hidden,)
