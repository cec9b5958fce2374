"""How many held-out tasks the policy solves, with intervals."""

import asyncio
import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Protocol

from rewards.intervals import wilson
from rewards.task import Task
from rollout.episode import Episode, Group


class Sampler(Protocol):
    """Draws one scored group."""

    async def sample(self, task: Task, *, samples: int, temperature: float) -> Group:
        """`samples` episodes of `task`."""
        ...


@dataclass(frozen=True, slots=True, kw_only=True)
class PassRate:
    """Mean pass@1 over tasks, with a 95 % interval over tasks."""

    value: float
    low: float
    high: float
    tasks: int

    def __str__(self) -> str:
        """As in a table: `0.412 [0.361, 0.465]`."""
        return f"{self.value:.3f} [{self.low:.3f}, {self.high:.3f}]"


def pass_rate(success: Sequence[float]) -> PassRate:
    """Wilson's score interval on per-task success rates [tasks], each in [0, 1].

    With several samples a task, the tasks remain the independent draws: the interval is that of
    so many tasks, which errs on the wide side.
    """
    count = len(success)
    mean = sum(success) / count
    low, high = wilson(mean, count)
    return PassRate(value=mean, low=low, high=high, tasks=count)


def pass_at_k(samples: int, correct: int, k: int) -> float:
    """Unbiased estimate of the chance that one of `k` draws is right (Chen et al. 2021, eq. 1)."""
    return 1.0 - math.comb(samples - correct, k) / math.comb(samples, k)


def passed(episode: Episode) -> bool:
    """Whether an episode has full marks within its budget."""
    return episode.score.total >= 1.0


def solved(group: Group) -> float:
    """Share of the group's episodes that passed."""
    return sum(passed(e) for e in group.episodes) / len(group.episodes)


async def evaluate(
    sampler: Sampler, tasks: Iterable[Task], *, samples: int, temperature: float
) -> dict[str, PassRate]:
    """Pass@1 over all `tasks` under "all", and by family (a task's first tag)."""
    groups = await asyncio.gather(
        *(sampler.sample(task, samples=samples, temperature=temperature) for task in tasks)
    )
    by_name: dict[str, list[float]] = {"all": [solved(g) for g in groups]}
    for group in groups:
        if group.task.tags:
            by_name.setdefault(group.task.tags[0], []).append(solved(group))
    return {name: pass_rate(values) for name, values in by_name.items()}
