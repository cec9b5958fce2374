"""What a learner is built from, and what it publishes: records that need no engine to read."""

from dataclasses import dataclass
from pathlib import Path

import torch

from model.config import MuonClipConfig, ParallelConfig, ScheduleConfig
from model.formats import CheckpointError
from model.send_weights import WeightUpdate
from rl.config import TrainConfig
from rl.objective_config import ObjectiveConfig


@dataclass(frozen=True, slots=True, kw_only=True)
class LearnerSpec:
    """What a learner is built from."""

    checkpoint: Path
    optimizer: MuonClipConfig
    schedule: ScheduleConfig
    parallel: ParallelConfig
    objective: ObjectiveConfig
    iterations: int  # of the whole run, for the schedule
    micro_batch_tokens: int
    bucket_bytes: int
    delta: bool = False  # publish what changed since the version before
    by_layer: bool = False  # publish files that engines load layer by layer
    compute_dtype: torch.dtype
    engine_dtype: torch.dtype
    int4_experts: bool
    router_bias_rate: float
    seed: int

    @classmethod
    def of(cls, config: TrainConfig, checkpoint: Path) -> "LearnerSpec":
        """The learner of a recipe, which starts from a checkpoint folder."""
        return cls(
            checkpoint=checkpoint,
            optimizer=config.optimizer,
            schedule=config.schedule,
            parallel=config.parallel,
            objective=config.objective,
            iterations=config.steps,
            micro_batch_tokens=config.policy.micro_batch_tokens,
            bucket_bytes=config.weights.bucket_bytes,
            delta=config.weights.delta,
            by_layer=config.weights.by_layer,
            compute_dtype=getattr(torch, config.policy.dtype.value),
            engine_dtype=getattr(torch, config.engine.dtype.value),
            int4_experts=config.policy.int4_experts,
            router_bias_rate=config.policy.router_bias_rate,
            seed=config.seed,
        )


class OtherShardFailed(CheckpointError):
    """What all shards do together was not done here because another shard could not; that tells."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Published:
    """One version of the weights on its way to the engines."""

    update: WeightUpdate
    probe_logprobs: list[list[float]]  # of the probe sequences, under exactly the weights sent
