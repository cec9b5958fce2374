"""Bytes of a learner rank and of an engine's device, part by part. Pure arithmetic."""

import itertools
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from model.activations import Activations, Pass, activations
from model.config import Offload, ParallelConfig, Precision
from model.gqa import GqaConfig
from model.inventory import (
    Architecture,
    Role,
    Weight,
    inventory,
    kv_values_per_token,
    parameter_count,
)
from model.owners import cut_elements, elements, held, owned_elements
from rl.config import Placement, TrainConfig, Transport
from rl.hardware import Hardware
from rollout.config import Dtype

FLOAT32 = 4
# Muon: what a batch of updates takes, and the Newton-Schulz of a chunk of it.
MUON_BATCH = 1 << 25
MUON_CHUNK = 1 << 18  # on CPU; on GPU a batch is one chunk
CUT_BYTES = 8  # per element of a batch of matrices that travel: sent, received, joined, stacked
# The engine's own: elements of a bucket of gradients, of the part of a ZeRO-3 optimiser that is
# updated at once, and of the weights that ZeRO-3 keeps gathered.
BUCKET_ELEMENTS = 50_000_000
SUB_GROUP_ELEMENTS = 1_000_000_000
LIVE_ELEMENTS = 1_000_000_000
# On the device of the relay that sends and of the one that receives: pieces on their way.
RELAY_PIECES = (1 << 27) + (1 << 28)


@dataclass(frozen=True, slots=True, kw_only=True)
class LearnerMemory:
    """Bytes of one learner rank: the fullest."""

    weights: int
    gradients: int
    optimizer: int
    activations: Activations
    step_buffers: int  # of the optimiser's step, when activations are gone
    buckets: int  # of collectives: gradients on their way, weights gathered
    transfer: int  # of weights on their way to the engines
    reserved: int
    engines: int  # of engines that sleep on the device: what is no tensor of theirs
    relays: int  # of those that carry weights between hosts, on the first device of a host
    host: int  # of the node's memory, for offloaded state and its gradients
    away: int  # of the node's memory, for all the rest in the engines' turn
    shared: int  # of the node's memory, by all its ranks: versions of the weights for the engines
    snapshot: int  # of the node's memory, by all its ranks: what a checkpoint is written from

    @property
    def total(self) -> int:
        """On the device."""
        states = self.weights + self.gradients + self.optimizer + self.reserved
        moving = self.buckets + self.transfer + self.engines + self.relays
        return states + moving + max(self.activations.total, self.step_buffers)


@dataclass(frozen=True, slots=True, kw_only=True)
class EngineMemory:
    """Bytes of one device of a rollout engine."""

    weights: int
    kv_cache: int
    transfer: int
    reserved: int
    learner: int  # of a learner that is away: what is no tensor of its own
    relays: int  # of those that carry weights between hosts, on the first device of a host
    shared: int  # of the node's memory, by the whole engine: its own copy of the weights
    received: int  # of the node's memory, for all its engines: weights that other hosts have sent
    kv_bytes_per_token: int
    cached_tokens: int  # that fit the cache

    @property
    def total(self) -> int:
        """On the device."""
        others = self.reserved + self.learner + self.relays
        return self.weights + self.kv_cache + self.transfer + others


def takes_turns(config: TrainConfig, hardware: Hardware) -> bool:
    """Whether learner and engines leave their devices to each other; the host is not left."""
    return config.cluster.placement is Placement.colocated and not hardware.unified


def number_bytes(dtype: Dtype | Precision) -> int:
    """Bytes of one number."""
    return 4 if dtype.value == "float32" else 2


def forward_pass(config: TrainConfig, hardware: Hardware) -> Pass:
    """The largest forward and backward pass of a rank: a longer sequence goes alone."""
    return Pass(
        tokens=max(config.policy.micro_batch_tokens, config.engine.max_model_len),
        compute_bytes=number_bytes(config.policy.dtype),
        weight_bytes=number_bytes(config.parallel.weights),
        parallel=config.parallel,
        cpu=hardware.unified,
        int4_experts=config.policy.int4_experts,
    )


def learner_memory(
    config: TrainConfig,
    architecture: Architecture,
    weights: Sequence[Weight],
    hardware: Hardware,
) -> LearnerMemory:
    """Bytes of rank 0, which none exceeds."""
    parallel, run = config.parallel, forward_pass(config, hardware)
    mine = owned_elements(weights, parallel)
    total = sum(mine.values())
    kept = total if parallel.zero_stage == 3 else elements(held(weights, parallel, rank=0))
    buffers = sum(w.elements for w in weights if w.role is Role.buffer)
    # The engine keeps float32 weights of its own, even of weights that are float32 already.
    state = FLOAT32 * (total + _moments(config, mine))
    live = activations(architecture, weights, run)
    away = parallel.offload is not Offload.none
    # Offloading takes the gradients of the state along.
    waiting = FLOAT32 * total if away else 0
    gradients = run.weight_bytes * kept
    if parallel.zero_stage > 1:
        gradients = FLOAT32 * total - waiting
    on_device = run.weight_bytes * kept + FLOAT32 * buffers
    optimizer = 0 if away else state
    buckets = _buckets(weights, run, live.total)
    turns = takes_turns(config, hardware)
    return LearnerMemory(
        weights=on_device,
        gradients=gradients,
        optimizer=optimizer,
        activations=live,
        step_buffers=_step_buffers(config, weights, {} if away else mine, run),
        buckets=buckets,
        transfer=2 * config.weights.bucket_bytes,
        reserved=hardware.reserved_bytes,
        engines=hardware.reserved_bytes if turns else 0,
        relays=relay_bytes(config, hardware),
        away=on_device + gradients + optimizer + buckets if turns else 0,
        host=waiting + (state if parallel.offload is Offload.cpu else 0),
        shared=shared_bytes(config, weights, hardware),
        snapshot=snapshot_bytes(config, weights, hardware),
    )


def shared_bytes(config: TrainConfig, weights: Sequence[Weight], hardware: Hardware) -> int:
    """Of the fullest learner node: two versions of what its shards publish take turns.

    With delta, what changed between them lies beside them: as much again, at the most.
    """
    versions = 3 if config.weights.delta else 2
    elements = published_elements(weights, config.parallel, _ranks(config, hardware))
    return versions * elements * number_bytes(config.engine.dtype)


def snapshot_bytes(config: TrainConfig, weights: Sequence[Weight], hardware: Hardware) -> int:
    """Of the fullest learner node: its shards' copies for a checkpoint (`model.snapshot`).

    Weights of less than float32 are copied a second time, as the optimiser has them. State that
    lies on a disk is written from there.
    """
    parallel, ranks = config.parallel, _ranks(config, hardware)
    written = published_elements(weights, parallel, ranks) * number_bytes(parallel.weights)
    if parallel.offload is Offload.nvme:
        return written
    mine = owned_elements(weights, parallel)
    narrow = parallel.weights is not Precision.float32
    state = FLOAT32 * (narrow * sum(mine.values()) + _moments(config, mine))
    return written + min(ranks, parallel.shards) * state


def _moments(config: TrainConfig, mine: Mapping[Role, int]) -> int:
    """Numbers that the optimiser keeps: one of an element that Muon updates, else two."""
    total = sum(mine.values())
    return total + (mine[Role.adamw] if config.optimizer.muon else total)


def _ranks(config: TrainConfig, hardware: Hardware) -> int:
    """Learner ranks that a node has room for."""
    return config.parallel.shards if hardware.unified else hardware.devices_per_node


def published_elements(weights: Sequence[Weight], parallel: ParallelConfig, ranks: int) -> int:
    """What the shards of a node of so many `ranks` publish, at the most."""
    return max(node.total() for node in published_layers(weights, parallel, ranks))


def published_layers(
    weights: Sequence[Weight], parallel: ParallelConfig, ranks: int
) -> list[Counter[int]]:
    """Elements by layer that the shards of each node of so many `ranks` publish (`Shard.tensors`).

    Experts that are spread come from the first that hold them, all else is dealt out tensor by
    tensor. What is in no layer is layer 0, as where it is published (`model.send_weights`).
    """
    nodes = [Counter[int]() for _ in range(0, parallel.shards, ranks)]
    dealt = itertools.cycle(range(parallel.shards))
    for weight in weights:
        layer = 0 if weight.layer is None else 1 + weight.layer
        if weight.role is Role.expert and parallel.expert_parallel > 1:
            for rank in range(parallel.expert_parallel):
                nodes[rank // ranks][layer] += weight.elements // parallel.expert_parallel
        else:
            nodes[next(dealt) // ranks][layer] += weight.elements
    return nodes


def engine_memory(
    config: TrainConfig, architecture: Architecture, hardware: Hardware
) -> EngineMemory:
    """Bytes of one device of one engine. Every device caches MLA's latents whole (vLLM)."""
    engine = config.engine
    ways = engine.tensor_parallel_size
    per_token = kv_values_per_token(architecture) * number_bytes(engine.dtype)
    if isinstance(architecture, GqaConfig):
        per_token //= min(ways, architecture.num_key_value_heads)
    whole = parameter_count(architecture) * number_bytes(engine.dtype)
    return EngineMemory(
        weights=-(-whole // ways),
        kv_cache=engine.kv_cache_bytes,
        transfer=2 * config.weights.bucket_bytes,
        reserved=hardware.reserved_bytes,
        learner=hardware.reserved_bytes if takes_turns(config, hardware) else 0,
        relays=relay_bytes(config, hardware),
        shared=2 * whole if config.weights.delta else 0,
        received=received_bytes(config, inventory(architecture), hardware),
        kv_bytes_per_token=per_token,
        cached_tokens=engine.kv_cache_bytes // per_token,
    )


def received_bytes(config: TrainConfig, weights: Sequence[Weight], hardware: Hardware) -> int:
    """Of an engine node, where weights come from others: two versions of them, or two layers.

    With delta, what changed comes beside the two that are held: as much again, at the most. What
    its own shards publish is not sent to it, and counted all the same.
    """
    if not _between_hosts(config, hardware):
        return 0
    size = number_bytes(config.engine.dtype)
    if not config.weights.by_layer:
        return (3 if config.weights.delta else 2) * size * sum(w.elements for w in weights)
    nodes = published_layers(weights, config.parallel, _ranks(config, hardware))
    layers = sorted({layer for node in nodes for layer in node})
    # A layer takes the place of the last but one at one sender before it does at another; after
    # the last layer comes the first of the next version.
    turns = zip(layers[-2:] + layers, layers[-1:] + layers, layers, strict=False)
    return size * max(
        sum(node[between] + max(node[before], node[after]) for node in nodes)
        for before, between, after in turns
    )


def relay_bytes(config: TrainConfig, hardware: Hardware) -> int:
    """Of the first device of a host that sends weights and receives others."""
    if hardware.unified or not _between_hosts(config, hardware):
        return 0
    return 2 * hardware.context_bytes + RELAY_PIECES


def _between_hosts(config: TrainConfig, hardware: Hardware) -> bool:
    """Whether weights travel from host to host."""
    ways = config.cluster.rollout_workers * config.engine.tensor_parallel_size
    shards = config.parallel.shards
    devices = max(shards, ways) if takes_turns(config, hardware) else shards + ways
    transport = config.weights.transport
    one_host = hardware.unified or devices <= hardware.devices_per_node
    return transport is Transport.broadcast or (transport is Transport.auto and not one_host)


def _step_buffers(
    config: TrainConfig, weights: Sequence[Weight], owned: Mapping[Role, int], run: Pass
) -> int:
    """Gradients of one kind laid end to end, then the update: Newton-Schulz of one batch of its
    matrices, or of AdamW the root of the second moments."""
    third_stage = run.parallel.zero_stage == 3
    if not config.optimizer.muon:
        spread = owned.get(Role.expert, 0)
        flat = max(spread, sum(owned.values()) - spread)
        return 2 * FLOAT32 * (min(flat, SUB_GROUP_ELEMENTS) if third_stage else flat)
    matrices = [w for w in weights if w.role in (Role.matrix, Role.expert)]
    largest = max(w.matrix_elements for w in matrices)
    total = sum(w.elements for w in matrices)
    batch = max(largest, min(MUON_BATCH, total))
    chunk = max(largest, min(MUON_CHUNK if run.cpu else batch, total))
    # Updates in bfloat16; then in float32, or the chunk's copies and squares.
    newton_schulz = 2 * batch + max(FLOAT32 * batch, 14 * chunk)
    travelling = CUT_BYTES * batch if cut_elements(weights, run.parallel) else 0
    flat = max(owned.values(), default=0)
    if third_stage:
        flat = 2 * min(flat, SUB_GROUP_ELEMENTS)
    return FLOAT32 * flat + newton_schulz + travelling


def _buckets(weights: Sequence[Weight], run: Pass, live: int) -> int:
    """Gradients on their way, and weights that ZeRO-3 has gathered; `live`: activations."""
    parallel = run.parallel
    number = FLOAT32 if parallel.zero_stage == 3 else run.weight_bytes
    reducing = number * BUCKET_ELEMENTS * (1 if run.cpu else 2)  # on GPU one fills as one leaves
    gathered = 0
    if parallel.zero_stage == 3 and parallel.shards > 1:
        local = [
            w.elements // (parallel.expert_parallel if w.role is Role.expert else 1)
            for w in weights
        ]
        gathered = run.weight_bytes * (max(local) + min(sum(local), LIVE_ELEMENTS))
    fresh = 0.0
    if parallel.zero_stage == 2 and parallel.offload is Offload.none:
        # Gradients of one micro-batch lie apart until they are added to the others; there is room
        # for them when the first bucket is full and that part of the activations is gone.
        mine = sum(owned_elements(weights, parallel).values())
        kept = elements(held(weights, parallel, rank=0))
        fresh = max(0.0, run.weight_bytes * mine - live * min(1.0, BUCKET_ELEMENTS / kept))
    return reducing + gathered + int(fresh)
