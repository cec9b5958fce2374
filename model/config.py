"""Settings of the networks, of the optimiser and of its shards. Light: imports nothing heavy."""

import math
from dataclasses import dataclass, field
from enum import Enum

from model.k2_config import K2Config as K2Config
from model.k2_config import RopeScaling as RopeScaling


@dataclass(kw_only=True, slots=True)
class MuonClipConfig:
    """MuonClip (spec 2). Learning rate and decay are shared by its Muon and its AdamW part."""

    learning_rate: float = 2e-6
    """After its warm-up; `schedule` may lower it over the run."""
    weight_decay: float = 0.1
    """Decoupled: a step takes learning_rate times this of every weight."""
    muon: bool = True
    """False: AdamW for matrices too. Muon brings a model nothing that AdamW has pretrained
    (Moonlight, table 7). QK-Clip stays."""
    momentum: float = 0.95
    """Of Muon, Nesterov's form."""
    ns_steps: int = 5
    """Newton-Schulz iterations; more than 5 bring nothing."""
    adam_betas: list[float] = field(default_factory=lambda: [0.9, 0.95])
    """Of the running means of gradients and of their squares."""
    adam_eps: float = 1e-8
    """Added to the root of the mean square."""
    qk_clip_tau: float = 100.0
    """Largest attention logit a head may reach before its query and key weights are scaled down."""

    def __post_init__(self) -> None:
        """Refuse values that would diverge or do nothing, by name."""
        for name in ("learning_rate", "weight_decay"):
            if not 0 <= getattr(self, name) < math.inf:
                raise ValueError(
                    f"optimizer.{name} must be at least 0 and finite, got {getattr(self, name)}"
                )
        for name in ("ns_steps", "adam_eps", "qk_clip_tau"):
            if not 0 < getattr(self, name) < math.inf:
                raise ValueError(
                    f"optimizer.{name} must be positive and finite, got {getattr(self, name)}"
                )
        if not 0 <= self.momentum < 1:
            raise ValueError(f"optimizer.momentum must be in [0, 1), got {self.momentum}")
        if len(self.adam_betas) != 2 or not all(0 <= beta < 1 for beta in self.adam_betas):
            raise ValueError(
                f"optimizer.adam_betas must be two numbers in [0, 1), got {self.adam_betas}"
            )


class Schedule(Enum):
    """How the learning rate moves after its warm-up."""

    constant = "constant"
    wsd = "wsd"
    """Stable, then a linear decay over the last part; decay_fraction 1 is a linear schedule."""
    cosine = "cosine"


@dataclass(kw_only=True, slots=True)
class ScheduleConfig:
    """Learning rate over a run, as a share of its peak. Default: constant (spec 2.1, RL)."""

    kind: Schedule = Schedule.constant
    warmup_steps: int = 0
    """Steps of linear warm-up; the last of them is already at the peak."""
    decay_fraction: float = 0.2
    """wsd only: the share of all steps that decay."""
    final_ratio: float = 0.1
    """wsd and cosine: the rate after the last step, as a share of the peak."""

    def __post_init__(self) -> None:
        """Refuse values outside their range, by name."""
        if self.warmup_steps < 0:
            raise ValueError(f"schedule.warmup_steps must not be negative, got {self.warmup_steps}")
        if not 0 < self.decay_fraction <= 1:
            raise ValueError(
                f"schedule.decay_fraction must be in (0, 1], got {self.decay_fraction}"
            )
        if not 0 <= self.final_ratio <= 1:
            raise ValueError(f"schedule.final_ratio must be in [0, 1], got {self.final_ratio}")


class Precision(Enum):
    """Number format of weights."""

    float32 = "float32"
    bfloat16 = "bfloat16"


class Offload(Enum):
    """Where the optimiser's state and its float32 weights lie between steps."""

    none = "none"
    cpu = "cpu"
    nvme = "nvme"


@dataclass(kw_only=True, slots=True)
class ParallelConfig:
    """How the learner is spread: ZeRO over all shards, routed experts over some of them."""

    shards: int = 1
    """Learner processes; each is one Ray actor, one rank of torch.distributed, one GPU if any."""
    zero_stage: int = 1
    """What is split over the shards: 1 optimiser state, 2 gradients too, 3 weights too."""
    expert_parallel: int = 1
    """Shards that a layer's routed experts are spread over; divides `shards` and the experts."""
    weights: Precision = Precision.float32
    """Of forward and backward. bfloat16 keeps float32 weights with the optimiser."""
    offload: Offload = Offload.none
    nvme_path: str | None = None
    """Folder on a local disk of every host, for offload=nvme: its own for every run, which leaves
    its files there."""
    checkpoint_layers: bool = False
    """Keep only every layer's input and compute the layer again in the backward pass."""
    timeout_seconds: int = 1800
    """Longest wait in one collective; then the run ends with an error instead of hanging."""

    def __post_init__(self) -> None:
        """Refuse combinations that cannot work, by name."""
        for name in ("shards", "expert_parallel", "timeout_seconds"):
            if getattr(self, name) < 1:
                raise ValueError(f"parallel.{name} must be at least 1, got {getattr(self, name)}")
        if self.zero_stage not in (1, 2, 3):
            raise ValueError(f"parallel.zero_stage must be 1, 2 or 3, got {self.zero_stage}")
        if self.shards % self.expert_parallel:
            raise ValueError(
                f"parallel.expert_parallel={self.expert_parallel} must divide "
                f"parallel.shards={self.shards}"
            )
        if self.weights is Precision.bfloat16 and self.zero_stage == 1:
            raise ValueError(
                "parallel.weights=bfloat16 needs parallel.zero_stage=2 or 3: with stage 1 every "
                "shard would keep all gradients in float32"
            )
        if self.offload is Offload.nvme and (self.zero_stage != 3 or self.nvme_path is None):
            raise ValueError(
                "parallel.offload=nvme needs parallel.zero_stage=3 and parallel.nvme_path"
            )


@dataclass(frozen=True, slots=True, kw_only=True)
class Rank:
    """The place of one shard among all, and where they meet."""

    rank: int
    size: int
    address: str  # host of rank 0
    port: int
    local_rank: int = 0  # which GPU of its host
