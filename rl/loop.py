"""The actor-learner loop: generate, score, advantages, pack, update, publish.

While the learner trains on the groups of one step, the engines sample those of the next ones; a
group that takes longer is trained when it is complete:

    engines   | group 17 ..............................|
              | groups 18-33 ..........| groups 34-49 ..........|
    learner   | update 2 ...| publish 3 | update 3 ...| publish 4|
                                        takes 18-33             takes 17, 34-48

The engine and the learner are protocols: processes of a cluster, or fakes in a test.
"""

import asyncio
import itertools
import random
from collections.abc import Awaitable, Callable, Coroutine, Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

from rewards.task import Task
from rl.batch import Batch, pack
from rl.buffer import Admission, GroupBuffer
from rl.config import Placement, TrainConfig
from rl.curriculum import temperature_at
from rl.errors import RunFailed
from rl.journal import Journal, JournalState
from rl.metrics import group_metrics, segment_metrics, staleness
from rl.sample import Sample, samples_of
from rollout.draws import wide_hash
from rollout.episode import Group
from rollout.starts import Start


def nothing_observed(step: int, group: Group) -> object:
    """Nothing is taken from a group."""
    return None


async def nothing_measured(step: int) -> Mapping[str, float]:
    """No metrics."""
    return {}


@dataclass(frozen=True, slots=True, kw_only=True)
class Course:
    """What a run asks, imitates, rewards and measures."""

    task_at: Callable[[int, int], Task | None]
    """The task at a position of the training stream, and at the step that it is asked for; None
    passes it over."""
    ptx_at: Callable[[int], Sequence[Batch | None]] = lambda step: []
    """The supervised batches that join a step, one per minibatch."""
    observe: Callable[[int, Group], object] = nothing_observed
    """Sees a group as soon as it is complete, with the step that it was asked for."""
    shape: Callable[[int, Group], Group] = lambda step, group: group
    """The group with its final rewards, at the step that trains on it."""
    measure: Callable[[int], Coroutine[None, None, Mapping[str, float]]] = nothing_measured
    """What else the engines measure at a step, while the learner trains."""


class Rollouts(Protocol):
    """All engines together."""

    async def sample(
        self,
        task: Task,
        *,
        samples: int,
        temperature: float,
        rank: bool = True,
        start: Start | None = None,
    ) -> Group:
        """One group, from prompt to score."""
        ...

    async def busy_seconds(self) -> float:
        """Seconds that the engines had work, averaged over engines, since they started."""
        ...


class Policy(Protocol):
    """The learner and its way to the engines."""

    async def update(
        self, minibatches: Sequence[Batch], ptx: Sequence[Batch | None]
    ) -> dict[str, float]:
        """One iteration of the optimiser; metrics by name."""
        ...

    async def publish(self, version: int) -> dict[str, float]:
        """Bring the weights to every engine and prove that they arrived; metrics by name."""
        ...


@dataclass(frozen=True, slots=True, kw_only=True)
class Step:
    """What one step leaves behind."""

    number: int  # steps trained so far, this one included: also the version now served
    groups: list[Group]
    metrics: Mapping[str, float]
    journal: JournalState  # what has been trained so far, for a run that goes on from here


class Loop:
    """Runs steps `start` to `config.steps`, handing each to `on_step`."""

    def __init__(
        self,
        config: TrainConfig,
        *,
        rollouts: Rollouts,
        policy: Policy,
        course: Course,
        start: int = 0,
        journal: JournalState | None = None,
    ) -> None:
        """Take the parts.

        Args:
            config: the recipe.
            rollouts: engines that serve version `start`.
            policy: the learner that published it.
            course: what is asked, imitated, rewarded and measured.
            start: steps already trained.
            journal: what they trained; None for the first positions of the stream.
        """
        self._config = config
        self._rollouts = rollouts
        self._policy = policy
        self._course = course
        self._measuring: asyncio.Task[Mapping[str, float]] | None = None
        self._start = start
        # A checkpoint has colocated engines sleep: what that cuts in two comes out otherwise.
        colocated = config.cluster.placement is Placement.colocated
        self._step_first = colocated and not config.rollout.max_staleness
        size = config.rollout.groups_per_step
        self._buffer = GroupBuffer(
            config.rollout,
            steps=config.steps,
            version=start,
            journal=Journal(journal or JournalState(end=start * size)),
        )

    async def run(self, on_step: Callable[[Step], Awaitable[None]]) -> None:
        """Train; the first error of any part stops everything and is raised as it is."""
        try:
            async with asyncio.TaskGroup() as parts:
                generating = parts.create_task(self._generate(parts))
                await self._train(parts, on_step)
                generating.cancel()
                if self._measuring is not None:  # no step is left that could tell of it
                    self._measuring.cancel()
        except ExceptionGroup as errors:
            raise errors.exceptions[0] from errors

    async def _generate(self, parts: asyncio.TaskGroup) -> None:
        """Ask what is admitted; the groups of a synchronous step all at once."""
        rollout = self._config.rollout
        while True:
            count = 1 if rollout.max_staleness else rollout.groups_per_step
            admitted = [await self._buffer.admit() for _ in range(count)]
            asked = [(each, self._course.task_at(each.position, each.step)) for each in admitted]
            wave = [(admission, task) for admission, task in asked if task is not None]
            for place, (admission, task) in enumerate(wave):
                start = self._start_of(admission, place, len(wave))
                parts.create_task(self._generate_group(admission, task, start))
            for passed_over in (each for each, task in asked if task is None):
                await self._buffer.put(passed_over.position, None)

    def _start_of(self, admission: Admission, place: int, together: int) -> Start | None:
        """How a group of a synchronous step begins: alike in every run.

        Others begin as they come: a seed costs the engine a generator for each request.
        """
        if self._config.rollout.max_staleness:
            return None
        words = (self._config.seed, "group", admission.position, admission.step)
        return Start(seed=wide_hash(*map(str, words)), place=place, together=together)

    async def _generate_group(self, admission: Admission, task: Task, start: Start | None) -> None:
        position, step = admission.position, admission.step
        group = await self._rollouts.sample(
            task,
            samples=self._config.rollout.samples_per_group,
            temperature=temperature_at(step, self._config.steps, self._config.rollout),
            start=start,
        )
        self._course.observe(step, group)
        await self._buffer.put(position, group)

    async def _train(
        self, parts: asyncio.TaskGroup, on_step: Callable[[Step], Awaitable[None]]
    ) -> None:
        clock = asyncio.get_running_loop().time
        last, busy = clock(), await self._rollouts.busy_seconds()
        for step in range(self._start, self._config.steps):
            waiting = clock()
            taken = await self._buffer.take()
            stall = clock() - waiting
            groups = [
                self._course.shape(step, each.group) for each in taken if each.group is not None
            ]
            metrics = self._buffer.metrics() | group_metrics(groups)
            minibatches = self._minibatches(step, groups)
            metrics |= segment_metrics(groups) | self._staleness(step, minibatches)
            metrics |= await self._measured(parts, step)
            metrics |= await self._update(step, minibatches)
            metrics |= await self._policy.publish(step + 1)
            if not self._step_first:
                await self._buffer.published(step + 1)
            now, busy_now = clock(), await self._rollouts.busy_seconds()
            tokens = sum(len(e.completion.token_ids) for g in groups for e in g.episodes)
            metrics |= {
                "time/stall": stall,
                "time/step": now - last,
                "time/rollout": busy_now - busy,
                "time/engine_idle": max(now - last - (busy_now - busy), 0.0),
                "rollout/tokens": float(tokens),
                "rollout/tokens_per_s": tokens / max(now - last, 1e-9),
                "rollout/temperature": temperature_at(
                    step, self._config.steps, self._config.rollout
                ),
            }
            last, busy = now, busy_now
            journal = self._buffer.journal_state
            await on_step(Step(number=step + 1, groups=groups, metrics=metrics, journal=journal))
            del taken, groups, minibatches  # those of the next step are enough to hold
            if self._step_first:
                await self._buffer.published(step + 1)

    def _staleness(self, step: int, minibatches: Sequence[Batch]) -> dict[str, float]:
        """How old the tokens in the loss are.

        Raises:
            RunFailed: one is older than the bound, a fault of ours.
        """
        lags = staleness(minibatches, step)
        most = self._config.rollout.max_lag
        if lags.get("staleness/max", 0.0) > most:
            raise RunFailed(
                f"a token that is {lags['staleness/max']:.0f} versions old came into the loss of "
                f"step {step + 1}: at most {most} may be (rollout.loss_max_lag)"
            )
        return lags

    async def _update(self, step: int, minibatches: Sequence[Batch]) -> dict[str, float]:
        """One iteration of the optimiser; none if every group was passed over."""
        if not minibatches:
            return {}
        ptx = self._course.ptx_at(step)
        return await self._policy.update(minibatches, ptx[: len(minibatches)])

    async def _measured(self, parts: asyncio.TaskGroup, step: int) -> Mapping[str, float]:
        """What the last measurement found, if it has ended; starts the next one.

        A measurement never delays the learner, unless generation may not run ahead either.
        """
        if not self._config.rollout.max_staleness:
            return await self._course.measure(step)
        found: Mapping[str, float] = {}
        if self._measuring is not None and self._measuring.done():
            found, self._measuring = self._measuring.result(), None
        if self._measuring is None:
            self._measuring = parts.create_task(self._course.measure(step))
        return found

    def _minibatches(self, step: int, groups: Sequence[Group]) -> list[Batch]:
        """The step's groups in shares that differ by one at most, one per optimiser step; fewer if
        groups are few.

        Muon's steps are as long for one group as for four. Groups that the critic could not rank
        have no reward to learn from.
        """
        groups = [group for group in groups if not group.skipped]
        shares = min(len(groups), self._config.objective.minibatches)
        borders = [len(groups) * share // shares for share in range(shares + 1)] if shares else []
        return [
            pack([s for group in groups[first:last] for s in self._samples(step, group)])
            for first, last in itertools.pairwise(borders)
        ]

    def _samples(self, step: int, group: Group) -> list[Sample]:
        rewards = [episode.score.total for episode in group.episodes]
        if self._config.rewards.shuffled:
            random.Random(f"{self._config.seed}/{step}/{group.task.id}").shuffle(rewards)
        return samples_of(
            group,
            rewards,
            kind=self._config.objective.kind,
            oldest=step - self._config.rollout.max_lag,
        )
