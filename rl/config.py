"""The settings of a run, composed of the packages' own. Values live in `configs/recipe/*.yaml`."""

import math
from dataclasses import dataclass, field
from enum import Enum

from model.config import MuonClipConfig, ParallelConfig, Precision, ScheduleConfig
from rewards.config import LengthKind, RewardsConfig
from rl.objective_config import ObjectiveConfig
from rl.rollout_config import MOST_TEMPERATURE, RolloutConfig
from rollout.config import Dtype, EngineConfig, TasksConfig

MOST_SEED = 2**31 - 1
"""Of `seed`: vLLM seeds NumPy, which takes less than 2**32, with it and the engine's number."""


def _at_least(owner: object, section: str, **bounds: float) -> None:
    """Raise ValueError naming the first field of `owner` under its bound, infinite or no number."""
    for name, least in bounds.items():
        value = getattr(owner, name)
        key = f"{section}.{name}".lstrip(".")
        if not value >= least:  # NaN is neither over nor under
            raise ValueError(f"{key} must be at least {least}, got {value}")
        if value == math.inf:
            raise ValueError(f"{key} must be finite, got {value}")


def _check_port(key: str, port: int | None) -> None:
    """Raise ValueError for what is no port; None serves nothing."""
    if port is not None and not 1 <= port <= 65535:
        raise ValueError(f"{key} must lie in [1, 65535], got {port}")


@dataclass(kw_only=True, slots=True)
class PolicyConfig:
    """The model that is trained."""

    path: str | None = None
    """Checkpoint folder to start from. None: the tiny K2, made by code for the recipe's tasks."""
    release: str | None = None
    """A released architecture by name, for `temper plan` while the folder is not here."""
    dtype: Dtype = Dtype.bfloat16
    """Precision of activations; that of the weights is parallel.weights."""
    int4_experts: bool = False
    """Train K2's routed experts for INT4 (K2-Thinking): forward and engines use rounded weights."""
    router_bias_rate: float = 0.0
    """Step of the routers' selection bias against the load (Moonlight app. C); 0 in RL: frozen."""
    threads: int = 1
    """CPU threads of the learner while engines generate."""
    micro_batch_tokens: int = 8192
    """Most packed tokens in one forward and backward pass."""

    def __post_init__(self) -> None:
        """Check the bounds."""
        _at_least(self, "policy", threads=1, micro_batch_tokens=1, router_bias_rate=0)
        if self.release is not None and self.path is None:
            raise ValueError(
                f"policy.release={self.release} needs policy.path: the folder to train from"
            )


@dataclass(kw_only=True, slots=True)
class SftConfig:
    """The supervised start: train on worked solutions until some held-out tasks are solved."""

    max_steps: int = 400
    """The end, if target_accuracy is not reached."""
    min_steps: int = 0
    """No test before this step."""
    sequences_per_step: int = 64
    """Worked solutions in one optimiser step."""
    learning_rate: float = 2e-3
    """After its warm-up."""
    warmup_steps: int = 20
    """First steps, over which the learning rate rises to its value."""
    cooldown_steps: int = 0
    """Last of max_steps, over which the learning rate falls to nothing."""
    target_accuracy: float = 0.3
    """Stop at the first test at or over this pass@1."""
    test_every: int = 20
    """Steps between two tests."""
    test_tasks: int = 96
    """Held-out tasks in one test."""
    threads: int = 2
    """CPU threads of the learner; generation is idle meanwhile."""

    def __post_init__(self) -> None:
        """Check the bounds."""
        _at_least(self, "sft", max_steps=1, sequences_per_step=1, test_every=1, test_tasks=1)
        _at_least(self, "sft", threads=1, warmup_steps=1, cooldown_steps=0, learning_rate=0)
        _at_least(self, "sft", min_steps=0)
        if not 0 <= self.target_accuracy <= 1:
            raise ValueError(f"sft.target_accuracy must lie in [0, 1], got {self.target_accuracy}")


@dataclass(kw_only=True, slots=True)
class EvaluationConfig:
    """Held-out tasks before and after."""

    tasks: int = 256
    """How many."""
    samples: int = 2
    """Of each."""
    temperature: float = 0.6
    """Of these samples."""

    def __post_init__(self) -> None:
        """Check the bounds."""
        _at_least(self, "evaluation", tasks=1, samples=1, temperature=0.01)
        if self.temperature > MOST_TEMPERATURE:
            raise ValueError(
                f"evaluation.temperature must be at most {MOST_TEMPERATURE:g}, as the engine has "
                f"it, got {self.temperature}"
            )


class Transport(Enum):
    """How published weights come from the learner's shards to an engine."""

    auto = "auto"
    """From shards on the engine's own host by shared memory, from others by broadcast."""
    shared_memory = "shared_memory"
    """All parts must see the same /dev/shm."""
    broadcast = "broadcast"
    """Even on one host; for tests, and for hosts whose parts do not share memory."""


@dataclass(kw_only=True, slots=True)
class WeightsConfig:
    """Publishing weights to the engines, and the probe that proves they arrived."""

    transport: Transport = Transport.auto
    bucket_bytes: int = 268435456
    """Size of one file in shared memory."""
    delta: bool = False
    """Send what changed since the version before; pays between hosts, at small learning rates."""
    by_layer: bool = False
    """Engines load a layer while the next one is on its way: a host that weights are sent to holds
    two layers of them, not two versions, and generation stands still meanwhile."""
    probe_sequences: int = 4
    """Held-out solutions whose log-probs engines and learner compare for every version."""
    probe_tolerance: float | None = None
    """Largest mean |log-prob difference| between engine and learner. None: by engine dtype."""

    def __post_init__(self) -> None:
        """Check the bounds."""
        _at_least(self, "weights", bucket_bytes=1 << 20, probe_sequences=1)
        if self.probe_tolerance is not None and not self.probe_tolerance >= 0:
            raise ValueError(
                f"weights.probe_tolerance must be at least 0, got {self.probe_tolerance}"
            )
        if self.delta and self.by_layer:
            raise ValueError(
                "weights.delta and weights.by_layer exclude each other: changes are made to a "
                "whole version that lies on the host"
            )


@dataclass(kw_only=True, slots=True)
class CheckpointConfig:
    """When to save, how many to keep."""

    every: int = 20
    """Steps between two; there is one after the last step, too."""
    keep: int = 2
    """Newest ones that stay on the disk."""

    def __post_init__(self) -> None:
        """Check the bounds."""
        _at_least(self, "checkpoint", every=1, keep=1)


class Placement(Enum):
    """Where engines and learner compute."""

    disaggregated = "disaggregated"
    """Each on devices of its own, at the same time."""
    colocated = "colocated"
    """Both on the same devices, in turns (k2-spec 6.1): the other's state is in host memory, or
    dropped. parallel.shards must be rollout_workers x engine.tensor_parallel_size."""


@dataclass(kw_only=True, slots=True)
class ClusterConfig:
    """Where the parts run."""

    placement: Placement = Placement.disaggregated

    ray_address: str | None = None
    """Ray cluster to join ("auto", "ray://host:port", "host:port"). None: start Ray here."""
    rollout_workers: int = 1
    """Engines, each in a process of its own."""
    dashboard_port: int | None = None
    """Serve Ray's dashboard on this port. None: no dashboard."""
    object_store_bytes: int = 268435456
    """Memory for samples and batches on their way, of a Ray that is started here: four steps of
    them are enough, and what does not fit goes over the disk."""
    engine_timeout_s: float = 120.0
    """Longest that an engine may answer nothing at all, or take over an update of its weights; then
    it is started again. How long its samples take does not matter."""
    max_restarts: int = 3
    """Times that one part may be lost between two trained steps; once more ends the run."""

    def __post_init__(self) -> None:
        """Check the bounds."""
        _check_port("cluster.dashboard_port", self.dashboard_port)
        # Ray takes no less than 75 MB.
        least = {"rollout_workers": 1, "engine_timeout_s": 1, "max_restarts": 0}
        _at_least(self, "cluster", object_store_bytes=80_000_000, **least)


@dataclass(kw_only=True, slots=True)
class WatchConfig:
    """What can be seen of a run under way, beside its metrics."""

    timeline: bool = True
    """Write timeline.json, for ui.perfetto.dev: which part did what, and when."""
    metrics_port: int | None = None
    """Serve the metrics to Prometheus on this port of the driver's host. None: not served."""

    def __post_init__(self) -> None:
        """Refuse what is no port."""
        _check_port("watch.metrics_port", self.metrics_port)


class WandbMode(Enum):
    """Where wandb writes."""

    offline = "offline"
    online = "online"
    disabled = "disabled"


@dataclass(kw_only=True, slots=True)
class TrainConfig:
    """A recipe, whole."""

    name: str = "run"
    """Of the run: in its folder's name, in wandb and in Prometheus."""
    run_dir: str | None = None
    """Folder of this run. None: runs/NAME."""
    steps: int = 80
    """RL steps in all."""
    seed: int = 0
    """Of the tiny model's first weights and of the sampling. Which tasks there are, and which of
    them are held out, is tasks.seed."""
    resume: bool = False
    """Continue from the last checkpoint of the run folder."""
    wandb: WandbMode = WandbMode.offline
    policy: PolicyConfig = field(default_factory=PolicyConfig)
    tasks: TasksConfig = field(default_factory=TasksConfig)
    sft: SftConfig | None = None
    rollout: RolloutConfig = field(default_factory=RolloutConfig)
    objective: ObjectiveConfig = field(default_factory=ObjectiveConfig)
    optimizer: MuonClipConfig = field(default_factory=MuonClipConfig)
    schedule: ScheduleConfig = field(default_factory=ScheduleConfig)
    """Of the learning rate over the RL steps."""
    parallel: ParallelConfig = field(default_factory=ParallelConfig)
    rewards: RewardsConfig = field(default_factory=RewardsConfig)
    engine: EngineConfig = field(default_factory=EngineConfig)
    weights: WeightsConfig = field(default_factory=WeightsConfig)
    evaluation: EvaluationConfig = field(default_factory=EvaluationConfig)
    checkpoint: CheckpointConfig = field(default_factory=CheckpointConfig)
    cluster: ClusterConfig = field(default_factory=ClusterConfig)
    watch: WatchConfig = field(default_factory=WatchConfig)

    @property
    def probe_dtype(self) -> Dtype:
        """The narrower of what engine and learner compute the probe in: the learner can only do it
        in float32 with weights that it keeps so."""
        wide = self.parallel.weights is Precision.float32
        return self.engine.dtype if wide else Dtype.bfloat16

    def __post_init__(self) -> None:
        """Check what concerns more than one section."""
        _at_least(self, "", steps=1, seed=0)
        if self.seed > MOST_SEED:
            raise ValueError(f"seed must be at most {MOST_SEED}, got {self.seed}")
        if self.engine.seed:
            raise ValueError(
                f"engine.seed={self.engine.seed} has no effect: every engine of a run gets a seed "
                "of its own, made from seed; set seed instead"
            )
        shards, engines = self.parallel.shards, self.cluster.rollout_workers
        devices = engines * self.engine.tensor_parallel_size
        if self.cluster.placement is Placement.colocated and shards != devices:
            raise ValueError(
                f"cluster.placement=colocated: parallel.shards={shards} must be the {devices} "
                f"devices of cluster.rollout_workers={engines} engines"
            )
        if self.cluster.placement is Placement.colocated and not self.engine.recompute_kv:
            raise ValueError(
                "engine.recompute_kv=false: cluster.placement=colocated drops keys and values when "
                "engines leave the device, and must compute them again"
            )
        trained = {family.name for family in self.tasks.families}
        tested = {family.name for family in self.tasks.test_families} or trained
        # It measures right answers to held-out tasks, by the family's name.
        if self.rewards.length.kind is LengthKind.toggle and not trained & tested:
            raise ValueError(
                f"rewards.length.kind=toggle measures {', '.join(sorted(tested))} "
                "(tasks.test_families) and is to limit tasks.families of other names: give them "
                "the same names"
            )
        wide = self.policy.dtype is Dtype.float32
        if wide and self.parallel.weights is Precision.bfloat16:
            raise ValueError("policy.dtype=float32 needs parallel.weights=float32")
        if self.rollout.groups_per_step % self.objective.minibatches:
            raise ValueError(
                f"objective.minibatches={self.objective.minibatches} must divide "
                f"rollout.groups_per_step={self.rollout.groups_per_step}"
            )
