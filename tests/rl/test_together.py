"""Held-out groups of a synchronous run begin alike in every run."""

import asyncio

from rewards.task import Message, Task, TaskKind
from rl.evaluate import sample_all
from rl.together import Together
from rollout.episode import Group
from rollout.starts import Start


class Rollouts:
    """Keeps how each group was to begin."""

    def __init__(self) -> None:
        self.starts: dict[str, Start] = {}

    async def sample(
        self,
        task: Task,
        *,
        samples: int,
        temperature: float,
        rank: bool = True,
        start: Start | None = None,
    ) -> Group:
        assert start is not None and not rank
        self.starts[task.id] = start
        return Group(task=task, episodes=())

    async def busy_seconds(self) -> float:
        return 0.0


def _starts(seed: int) -> list[Start]:
    question = (Message(role="user", content="?"),)
    tasks = [
        Task(id=str(n), kind=TaskKind.math, messages=question, reference="1", token_budget=8)
        for n in range(3)
    ]
    rollouts = Rollouts()
    sampling = sample_all(Together(rollouts, 3, seed), tasks, samples=2, temperature=1.0)
    asyncio.run(sampling)
    return [rollouts.starts[task.id] for task in tasks]


def test_all_start_together_with_the_seeds_of_every_evaluation() -> None:
    starts = _starts(seed=1)
    assert [(start.place, start.together) for start in starts] == [(0, 3), (1, 3), (2, 3)]
    assert starts == _starts(seed=1)
    assert len({start.seed for start in (*starts, *_starts(seed=2))}) == 6
