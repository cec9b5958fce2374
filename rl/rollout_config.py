"""How a run samples: group sizes, temperatures, and how far generation runs ahead of training."""

import math
from dataclasses import dataclass

MOST_TEMPERATURE = 2.0  # that vLLM takes


@dataclass(kw_only=True, slots=True)
class RolloutConfig:
    """How many attempts, how hot, how far ahead of the learner."""

    groups_per_step: int = 16
    """Tasks that a step trains on."""
    samples_per_group: int = 8
    """K of the objective (k2-spec 3.1)."""
    max_staleness: int = 1
    """Steps that generation may run ahead of the weights. 0: on-policy, nothing overlaps; more: a
    step takes the groups that are complete, and up to (2 * this + 1) * groups_per_step exist."""
    loss_max_lag: int | None = None
    """Versions that a token in the loss may be behind the weights it trains; older ones are context
    alone. None: max_staleness. More keeps early samples of slow groups in the loss."""
    segment_tokens: int | None = None
    """Partial rollout: tokens that a sample draws under one version while others wait for its place
    in the engine. None: no limit."""
    segment_s: float | None = None
    """The same in seconds, from a sample's first token on. None: no limit."""
    max_samples_in_flight: int | None = None
    """Samples in one engine at a time, the oldest first. None: engine.max_num_seqs and a quarter
    more, so that the engine never waits for the next."""
    temperature_start: float = 1.0
    """Of the first step."""
    temperature_end: float = 0.7
    """Of the last step; linear between them (K2 sec. 3.2.3)."""

    def __post_init__(self) -> None:
        """Check the bounds."""
        bounds: list[tuple[str, float | None, float]] = [
            ("groups_per_step", self.groups_per_step, 1),
            ("samples_per_group", self.samples_per_group, 2),
            ("max_staleness", self.max_staleness, 0),
            ("loss_max_lag", self.loss_max_lag, 0),
            ("segment_tokens", self.segment_tokens, 1),
            ("segment_s", self.segment_s, 0.01),
            ("max_samples_in_flight", self.max_samples_in_flight, 1),
            ("temperature_start", self.temperature_start, 0.01),
            ("temperature_end", self.temperature_end, 0.01),
        ]
        for name, value, least in bounds:
            if value is not None and not least <= value < math.inf:
                raise ValueError(f"rollout.{name} must be at least {least} and finite, got {value}")
        for name in ("segment_tokens", "segment_s"):
            if getattr(self, name) is not None and not self.max_staleness:
                raise ValueError(
                    f"rollout.{name} needs rollout.max_staleness of at least 1: with 0 a step "
                    "waits for all of its samples, and none is carried over to newer weights"
                )
        for name in ("temperature_start", "temperature_end"):
            if getattr(self, name) > MOST_TEMPERATURE:
                raise ValueError(
                    f"rollout.{name} must be at most {MOST_TEMPERATURE:g}, as the engine has it, "
                    f"got {getattr(self, name)}"
                )

    @property
    def max_lag(self) -> int:
        """Versions that a token in the loss may be behind."""
        return self.max_staleness if self.loss_max_lag is None else self.loss_max_lag

    def samples_in_flight(self, sequences: int) -> int:
        """Samples in an engine that decodes `sequences` together."""
        return self.max_samples_in_flight or sequences + sequences // 4
