"""Seeing a run under way: its timeline, what it waits for, its metrics over HTTP.

The parts of the loop do not know that they are watched: `TimedRollouts` and `TimedPolicy` stand
between them and the loop.
"""

import asyncio
import time
from collections.abc import Callable, Coroutine, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager

from rewards.task import Task
from rl.batch import Batch
from rl.config import WatchConfig
from rl.loop import Policy, Rollouts
from rl.prometheus import MetricsServer, Progress, check_port
from rl.run_folder import RunFolder
from rl.timeline import Detail, Span, Timeline
from rl.waiting import Waits
from rollout.episode import Group
from rollout.starts import Start

COUNTED = (
    "rollout/tokens_per_s",
    "buffer/size",
    "buffer/running",
    "time/stall",
    "staleness/mean",
)
"""Metrics of a step that the timeline draws as curves."""


class Watch:
    """All that watches one run, from `start` to `close`."""

    def __init__(self, config: WatchConfig, run: str, say: Callable[[str], None]) -> None:
        """Watch the run named `run`; nothing is opened before `start`.

        Raises:
            BadInput: the port of the metrics is in use.
        """
        if config.metrics_port is not None:
            check_port(config.metrics_port)
        self._config, self._run, self._say = config, run, say
        self._open = ExitStack()
        self._groups = ExitStack()  # the wait for the groups of a step, while it lasts
        self._timeline: Timeline | None = None
        self._server: MetricsServer | None = None
        self._waits = Waits(say)
        self._rollouts: TimedRollouts | None = None
        self._collecting: asyncio.Task[None] | None = None
        self._version = 0

    def start(self, folder: RunFolder, progress: Progress | None = None) -> None:
        """Open what the settings ask for; `progress` is that of a run that goes on.

        Raises:
            BadInput: the port of the metrics has come into use.
        """
        if self._config.metrics_port is not None:
            self._server = MetricsServer(self._config.metrics_port, self._run)
            if progress is not None:
                self._server.update(progress)  # counters that fall to 0 would be counted anew
            self._open.callback(self._server.close)
        if self._config.timeline:
            self._timeline = Timeline(folder.timeline, say=self._say)
            self._open.callback(self._timeline.close)
        self._open.enter_context(self._waits)

    def close(self) -> None:
        """Put everything away. May be called before `start`."""
        self._groups.close()
        if self._collecting is not None:
            self._collecting.cancel()
        self._open.close()

    def add(self, spans: Sequence[Span]) -> None:
        """Record what parts of the run did."""
        if self._timeline is not None:
            self._timeline.add(spans)

    def collect(self, spans: Callable[[], Coroutine[None, None, Sequence[Span]]]) -> None:
        """Record what parts of the run did when they tell of it; the caller does not wait.

        Nothing is asked while an answer is awaited, nor without a timeline.
        """
        if self._timeline is None or (self._collecting and not self._collecting.done()):
            return

        async def collecting() -> None:
            self.add(await spans())

        self._collecting = asyncio.create_task(collecting())

    @contextmanager
    def doing(self, track: str, what: str, which: str = "") -> Iterator[None]:
        """A span of `track` on the timeline, and a wait that is told of if it takes long."""
        start = time.time()
        try:
            with self._waits.waiting_for(what, which):
                yield
        finally:
            name = f"{what} {which}".strip()
            self.add([Span(track=track, name=name, start=start, end=time.time())])

    def rollouts(self, rollouts: Rollouts) -> "TimedRollouts":
        """The same engines, watched."""
        self._rollouts = TimedRollouts(rollouts, self)
        return self._rollouts

    def policy(self, policy: Policy) -> "TimedPolicy":
        """The same learner, watched."""
        return TimedPolicy(policy, self)

    def measuring(
        self, measure: Callable[[int], Coroutine[None, None, Mapping[str, float]]]
    ) -> Callable[[int], Coroutine[None, None, Mapping[str, float]]]:
        """The same measurement, watched."""

        async def watched(step: int) -> Mapping[str, float]:
            with self.doing("measurement", "the measurement", f"of step {step}"):
                return await measure(step)

        return watched

    def expect_groups(self, step: int) -> None:
        """From now on the learner waits for the groups of `step` (0 for the first)."""
        self._version = step
        self._groups.close()
        detail = self._rollouts.describe if self._rollouts is not None else str
        self._groups.enter_context(self._groups_of(step + 1, detail))

    def groups_came(self) -> int:
        """The learner has its groups; returns the step that they are of (1 for the first)."""
        self._groups.close()
        return self._version + 1

    @contextmanager
    def _groups_of(self, number: int, detail: Callable[[], str]) -> Iterator[None]:
        start = time.time()
        try:
            with self._waits.waiting_for("the groups", f"of step {number}", detail):
                yield
        finally:
            name = f"waits for the groups of step {number}"
            self.add([Span(track="learner waits", name=name, start=start, end=time.time())])

    def step(self, progress: Progress) -> dict[str, float]:
        """One step is done; metrics of the watching itself."""
        if self._server is not None:
            self._server.update(progress)
        if self._timeline is None:
            return {}
        metrics = progress.metrics
        self._timeline.count({name: metrics[name] for name in COUNTED if name in metrics})
        self._timeline.mark(f"step {progress.steps}")
        return {"time/timeline": self._timeline.take_cost()}


class TimedRollouts:
    """A `rl.loop.Rollouts` that tells a watch of every group."""

    def __init__(self, rollouts: Rollouts, watch: Watch) -> None:
        """Pass everything on to `rollouts`."""
        self._parts, self._watch = rollouts, watch
        self._under_way: dict[int, tuple[str, float]] = {}  # task and start, by number
        self._number = 0

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
        self._number += 1
        number, since = self._number, time.time()
        self._under_way[number] = (task.id, since)
        group = None
        try:
            group = await self._parts.sample(
                task, samples=samples, temperature=temperature, rank=rank, start=start
            )
            return group
        finally:
            del self._under_way[number]
            name = task.tags[0] if task.tags else task.kind.value
            details = {"task": task.id, **(described(group) if group else {"failed": 1})}
            span = Span(track="groups", name=name, start=since, end=time.time(), details=details)
            self._watch.add([span])

    async def busy_seconds(self) -> float:
        """Seconds that the engines had work."""
        return await self._parts.busy_seconds()

    def describe(self) -> str:
        """What is being sampled, for a person who waits. Any thread may ask."""
        under_way = list(self._under_way.values())
        if not under_way:
            return "none is being sampled"
        task, start = min(under_way, key=lambda each: each[1])
        return f"{len(under_way)} being sampled, longest {task}, for {time.time() - start:.0f} s"


class TimedPolicy:
    """A `rl.loop.Policy` that tells a watch of every update and every publication."""

    def __init__(self, policy: Policy, watch: Watch) -> None:
        """Pass everything on to `policy`."""
        self._part, self._watch = policy, watch

    async def update(
        self, minibatches: Sequence[Batch], ptx: Sequence[Batch | None]
    ) -> dict[str, float]:
        """One iteration of the optimiser."""
        step = self._watch.groups_came()
        with self._watch.doing("learner", "the update", f"of step {step}"):
            return await self._part.update(minibatches, ptx)

    async def publish(self, version: int) -> dict[str, float]:
        """Bring the weights to every engine."""
        self._watch.groups_came()  # of a step without an update
        with self._watch.doing("weights", "the transfer of weights", f"of version {version}"):
            return await self._part.publish(version)


def described(group: Group) -> dict[str, Detail]:
    """A group in a few numbers."""
    completions = [episode.completion for episode in group.episodes]
    versions = {version for each in completions for version in each.versions.values}
    rewards = [episode.score.total for episode in group.episodes]
    return {
        "episodes": len(completions),
        "tokens": sum(len(each.token_ids) for each in completions),
        "longest": max(len(each.token_ids) for each in completions),
        "versions": f"{min(versions)}-{max(versions)}" if versions else "none",
        "reward": round(sum(rewards) / len(rewards), 3),
        **({"skipped": group.skipped[:100]} if group.skipped else {}),
    }
