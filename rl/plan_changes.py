"""Which single change of a recipe would make it fit, each with its numbers."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace

from model.config import Offload, Precision
from model.inventory import Architecture, routed_experts
from rl.config import Placement, TrainConfig
from rl.errors import BadInput
from rl.hardware import Hardware
from rl.plan import Plan, make_plan

DOUBLINGS = 6  # shards and engine devices are tried up to 64 times as many


@dataclass(frozen=True, slots=True, kw_only=True)
class Change:
    """An override of the recipe, and what the device that was too small then needs."""

    override: str
    plan: Plan


def changes_that_fit(
    config: TrainConfig, architecture: Architecture, hardware: Hardware
) -> list[Change]:
    """The smallest change of each kind after which nothing is left that does not fit."""
    found = []
    for attempts in _kinds(config, architecture):
        for override, changed in attempts:
            plan = _attempt(changed, architecture, hardware)
            if plan is not None and plan.fits:
                found.append(Change(override=override, plan=plan))
                break
    return found


def _attempt(
    changed: Callable[[], TrainConfig], architecture: Architecture, hardware: Hardware
) -> Plan | None:
    """None: the settings refuse the change."""
    try:
        return make_plan(changed(), architecture, hardware)
    except (BadInput, ValueError):
        return None


Attempts = Iterator[tuple[str, Callable[[], TrainConfig]]]


def _kinds(config: TrainConfig, architecture: Architecture) -> Iterator[Attempts]:
    """Kinds of change, each from the smallest step to the largest."""
    parallel, engine, experts = config.parallel, config.engine, routed_experts(architecture)
    shards = [parallel.shards << i for i in range(1, DOUBLINGS + 1)]
    ways = [engine.tensor_parallel_size << i for i in range(1, DOUBLINGS + 1)]
    wider = [
        e
        for e in range(parallel.expert_parallel + 1, experts + 1)
        if experts % e == 0 and parallel.shards % e == 0
    ]
    lengths = [config.policy.micro_batch_tokens >> i for i in range(1, DOUBLINGS + 1)]
    caches = [engine.kv_cache_bytes >> i for i in range(1, DOUBLINGS + 1)]
    yield _parallel(config, "zero_stage", list(range(parallel.zero_stage + 1, 4)))
    yield _parallel(config, "expert_parallel", wider)
    yield _parallel(config, "checkpoint_layers", [] if parallel.checkpoint_layers else [True])
    yield _parallel(config, "offload", [Offload.cpu] if parallel.offload is Offload.none else [])
    narrow = parallel.weights is Precision.float32
    yield _parallel(config, "weights", [Precision.bfloat16] if narrow else [])
    yield _parallel(config, "shards", shards)
    yield _section(
        config, "policy", "micro_batch_tokens", [n for n in lengths if n >= engine.max_model_len]
    )
    yield _section(config, "engine", "tensor_parallel_size", ways)
    yield _section(config, "engine", "kv_cache_bytes", caches)
    yield _section(config, "weights", "by_layer", [] if config.weights.by_layer else [True])


def _parallel(config: TrainConfig, name: str, values: Sequence[object]) -> Attempts:
    return _section(config, "parallel", name, values)


def _section(config: TrainConfig, section: str, name: str, values: Sequence[object]) -> Attempts:
    """Attempts that give one key of one section each of `values`."""
    for value in values:
        said = value.value if isinstance(value, Offload | Precision) else value
        text = str(said).lower() if isinstance(said, bool) else str(said)
        workers = _workers(config, name, value)
        engines = f" cluster.rollout_workers={workers}" if workers else ""
        yield f"{section}.{name}={text}{engines}", _changed(config, section, {name: value}, workers)


def _workers(config: TrainConfig, name: str, value: object) -> int | None:
    """Engines that use all devices of the shards, if one of the two numbers changes with it."""
    sizes = {"shards": config.parallel.shards, "tensor_parallel_size": _ways(config)}
    if config.cluster.placement is not Placement.colocated or name not in sizes:
        return None
    sizes[name] = int(str(value))
    return sizes["shards"] // sizes["tensor_parallel_size"] or None


def _ways(config: TrainConfig) -> int:
    return config.engine.tensor_parallel_size


def _changed(
    config: TrainConfig, section: str, values: dict[str, object], workers: int | None
) -> Callable[[], TrainConfig]:
    def make() -> TrainConfig:
        parts: dict[str, object] = {section: replace(getattr(config, section), **values)}
        if workers is not None:
            parts["cluster"] = replace(config.cluster, rollout_workers=workers)
        return replace(config, **parts)  # type: ignore[arg-type]

    return make
