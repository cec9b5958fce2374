"""What a recipe needs, by arithmetic alone: memory of every device, traffic and time of a step.

Nothing is built and nothing is started.
"""

from collections.abc import Iterator
from dataclasses import dataclass

from model.inventory import Architecture, active_count, inventory, parameter_count
from model.owners import check_experts
from rl.config import TrainConfig
from rl.errors import BadInput
from rl.hardware import Hardware
from rl.plan_memory import (
    EngineMemory,
    LearnerMemory,
    engine_memory,
    forward_pass,
    learner_memory,
    takes_turns,
)
from rl.plan_time import Times, Traffic, times, traffic


@dataclass(frozen=True, slots=True, kw_only=True)
class Problem:
    """Something that does not fit."""

    part: str  # "learner", "engine", "host" or "cache"
    needed: int  # bytes, or tokens of the cache
    there: int

    def __str__(self) -> str:
        """One sentence."""
        if self.part == "cache":
            return (
                f"engine: the KV cache holds {self.there:,} tokens, less than one sequence of "
                f"{self.needed:,}"
            )
        where = {
            "learner": "each learner device needs",
            "engine": "each engine device needs",
            "host": "the memory of a node must hold",
        }[self.part]
        return f"{where} {self.needed / 1e9:,.1f} GB of {self.there / 1e9:,.1f} GB"


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """A recipe's needs on one kind of hardware."""

    recipe: str
    hardware: str
    parameters: int
    active_parameters: int
    learners: int  # devices
    engines: int  # devices
    devices: int  # of both: the same ones if they take turns
    device_bytes: int
    learner: LearnerMemory
    engine: EngineMemory
    traffic: Traffic
    times: Times
    dollars_per_step: float | None
    problems: tuple[Problem, ...]

    @property
    def fits(self) -> bool:
        """Whether there is no problem."""
        return not self.problems


def make_plan(config: TrainConfig, architecture: Architecture, hardware: Hardware) -> Plan:
    """Work out what `config` needs.

    Raises:
        BadInput: the settings contradict the architecture.
    """
    weights = inventory(architecture)
    try:
        check_experts(weights, config.parallel)
    except ValueError as error:
        raise BadInput(str(error)) from error
    _check_engine(config, architecture)
    run = forward_pass(config, hardware)
    learner = learner_memory(config, architecture, weights, hardware)
    engine = engine_memory(config, architecture, hardware)
    took = times(config, architecture, weights, run, hardware, (learner, engine))
    shards, ways = config.parallel.shards, config.engine.tensor_parallel_size
    engines = config.cluster.rollout_workers * ways
    turns = takes_turns(config, hardware)
    devices = shards if turns else shards + engines
    paid = 1 if hardware.unified else devices
    price = hardware.dollars_per_device_hour
    return Plan(
        recipe=config.name,
        hardware=hardware.name,
        parameters=parameter_count(architecture),
        active_parameters=active_count(architecture),
        learners=shards,
        engines=engines,
        devices=devices,
        device_bytes=hardware.memory_bytes,
        learner=learner,
        engine=engine,
        traffic=traffic(config, architecture, weights, run),
        times=took,
        dollars_per_step=None if price is None else price * paid * took.step / 3600,
        problems=tuple(_problems(config, learner, engine, hardware)),
    )


def _check_engine(config: TrainConfig, architecture: Architecture) -> None:
    length, context = config.engine.max_model_len, architecture.max_position_embeddings
    if length > context:
        raise BadInput(f"engine.max_model_len={length} exceeds the model's context of {context}")
    ways, heads = config.engine.tensor_parallel_size, architecture.num_attention_heads
    if heads % ways:
        raise BadInput(f"engine.tensor_parallel_size={ways} must divide the {heads} heads")


def _problems(
    config: TrainConfig, learner: LearnerMemory, engine: EngineMemory, hardware: Hardware
) -> Iterator[Problem]:
    shards, length = config.parallel.shards, config.engine.max_model_len
    if engine.cached_tokens < length:
        yield Problem(part="cache", needed=length, there=engine.cached_tokens)
    if hardware.unified:
        both = shards * (learner.total + learner.host) + learner.shared + learner.snapshot
        each = config.engine.tensor_parallel_size * engine.total + engine.shared
        both += config.cluster.rollout_workers * each + engine.received
        if both > hardware.memory_bytes:
            yield Problem(part="host", needed=both, there=hardware.memory_bytes)
        return
    if learner.total > hardware.memory_bytes:
        yield Problem(part="learner", needed=learner.total, there=hardware.memory_bytes)
    if engine.total > hardware.memory_bytes:
        yield Problem(part="engine", needed=engine.total, there=hardware.memory_bytes)
    here = hardware.devices_per_node
    hosts = (
        (learner.host + learner.away) * min(shards, here) + learner.shared + learner.snapshot,
        engine.shared * max(1, here // config.engine.tensor_parallel_size) + engine.received,
    )
    needed = sum(hosts) if takes_turns(config, hardware) else max(hosts)
    if needed > hardware.host_bytes:
        yield Problem(part="host", needed=needed, there=hardware.host_bytes)
