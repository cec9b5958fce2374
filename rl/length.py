"""Length in the rewards of a whole group, and what Toggle must know before RL."""

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path

from rewards.budget import (
    LENGTH_PART,
    length_budget,
    length_rewards,
    limited_phase,
    soft_overlong,
    toggle,
    with_total,
)
from rewards.config import LengthConfig, LengthKind
from rewards.task import Task
from rl.errors import BadInput
from rl.evaluate import Sampler, passed
from rollout.config import TasksConfig
from rollout.episode import Episode, Group, StopReason


class LengthShaping:
    """Applies the recipe's `rewards.length` to groups that are to be trained on."""

    def __init__(self, config: LengthConfig, budgets: Mapping[str, int]) -> None:
        """Limit families by `budgets` (tokens; Toggle only), where they have one."""
        self._config = config
        self._budgets = budgets
        self._totals: dict[LengthKind, Callable[[int, Group], Sequence[float]]] = {
            LengthKind.k1p5: self._k1p5,
            LengthKind.soft_overlong: self._soft_overlong,
            LengthKind.toggle: self._toggle,
        }

    def shape(self, step: int, group: Group) -> Group:
        """The group of step `step` (from 0) with part "length" where length changes a reward."""
        if self._config.kind is LengthKind.none or step < self._config.from_step:
            return group
        totals = self._totals[self._config.kind](step, group)
        shaped = (_rewarded(e, total) for e, total in zip(group.episodes, totals, strict=True))
        return replace(group, episodes=tuple(shaped))

    def _k1p5(self, step: int, group: Group) -> Sequence[float]:
        added = length_rewards(_lengths(group), [passed(e) for e in group.episodes])
        weight = self._config.weight
        return [e.score.total + weight * a for e, a in zip(group.episodes, added, strict=True)]

    def _soft_overlong(self, step: int, group: Group) -> Sequence[float]:
        budget = group.task.token_budget
        soft = max(round(budget * self._config.soft_share), 1)
        return [
            # What was cut or stopped has its penalty already.
            e.score.total + self._config.weight * soft_overlong(length, budget, soft)
            if e.completion.stop_reason is StopReason.stop
            else e.score.total
            for e, length in zip(group.episodes, _lengths(group), strict=True)
        ]

    def _toggle(self, step: int, group: Group) -> Sequence[float]:
        rewards = [e.score.total for e in group.episodes]
        budget = self._budgets.get(family(group.task))
        if budget is None or not limited_phase(step, self._config.phase_steps):
            return rewards
        accuracy = sum(map(passed, group.episodes)) / len(rewards)
        return toggle(rewards, _lengths(group), budget, accuracy, self._config.accuracy)


class LengthRecorder:
    """A sampler that passes groups through and keeps the lengths of right answers, by family."""

    def __init__(self, sampler: Sampler) -> None:
        """Sample from `sampler`."""
        self._sampler = sampler
        self._lengths: dict[str, list[int]] = {}

    async def sample(
        self, task: Task, *, samples: int, temperature: float, rank: bool = True
    ) -> Group:
        """One group of the sampler, noted."""
        group = await self._sampler.sample(
            task, samples=samples, temperature=temperature, rank=rank
        )
        noted = self._lengths.setdefault(family(task), [])
        noted += [e.transcript.response_tokens for e in group.episodes if passed(e)]
        return group

    def budgets(self, percentile: float) -> dict[str, int]:
        """Toggle's budgets, in tokens, of the families with a right answer."""
        found = {name: length_budget(all_, percentile) for name, all_ in self._lengths.items()}
        return {name: budget for name, budget in found.items() if budget is not None}


def length_shaping(
    config: LengthConfig, path: Path, tasks: TasksConfig, say: Callable[[str], None]
) -> LengthShaping:
    """What a recipe does about length, with the budgets in `path` that were measured before RL.

    `say` hears which of the families that are trained on have none, and so are not limited.
    Raises BadInput if the budgets are needed and not there.
    """
    if config.kind is not LengthKind.toggle:
        return LengthShaping(config, {})
    if not path.is_file():
        raise BadInput(f"rewards.length.kind=toggle needs {path}: start the run anew")
    budgets = json.loads(path.read_text())
    if unlimited := ", ".join(f.name for f in tasks.families if f.name not in budgets):
        say(
            f"rewards.length.kind=toggle does not limit {unlimited}: no held-out task of that name "
            "was solved before RL"
        )
    return LengthShaping(config, budgets)


def family(task: Task) -> str:
    """The name under which a task is measured."""
    return task.tags[0] if task.tags else ""


def _lengths(group: Group) -> list[int]:
    return [e.transcript.response_tokens for e in group.episodes]


def _rewarded(episode: Episode, total: float) -> Episode:
    difference = total - episode.score.total
    if difference == 0.0:
        return episode
    why = f"length {difference:+.2f} ({episode.transcript.response_tokens} tokens)"
    return replace(episode, score=with_total(episode.score, total, LENGTH_PART, why))
