"""Traffic and time of one step of the recipe. Pure arithmetic.

Every sequence is as long as the engine allows; communication hides behind nothing.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

from model.activations import IMBALANCE, Pass
from model.config import Offload
from model.gqa import GqaConfig
from model.inventory import (
    Architecture,
    Role,
    Weight,
    active_count,
    is_moe,
    parameter_count,
    routed_experts,
)
from model.k2_config import K2Config
from model.owners import cut_elements, owned_elements, replicas
from rl.config import TrainConfig
from rl.hardware import Hardware
from rl.objective_config import OldLogprobs
from rl.plan_memory import FLOAT32, EngineMemory, LearnerMemory, number_bytes, takes_turns

MUON_BYTES = 2  # of a number that travels to be orthogonalised, and of its update
# Of an element with offload: gradient to the host, direction to the device, update back, weight.
OFFLOAD_BYTES = 14
ADAMW_OFFLOAD_BYTES = 8  # gradient to the host, weight back
NVME_BYTES = 4 * FLOAT32  # momentum and float32 weight, from the disk and back to it
ADAMW_NVME_BYTES = 6 * FLOAT32
FORWARDS = 2  # of a token: forward and backward; a layer that is recomputed adds one
NEWTON_SCHULZ_STEP = (4, 2)  # products of s x s by s x L and of s x s, in flops per s s L and s s s


@dataclass(frozen=True, slots=True, kw_only=True)
class Traffic:
    """Bytes that one learner rank sends in one optimiser step, on average."""

    micro_batches: int
    gradients: int  # reduce-scatter
    weights: int  # all-gather
    muon: int  # parts of cut matrices to their owners, updates back
    experts: int  # tokens to their experts and back
    offload: int  # between device and host or disk
    publish: int  # the whole model to the engines, once in an iteration; not of one rank

    @property
    def muon_over_adamw(self) -> float:
        """What MuonClip sends over what AdamW would: Moonlight's bar is 1.25."""
        adamw = self.gradients + self.weights
        return (adamw + self.muon) / adamw if adamw else 1.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Times:
    """Seconds of one iteration."""

    tokens: int
    compute: float  # forward and backward, and the log-probs of pi_old
    experts: float  # tokens to their experts and back
    collectives: float  # gradients and weights
    newton_schulz: float
    muon: float  # parts of cut matrices
    offload: float
    rollout: float
    publish: float
    verify: float  # digests of what was published, by the owner of every engine
    turns: float  # the learner's state to the host and back, where engines share its device
    overlapped: bool  # rollout runs beside training

    @property
    def training(self) -> float:
        """All optimiser steps of the iteration."""
        moved = self.experts + self.collectives + self.muon + self.offload
        return self.compute + self.newton_schulz + moved

    @property
    def step(self) -> float:
        """The iteration."""
        parts = (self.training, self.rollout)
        between = self.publish + self.verify + self.turns
        return (max(parts) if self.overlapped else sum(parts)) + between


@dataclass(frozen=True, slots=True, kw_only=True)
class Load:
    """What one rank is given in one optimiser step."""

    sequences: int
    length: int  # tokens
    micro_batches: int

    @property
    def tokens(self) -> int:
        """Of the rank with the most sequences."""
        return self.sequences * self.length


def load(config: TrainConfig, run: Pass) -> Load:
    """Policy and PTX sequences, dealt out whole."""
    sequences = config.rollout.groups_per_step * config.rollout.samples_per_group
    here = math.ceil(
        (sequences // config.objective.minibatches + config.objective.ptx_sequences)
        / config.parallel.shards
    )
    length = config.engine.max_model_len
    return Load(
        sequences=here,
        length=length,
        micro_batches=math.ceil(here / max(1, run.tokens // length)),
    )


def recomputed(config: TrainConfig, given: Load) -> float:
    """Forward passes for the log-probs of pi_old, over those of the iteration's steps.

    The first minibatch meets the iteration's first weights in its own step.
    """
    objective = config.objective
    if objective.old_logprobs is not OldLogprobs.learner:
        return 0.0
    sequences = config.rollout.groups_per_step * config.rollout.samples_per_group
    here = math.ceil(sequences // objective.minibatches / config.parallel.shards)
    return (objective.minibatches - 1) * here / (objective.minibatches * given.sequences)


def traffic(
    config: TrainConfig, architecture: Architecture, weights: Sequence[Weight], run: Pass
) -> Traffic:
    """Bytes sent by a rank in one optimiser step; rings send (n - 1) / n of a tensor."""
    parallel, given = config.parallel, load(config, run)
    experts = sum(w.elements for w in weights if w.role is Role.expert) // parallel.expert_parallel
    dense = sum(w.elements for w in weights if w.role in (Role.matrix, Role.adamw))
    sent = dense * _ring(parallel.shards) + experts * _ring(replicas(parallel))
    layers = sum(is_moe(architecture, i) for i in range(architecture.num_hidden_layers))
    # Dispatch and combine: two trips of a forward pass.
    trips = 2 * (FORWARDS + parallel.checkpoint_layers)
    row = architecture.hidden_size * run.compute_bytes * architecture.num_experts_per_tok
    muon = config.optimizer.muon
    travelling = {
        Offload.none: 0,
        Offload.cpu: OFFLOAD_BYTES if muon else ADAMW_OFFLOAD_BYTES,
        Offload.nvme: NVME_BYTES if muon else ADAMW_NVME_BYTES,
    }
    return Traffic(
        micro_batches=given.micro_batches,
        gradients=int(FLOAT32 * sent * (1 if parallel.zero_stage == 1 else given.micro_batches)),
        weights=int(
            run.weight_bytes * sent * (2 * given.micro_batches if parallel.zero_stage == 3 else 1)
        ),
        muon=int(muon * 2 * MUON_BYTES * cut_elements(weights, parallel) / parallel.shards),
        experts=int(trips * layers * given.tokens * row * _ring(parallel.expert_parallel)),
        offload=travelling[parallel.offload] * sum(owned_elements(weights, parallel).values()),
        publish=parameter_count(architecture) * number_bytes(config.engine.dtype),
    )


def times(
    config: TrainConfig,
    architecture: Architecture,
    weights: Sequence[Weight],
    run: Pass,
    hardware: Hardware,
    memory: tuple[LearnerMemory, EngineMemory],
) -> Times:
    """Seconds of one iteration."""
    learner, cache = memory
    parallel, given = config.parallel, load(config, run)
    sent, steps = traffic(config, architecture, weights, run), config.objective.minibatches
    peak = hardware.flops if run.compute_bytes == 2 else hardware.flops_float32
    again = recomputed(config, given)
    # In flops a backward pass is two forward passes; in trips to the experts it is one.
    passes = FORWARDS + 1 + parallel.checkpoint_layers + again
    trips = 1 + again / (FORWARDS + parallel.checkpoint_layers)
    gathers = 1 + again / 2 if parallel.zero_stage == 3 else 1.0
    flops = passes * given.tokens * forward_flops(architecture, given.length // 2)
    link = _link(parallel.shards, hardware) * hardware.network_efficiency
    expert_link = _link(parallel.expert_parallel, hardware) * hardware.network_efficiency
    away = hardware.host_bandwidth
    if parallel.offload is Offload.nvme:
        away = hardware.disk_bandwidth
    sequences = config.rollout.groups_per_step * config.rollout.samples_per_group
    unbalanced = IMBALANCE if parallel.expert_parallel > 1 else 1.0
    return Times(
        tokens=sequences * given.length,
        compute=steps * unbalanced * flops / (peak * hardware.train_efficiency),
        experts=steps * unbalanced * trips * sent.experts / expert_link,
        collectives=steps * (sent.gradients + gathers * sent.weights) / link,
        newton_schulz=steps
        * config.optimizer.muon
        * newton_schulz_flops(weights, config.optimizer.ns_steps)
        / (parallel.shards * hardware.flops * hardware.newton_schulz_efficiency),
        muon=steps * sent.muon / link,
        offload=steps * sent.offload / away,
        rollout=_rollout(config, architecture, hardware, cache),
        publish=sent.publish / (hardware.inter_node_bandwidth * hardware.network_efficiency),
        verify=sent.publish / hardware.hash_bandwidth,
        turns=2 * learner.away / hardware.host_bandwidth,
        overlapped=config.rollout.max_staleness > 0
        and not hardware.unified
        and not takes_turns(config, hardware),
    )


def forward_flops(architecture: Architecture, context: int) -> int:
    """Of one token that sees `context` others: two for every weight it meets, and attention."""
    tied = isinstance(architecture, GqaConfig) and architecture.tie_word_embeddings
    looked_up = 0 if tied else architecture.vocab_size * architecture.hidden_size
    if isinstance(architecture, K2Config):
        key = architecture.qk_nope_head_dim + architecture.qk_rope_head_dim
        sizes = key + architecture.v_head_dim
    else:
        sizes = 2 * architecture.head_dim
    attention = architecture.num_hidden_layers * architecture.num_attention_heads * sizes * context
    return 2 * (active_count(architecture) - looked_up + attention)


def newton_schulz_flops(weights: Sequence[Weight], steps: int) -> int:
    """Of all matrices once, in the plain form: X X^T, its square, and their product with X."""
    wide, square = NEWTON_SCHULZ_STEP
    total = 0
    for weight in weights:
        if weight.role in (Role.matrix, Role.expert):
            short, long = sorted((weight.shape[-2] // weight.stacked, weight.shape[-1]))
            count = weight.elements // weight.matrix_elements
            total += count * short * short * (wide * long + square * short)
    return steps * total


def _rollout(
    config: TrainConfig, architecture: Architecture, hardware: Hardware, cache: EngineMemory
) -> float:
    """Seconds to decode all sequences: reading weights and cache, or arithmetic if slower."""
    engine, length = config.engine, config.engine.max_model_len
    sequences = config.rollout.groups_per_step * config.rollout.samples_per_group
    here = math.ceil(sequences / config.cluster.rollout_workers)
    at_once = max(1, min(here, engine.max_num_seqs, cache.cached_tokens // length))
    ways, size = engine.tensor_parallel_size, number_bytes(engine.dtype)
    read = _weights_read(architecture, at_once) * size / ways
    read += at_once * length // 2 * cache.kv_bytes_per_token
    reading = read / (hardware.memory_bandwidth * hardware.decode_efficiency)
    peak = hardware.flops if size == 2 else hardware.flops_float32
    flops = at_once * forward_flops(architecture, length // 2) / ways
    reducing = 0.0
    if ways > 1:  # two sums over the devices in every layer
        moved = 2 * architecture.num_hidden_layers * at_once * architecture.hidden_size * size
        link = _link(ways, hardware) * hardware.network_efficiency
        calls = 2 * architecture.num_hidden_layers
        reducing = 2 * moved / link + calls * hardware.collective_latency
    decode = max(reading, flops / (peak * hardware.train_efficiency)) + reducing
    return math.ceil(here / at_once) * length * decode


def _weights_read(architecture: Architecture, sequences: int) -> float:
    """Weights that a decoding step of so many tokens meets: experts not chosen stay unread."""
    total, active = parameter_count(architecture), active_count(architecture)
    experts = routed_experts(architecture)
    if not experts:
        return total
    chosen = architecture.num_experts_per_tok / experts
    in_experts = (total - active) / (1 - chosen)
    return total - in_experts * (1 - chosen) ** sequences


def _ring(ranks: int) -> float:
    return (ranks - 1) / ranks


def _link(ranks: int, hardware: Hardware) -> float:
    """Bytes per second of a device among so many: the slower link if they span nodes."""
    within = ranks <= hardware.devices_per_node
    return hardware.intra_node_bandwidth if within else hardware.inter_node_bandwidth
