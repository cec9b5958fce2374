"""Settings of the rewards. Light: imports nothing heavy."""

import difflib
import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import Enum
from pathlib import Path
from typing import Any

from rewards.budget import LENGTH_PART, PART, REPETITION_PART
from rewards.critic_config import CalibrationConfig, CriticConfig
from rewards.sandbox_config import CodeConfig
from rewards.task import TaskKind

VERIFIERS = (
    TaskKind.math.value,
    TaskKind.code.value,
    TaskKind.instructions.value,
    TaskKind.critic.value,
)
"""Rewards that need no plug-in; each is the default of the task kind of its name."""

RUBRIC = "rubric"
"""The critic's reward, the default of kind open: made from a whole group, in the rollout worker."""

EXPLANATIONS = "explanations"
"""True quality of generated open-ended tasks: to be watched, with weight 0."""

BUILT_IN = (*VERIFIERS, RUBRIC, EXPLANATIONS)

TAKEN = (PART, REPETITION_PART, LENGTH_PART, "mean", "mixed_groups", "slow")
"""Parts of a score, and metrics beside them, that no plug-in may be called."""


@dataclass(kw_only=True, slots=True)
class RepetitionConfig:
    """When a completion that goes in circles is stopped (K2 sec. 3.2.3 does not disclose a rule).

    Either rule is enough. Completions too short for both are never looked at.
    """

    stop: bool = True
    """End the completion early. Off: it goes on to its budget."""
    ngram: int = 32
    """Tokens of an n-gram."""
    ngram_times: int = 8
    """So many occurrences of one n-gram, none overlapping another, among the last tokens."""
    window: int = 4096
    """How many last tokens the n-gram rule looks at."""
    period: int = 256
    """Longest cycle that the second rule finds."""
    period_times: int = 6
    """So many rounds of one cycle without a break."""
    min_tokens: int = 192
    """Shortest stretch the second rule stops: a ruled line or a row of zeros is no loop yet."""
    reward: float = -0.5
    """Reward of an episode that was stopped, as of one cut by its budget."""

    def __post_init__(self) -> None:
        """Check the bounds."""
        where = "rewards.repetition"
        _at_least(self.ngram, 1, f"{where}.ngram")
        _at_least(self.ngram_times, 2, f"{where}.ngram_times")
        _at_least(self.window, self.ngram * self.ngram_times, f"{where}.window")
        _at_least(self.period, 1, f"{where}.period")
        _at_least(self.period_times, 2, f"{where}.period_times")
        _at_least(self.min_tokens, 1, f"{where}.min_tokens")
        _check_penalty(self.reward, f"{where}.reward")


class LengthKind(Enum):
    """What is done about long answers that stay within their budget."""

    none = "none"
    k1p5 = "k1p5"
    """K1.5 sec. 2.3.3: shorter than the others of the group is better."""
    soft_overlong = "soft_overlong"
    """DAPO eq. 13: a penalty that grows over the last part of the budget."""
    toggle = "toggle"
    """K2.5: every other phase, only short answers earn."""


@dataclass(kw_only=True, slots=True)
class LengthConfig:
    """Length in the reward, in training only: held-out tasks are scored without it."""

    kind: LengthKind = LengthKind.none
    weight: float = 1.0
    """Of what is added (k1p5, soft_overlong)."""
    from_step: int = 0
    """Off before this step: K1.5 turns it on late."""
    soft_share: float = 0.2
    """Last part of the budget in which the penalty grows (soft_overlong; DAPO 4096 of 20480)."""
    percentile: float = 50.0
    """Of the lengths of right answers before RL, by family: the budget (toggle)."""
    accuracy: float = 0.8
    """Groups solved less often than this are not limited (toggle)."""
    phase_steps: int = 20
    """Steps in a phase (toggle)."""

    def __post_init__(self) -> None:
        """Check the bounds."""
        where = "rewards.length"
        if not 0.0 < self.weight < math.inf:
            raise ValueError(f"{where}.weight must be positive and finite, got {self.weight}")
        if not 0.0 < self.soft_share <= 1.0:
            raise ValueError(f"{where}.soft_share must lie in (0, 1], got {self.soft_share}")
        if not 0.0 < self.percentile <= 100.0:
            raise ValueError(f"{where}.percentile must lie in (0, 100], got {self.percentile}")
        if not 0.0 <= self.accuracy <= 1.0:
            raise ValueError(f"{where}.accuracy must lie in [0, 1], got {self.accuracy}")
        _at_least(self.from_step, 0, f"{where}.from_step")
        _at_least(self.phase_steps, 1, f"{where}.phase_steps")


@dataclass(kw_only=True, slots=True)
class RewardsConfig:
    """How episodes are scored."""

    mixture: dict[str, dict[str, Any]] = field(default_factory=dict)  # numbers; 1 is one, too
    """Rewards of a task kind with their weights: `{code: {code: 0.9, "style.py:short": 0.1}}`.

    A kind that is left out has its verifier alone. `path/to/file.py:function`, from the working
    folder, is a plug-in: `function(task, transcript) -> float | Score | None`, None where it does
    not apply. With weight 0 a reward is watched: measured (`watched/NAME`), not rewarded. Pass@1
    counts totals of 1 and more.
    """
    over_budget_reward: float = -0.5
    """Reward of an episode cut by its token budget; a wrong answer is 0, a right one 1."""
    length: LengthConfig = field(default_factory=LengthConfig)
    repetition: RepetitionConfig = field(default_factory=RepetitionConfig)
    critic: CriticConfig | None = None
    """Judges answers that no verifier can score. None: no task of kind open can be trained on."""
    calibration: CalibrationConfig = field(default_factory=CalibrationConfig)
    math_timeout_s: float = 5.0
    """Most seconds that one answer may take to be compared; then it scores 0."""
    code: CodeConfig = field(default_factory=CodeConfig)
    workers: int = 1
    """Processes that score, spread over the cluster."""
    concurrency: int = 64
    """Answers that one of them scores at a time, in threads."""
    slow_s: float = 10.0
    """A reward that takes longer is named, with its task."""
    shuffled: bool = False
    """Control experiment: permute the rewards inside every group, so that they teach nothing."""

    def __post_init__(self) -> None:
        """Fill in the default mixture; refuse what cannot be scored or rewards running over."""
        _check_penalty(self.over_budget_reward, "rewards.over_budget_reward")
        for name, value in (("math_timeout_s", self.math_timeout_s), ("slow_s", self.slow_s)):
            if not 0.0 < value < math.inf:
                raise ValueError(f"rewards.{name} must be positive, got {value}")
        _at_least(self.workers, 1, "rewards.workers")
        _at_least(self.concurrency, 1, "rewards.concurrency")
        given = {kind: _checked(kind, rewards) for kind, rewards in self.mixture.items()}
        defaults = {name: {name: 1.0} for name in VERIFIERS}
        if self.critic is not None:
            defaults[TaskKind.open.value] = {RUBRIC: 1.0}
        elif any(RUBRIC in rewards for rewards in given.values()):
            raise ValueError(f"rewards.mixture names {RUBRIC!r}: set rewards.critic, its judge")
        self.mixture = defaults | given


def is_plugin(reward: str) -> bool:
    """Whether a reward's name is `path/to/file.py:function`."""
    return ".py:" in reward


def part_names(rewards: Mapping[str, float]) -> dict[str, str]:
    """The short name of every reward in a kind's mixture: the verifier's, or the function's."""
    return {reward: reward.rpartition(":")[2] for reward in rewards}


def _checked(kind: str, rewards: Mapping[str, Any]) -> dict[str, float]:
    """The kind's rewards, checked, with the plug-ins' paths made absolute."""
    kinds = [each.value for each in TaskKind]
    if kind not in kinds:
        raise ValueError(f"rewards.mixture has no task kind {kind!r}{_nearest(kind, kinds)}")
    where = f"rewards.mixture.{kind}"
    if not rewards:
        raise ValueError(f"{where} is empty: name a reward, or leave the kind out")
    for reward, weight in rewards.items():
        _check_reward(kind, reward, weight)
    if not any(rewards.values()):
        raise ValueError(f"{where} only watches: give one reward a weight over 0")
    absolute = {_absolute(reward): float(weight) for reward, weight in rewards.items()}
    names = list(part_names(absolute).values())
    for name in names:
        if name in TAKEN:
            raise ValueError(f"{where}: {name!r} is a name of ours: rename the function")
        if names.count(name) > 1:
            raise ValueError(f"{where} has two rewards called {name!r}: rename a function")
    return absolute


def _check_reward(kind: str, reward: str, weight: Any) -> None:
    where = f"rewards.mixture.{kind}"
    if not is_plugin(reward) and reward not in BUILT_IN:
        raise ValueError(
            f"{where} names an unknown reward {reward!r}{_nearest(reward, BUILT_IN)}; "
            "a plug-in is path/to/file.py:function, with \\: for the colon on the command line"
        )
    if not (isinstance(weight, int | float) and 0.0 <= weight < math.inf):
        raise ValueError(f"{where}.{reward} must be at least 0 and finite, got {weight}")
    if reward == TaskKind.critic.value and kind != reward:
        raise ValueError(
            f"{where}.{reward}: it scores the critic's own tasks; what the critic gives is called "
            f"{RUBRIC!r}"
        )
    if reward == RUBRIC and (weight == 0 or kind != TaskKind.open.value):
        raise ValueError(f"{where}.{reward}: only kind open has it, with a weight over 0")


def _absolute(reward: str) -> str:
    """A plug-in's path from the root: reward workers may run in another folder."""
    if not is_plugin(reward):
        return reward
    path, _, function = reward.rpartition(":")
    return f"{Path(path).expanduser().absolute()}:{function}"


def _nearest(name: str, known: tuple[str, ...] | list[str]) -> str:
    near = difflib.get_close_matches(name, known, n=1, cutoff=0.5)
    return f"; did you mean {near[0]!r}?" if near else f"; known: {', '.join(known)}"


def _at_least(value: int, least: int, key: str) -> None:
    if value < least:
        raise ValueError(f"{key} must be at least {least}, got {value}")


def _check_penalty(value: float, key: str) -> None:
    if not (math.isfinite(value) and value <= 0.0):
        raise ValueError(f"{key} must be at most 0, got {value}")
