"""How many held-out tasks the policy solves, with intervals."""

import asyncio
import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Protocol

from rewards.config import RUBRIC
from rewards.intervals import wilson
from rewards.task import Task, TaskKind
from rollout.episode import Episode, Group


class Sampler(Protocol):
    """Draws one scored group."""

    async def sample(
        self, task: Task, *, samples: int, temperature: float, rank: bool = True
    ) -> Group:
        """`samples` episodes of `task`; not ranked by the critic if `rank` is false."""
        ...


@dataclass(frozen=True, slots=True, kw_only=True)
class PassRate:
    """Mean pass@1 over tasks, with a 95 % interval over tasks; [0, 1] if there are none."""

    value: float
    low: float
    high: float
    tasks: int

    def __str__(self) -> str:
        """As in a table: `0.412 [0.361, 0.465]`."""
        if not self.tasks:
            return "no tasks"
        return f"{self.value:.3f} [{self.low:.3f}, {self.high:.3f}]"


def pass_rate(success: Sequence[float]) -> PassRate:
    """Wilson's score interval on per-task success rates [tasks], each in [0, 1].

    With several samples a task, the tasks remain the independent draws: the interval is that of
    so many tasks, which errs on the wide side.
    """
    count = len(success)
    if not count:
        return PassRate(value=0.0, low=0.0, high=1.0, tasks=0)
    mean = sum(success) / count
    low, high = wilson(mean, count)
    return PassRate(value=mean, low=low, high=high, tasks=count)


def pass_at_k(samples: int, correct: int, k: int) -> float:
    """Unbiased estimate of the chance that one of `k` draws is right (Chen et al. 2021, eq. 1)."""
    return 1.0 - math.comb(samples - correct, k) / math.comb(samples, k)


def passed(episode: Episode) -> bool:
    """Whether an episode has full marks within its budget; what the critic ranked has none."""
    return RUBRIC not in episode.score.parts and episode.score.total >= 1.0


def solved(group: Group) -> float:
    """Share of the group's episodes that passed."""
    return sum(passed(e) for e in group.episodes) / len(group.episodes)


def watched(episode: Episode) -> float | None:
    """The mean of what is watched of an episode; None if nothing is."""
    values = episode.score.watched.values()
    return sum(values) / len(values) if values else None


async def sample_all(
    sampler: Sampler, tasks: Iterable[Task], *, samples: int, temperature: float
) -> list[Group]:
    """One group of every task, not ranked by the critic: ranks only compare within a group."""
    return await asyncio.gather(
        *(
            sampler.sample(task, samples=samples, temperature=temperature, rank=False)
            for task in tasks
        )
    )


def rates(groups: Sequence[Group], *, ranked: bool) -> dict[str, PassRate]:
    """Pass@1 over all groups under "all", and by family (a task's first tag).

    Open-ended tasks that the critic ranks (`ranked`) cannot be passed: they are not among "all",
    and their families' rates are the mean of what is watched of them, if anything is.
    """
    by_name: dict[str, list[float]] = {"all": []}
    for group in groups:
        is_open = ranked and group.task.kind is TaskKind.open
        quality = _watched_mean(group) if is_open else solved(group)
        if quality is None:
            continue
        names = [] if is_open else ["all"]
        for name in [*names, *group.task.tags[:1]]:
            by_name.setdefault(name, []).append(quality)
    return {name: pass_rate(values) for name, values in by_name.items()}


def _watched_mean(group: Group) -> float | None:
    values = [value for e in group.episodes if (value := watched(e)) is not None]
    return sum(values) / len(values) if values else None
