"""Bytes that a forward pass leaves for backward, by what our operations save. Pure arithmetic.

Every line below is one tensor that autograd keeps; the tests hold the sum against the network
itself. Sequences of one length are assumed: padding of unequal ones adds at most half to the
attention's part.

Shapes: T packed tokens, D hidden, R = T * K rows that go through the experts of a rank.
"""

import operator
from collections.abc import Sequence
from dataclasses import dataclass

from model.config import ParallelConfig
from model.gqa import GqaConfig
from model.inventory import Architecture, Role, Weight, is_moe
from model.k2_config import K2Config

PRECISE = 4  # bytes of what is float32 whatever the compute precision
INDEX = 8  # bytes of an int64
IMBALANCE = 1.25  # rows of the fullest expert-parallel rank over the mean
HEAD_TILE, HEAD_TILE_CPU = 1 << 24, 1 << 18  # logits held at once by kernels.logprob
ATTENTION_BLOCK = 1 << 26  # and by kernels.attention on a GPU; on a CPU next to nothing
ATTENTION_BYTES = 14  # of one of them in backward: probabilities, and gradients in two precisions


@dataclass(frozen=True, slots=True, kw_only=True)
class Pass:
    """One forward and backward pass of a rank."""

    tokens: int
    compute_bytes: int  # of one activation
    weight_bytes: int  # of one weight as it is held
    parallel: ParallelConfig
    cpu: bool  # kernels cut their work smaller
    int4_experts: bool = False  # forward reads rounded copies of the routed experts


@dataclass(frozen=True, slots=True, kw_only=True)
class Activations:
    """Bytes alive in one pass, beside weights, gradients and optimiser state."""

    saved: int  # from forward to backward: by the layers, or their inputs with checkpointing
    copies: int  # from forward to backward: weights in compute precision
    head: int  # when backward begins: final norm, log-probs and the gradients of the head
    layer: int  # when it is in one layer: what is computed again, and the largest fresh gradient

    @property
    def total(self) -> int:
        """At the height of the pass."""
        return self.saved + self.copies + max(self.head, self.layer)


def activations(config: Architecture, weights: Sequence[Weight], run: Pass) -> Activations:
    """What `run` needs at its height."""
    layers = [layer_saved(config, layer, run) for layer in range(config.num_hidden_layers)]
    copied = _copied(config, weights, run)
    inputs = run.tokens * config.hidden_size * run.compute_bytes
    fresh = max(_local(w, run.parallel) for w in weights if w.layer is not None)
    layer = fresh * run.weight_bytes + 3 * inputs
    if not run.cpu:
        layer += ATTENTION_BLOCK * ATTENTION_BYTES
    again = run.parallel.checkpoint_layers
    return Activations(
        saved=inputs * len(layers) if again else sum(layers),
        copies=0 if again else sum(copied),
        head=_head(config, run),
        layer=layer + (max(map(operator.add, layers, copied)) if again else 0),
    )


def layer_saved(config: Architecture, layer: int, run: Pass) -> int:
    """Bytes that one layer saves without checkpointing."""
    size, hidden = run.compute_bytes, config.hidden_size
    # Two norms: input, scale and output; transformers' keep the input in float32, and the quotient.
    if isinstance(config, K2Config):
        per_token = 2 * (2 * hidden * size + PRECISE) + _mla(config, size)
    else:
        per_token = 2 * (hidden * (PRECISE + 2 * size) + PRECISE) + _gqa(config, size)
    if not is_moe(config, layer):
        return run.tokens * (per_token + _swiglu(config.intermediate_size, size))
    return run.tokens * per_token + _moe(config, run)


def _mla(config: K2Config, size: int) -> int:
    """Per token: latents with their norms, then queries, keys, values and output of all heads."""
    heads = config.num_attention_heads
    key = config.qk_nope_head_dim + config.qk_rope_head_dim
    latents = 2 * (config.q_lora_rank or 0) + 2 * config.kv_lora_rank + config.qk_rope_head_dim
    attended = heads * (2 * key + 2 * config.v_head_dim)
    joined = heads * config.v_head_dim  # the output once more, tokens first
    return (latents + attended + joined) * size + (2 + heads) * PRECISE


def _gqa(config: GqaConfig, size: int) -> int:
    """Per token: norms of queries and keys; queries, keys, values and output of all heads."""
    heads, groups, head = config.num_attention_heads, config.num_key_value_heads, config.head_dim
    normed = (heads + groups) * (head * (PRECISE + size) + PRECISE) if config.qk_norm else 0
    attended = 4 * heads * head  # keys and values are repeated for every head
    joined = heads * head
    return normed + (attended + joined) * size + heads * PRECISE


def _swiglu(width: int, size: int) -> int:
    """Per token: gate, up, silu(gate) and their product."""
    return 4 * width * size


def _moe(config: Architecture, run: Pass) -> int:
    """Router, routed experts and shared expert."""
    size, hidden, chosen = run.compute_bytes, config.hidden_size, config.num_experts_per_tok
    if isinstance(config, K2Config):
        experts, shared = config.n_routed_experts, config.n_shared_experts
    else:
        experts, shared = config.num_experts, 0
    width = config.moe_intermediate_size
    router = experts * PRECISE + chosen * (2 * PRECISE + INDEX + size)
    if size != PRECISE:
        router += hidden * PRECISE
    spread = run.parallel.expert_parallel > 1  # rows are kept once more, as they came back
    row = ((3 if spread else 2) * hidden + 4 * width) * size + 2 * INDEX
    rows = run.tokens * chosen * (IMBALANCE if spread else 1)
    return run.tokens * (router + _swiglu(shared * width, size)) + int(rows * row)


def _local(weight: Weight, parallel: ParallelConfig) -> int:
    """Elements of the tensor that a rank multiplies with."""
    parts = parallel.expert_parallel if weight.role is Role.expert else 1
    return weight.elements // parts


def _copied(config: Architecture, weights: Sequence[Weight], run: Pass) -> list[int]:
    """Bytes of the cast or rounded matrices of every layer; the router's is float32 already."""
    total = [0] * config.num_hidden_layers
    for weight in weights:
        expert = weight.role is Role.expert
        cast = run.compute_bytes != run.weight_bytes and (expert or weight.role is Role.matrix)
        if weight.layer is None or weight.name.endswith("mlp.gate.weight"):
            continue
        if cast or (expert and run.int4_experts):
            total[weight.layer] += _local(weight, run.parallel) * run.compute_bytes
    return total


def _head(config: Architecture, run: Pass) -> int:
    """Final norm and log-probs, with the gradients of hidden states and head."""
    size, hidden = run.compute_bytes, config.hidden_size
    widened = run.weight_bytes if size != run.weight_bytes else 0
    per_token = hidden * (3 * size + size + PRECISE + widened) + 4 * PRECISE + 2 * INDEX
    tile = 3 * PRECISE * (HEAD_TILE_CPU if run.cpu else HEAD_TILE)
    return run.tokens * per_token + config.vocab_size * hidden * run.weight_bytes + tile
