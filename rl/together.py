"""Held-out groups of a synchronous run: all start together, with seeds that every run has."""

import itertools

from rewards.task import Task
from rl.loop import Rollouts
from rollout.draws import wide_hash
from rollout.episode import Group
from rollout.starts import Start


class Together:
    """A `rl.evaluate.Sampler` for a known number of groups, none of which begins before all do."""

    def __init__(self, rollouts: Rollouts, groups: int, seed: int) -> None:
        """Sample from `rollouts`, which must be asked for `groups` groups through this."""
        self._rollouts, self._groups, self._seed = rollouts, groups, seed
        self._places = itertools.count()

    async def sample(
        self, task: Task, *, samples: int, temperature: float, rank: bool = True
    ) -> Group:
        """The next of the groups."""
        place = next(self._places)
        seed = wide_hash(str(self._seed), "held out", str(place))
        return await self._rollouts.sample(
            task,
            samples=samples,
            temperature=temperature,
            rank=rank,
            start=Start(seed=seed, place=place, together=self._groups),
        )
