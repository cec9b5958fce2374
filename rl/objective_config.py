"""Settings of the policy objective: which one, against which old policy, with which correction."""

import math
from collections.abc import Mapping
from dataclasses import dataclass, fields
from enum import Enum
from typing import NamedTuple


class Kind(Enum):
    """The policy objective (`rl.objectives`)."""

    k2 = "k2"
    k2p5 = "k2p5"
    grpo = "grpo"
    dapo = "dapo"
    dr_grpo = "dr_grpo"
    gspo = "gspo"
    cispo = "cispo"


class OldLogprobs(Enum):
    """Whose log-probs are ln pi_old."""

    rollout = "rollout"  # recorded by the engine when the token was sampled
    learner = "learner"  # of the learner's weights when the iteration starts


class Correction(Enum):
    """What the ratio of the learner's ln pi_old to the rollout's does to a token's loss."""

    none = "none"
    truncate = "truncate"
    mask = "mask"


class Level(Enum):
    """What one importance ratio is of."""

    token = "token"
    sequence = "sequence"


class Clip(NamedTuple):
    """Bounds of the ratio pi_theta / pi_old: [1 - low, 1 + high]."""

    low: float
    high: float


CLIPS: Mapping[Kind, Clip] = {
    Kind.k2p5: Clip(0.5, 1.0),  # undisclosed: ours
    Kind.grpo: Clip(0.2, 0.2),
    Kind.dapo: Clip(0.2, 0.28),
    Kind.dr_grpo: Clip(0.2, 0.2),
    Kind.gspo: Clip(3e-4, 4e-4),
    Kind.cispo: Clip(1.0, 4.0),  # no lower bound; the upper one is undisclosed: ours
}
USED_BY: Mapping[str, frozenset[Kind]] = {
    "tau": frozenset({Kind.k2, Kind.k2p5}),
    "length_normalised": frozenset({Kind.k2}),
    "clip_low": frozenset(CLIPS),
    "clip_high": frozenset(CLIPS),
}


@dataclass(kw_only=True, slots=True)
class ObjectiveConfig:
    """The policy objective and the auxiliary PTX loss (K2 sec. 3.2.3). See docs/objectives.md."""

    kind: Kind = Kind.k2
    tau: float = 0.1
    """Weight of the squared log-ratio (k2, k2p5)."""
    length_normalised: bool = False
    """Divide k2's log-ratio by the response length. Not faithful to K2; for long outputs."""
    clip_low: float | None = None
    """Lowest ratio to pi_old, as 1 - clip_low. None: by kind."""
    clip_high: float | None = None
    """Highest ratio to pi_old, as 1 + clip_high. None: by kind."""
    old_logprobs: OldLogprobs = OldLogprobs.learner
    """Log-probs of pi_old: the learner's when the iteration starts, or the rollout's."""
    correction: Correction = Correction.truncate
    """What is done about tokens that another policy sampled than the learner's pi_old."""
    correction_level: Level = Level.token
    correction_cap: float = 2.0
    """C: ratios over C are truncated to C; or those outside [1/C, C] masked."""
    staleness_power: float = 0.0
    """Tokens sampled `lag` versions ago weigh (1 + lag)^-power."""
    ptx_weight: float = 0.05
    """Of the supervised loss (PTX) beside the policy's. 0: none."""
    ptx_sequences: int = 16
    """Sequences of the supervised set that join each optimiser step."""
    minibatches: int = 4
    """Optimiser steps in one iteration, each on its own share of the groups."""
    reset_optimizer_each_iteration: bool = True
    """Forget momentum when an iteration starts (K1.5 sec. 2.3.2)."""

    def __post_init__(self) -> None:
        """Check the bounds, and that nothing is set that this kind does not use."""
        for name, least in (
            ("tau", 0),
            ("staleness_power", 0),
            ("ptx_weight", 0),
            ("ptx_sequences", 0),
            ("minibatches", 1),
            ("correction_cap", 1),
        ):
            value = getattr(self, name)
            if not value >= least:
                raise ValueError(f"objective.{name} must be at least {least}, got {value}")
            if value == math.inf and name != "correction_cap":  # there it means no cap
                raise ValueError(f"objective.{name} must be finite, got {value}")
        self._check_kind()
        self._check_clip()
        self._check_correction()

    @property
    def clip(self) -> Clip:
        """The bounds of this kind; k2 has none."""
        low, high = CLIPS.get(self.kind, Clip(1.0, float("inf")))
        return Clip(
            low if self.clip_low is None else self.clip_low,
            high if self.clip_high is None else self.clip_high,
        )

    def _check_kind(self) -> None:
        for name in self._changed(*USED_BY):
            if self.kind not in USED_BY[name]:
                users = ", ".join(kind.value for kind in Kind if kind in USED_BY[name])
                raise ValueError(
                    f"objective.{name}={getattr(self, name)} has no effect with "
                    f"objective.kind={self.kind.value}: only {users} use it"
                )

    def _check_clip(self) -> None:
        low, high = self.clip
        if not 0 < low <= 1:
            raise ValueError(f"objective.clip_low must be over 0 and at most 1, got {low}")
        if not high > 0:
            raise ValueError(
                f"objective.clip_high={high} puts the upper bound 1 + clip_high at or under 1: "
                "it must be over 0"
            )

    def _check_correction(self) -> None:
        if self.correction is Correction.none:
            for name in self._changed("correction_level", "correction_cap"):
                raise ValueError(f"objective.{name} has no effect with objective.correction=none")
        elif self.old_logprobs is OldLogprobs.rollout:
            raise ValueError(
                f"objective.correction={self.correction.value} compares the learner's pi_old with "
                "the rollout's: it needs objective.old_logprobs=learner; with "
                "old_logprobs=rollout set objective.correction=none"
            )

    def _changed(self, *names: str) -> list[str]:
        """Which of these keys are not at their default."""
        defaults = {field.name: field.default for field in fields(self)}
        return [name for name in names if getattr(self, name) != defaults[name]]
