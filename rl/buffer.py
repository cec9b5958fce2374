"""Groups on their way to the learner: which may start, which wait, which a step trains."""

import asyncio
from dataclasses import dataclass
from statistics import fmean

from rl.errors import RunFailed
from rl.journal import Journal, JournalState, Stage
from rl.rollout_config import RolloutConfig
from rollout.episode import Group


@dataclass(frozen=True, slots=True, kw_only=True)
class Admission:
    """Leave to sample the group of a position."""

    position: int
    step: int  # that it is asked for; a step trains what is complete, so another may train it


@dataclass(frozen=True, slots=True, kw_only=True)
class Finished:
    """A position whose group is complete, or that was passed over."""

    position: int
    group: Group | None
    newest: int | None  # version of its newest token; None if it is not to be trained on
    since: float  # the event loop's time


class GroupBuffer:
    """A step takes `groups_per_step` complete groups, the oldest positions first.

    With N = `max_staleness` and G = `groups_per_step`:

    - At most (N + 1) * G groups exist at a time, running or complete, and beside them N * G late
      ones: those that still run more than N versions after they were started.
    - With N = 0 a step needs every group that exists: order and versions are those of a synchronous
      run. Else it does not wait for groups that still run.
    - Places are given out in the order of the stream, so a kind of tasks that takes longer is
      trained later, not less: up to any step its count is off its share by 2 * N * G at most.
    - Each position is sampled once that way. If its group comes so late, or waits so long, that not
      one of its tokens may be in the loss any more, it is sampled anew, and the step that `max_lag`
      versions allow waits for it: nothing is overtaken without limit.
    """

    def __init__(
        self, config: RolloutConfig, *, steps: int, version: int, journal: Journal
    ) -> None:
        """Start empty, with `version` being served and `steps` the last one."""
        self._config = config
        self._start = self._version = version
        self._total = (steps - version) * config.groups_per_step
        self._journal = journal
        self._running: dict[int, int] = {}  # by position: the version it was started under
        self._finished: dict[int, Finished] = {}
        self._admitted = 0  # the first time
        self._given_up: dict[int, int] = {}  # by position: last step that may train the new sample
        self._again: list[int] = []  # of those, not started again yet
        self._resampled = 0
        self._waited = 0.0
        self._changed = asyncio.Condition()

    async def admit(self) -> Admission:
        """Wait for the next group that may start; for ever, once all steps have theirs."""
        async with self._changed:
            await self._changed.wait_for(lambda: self._again or self._room())
            if self._again:
                position, step = self._again.pop(0), self._version
                self._journal.start_again(position)
            else:
                step = self._start + self._admitted // self._config.groups_per_step
                self._admitted += 1
                position = self._journal.start()
            self._running[position] = self._version
            return Admission(position=position, step=step)

    async def put(self, position: int, group: Group | None) -> None:
        """Hand in the complete group of `position`; None if it is passed over.

        Raises:
            RunFailed: an engine drew it with older weights than all engines were said to serve.
        """
        async with self._changed:
            self._journal.finish(position)
            now = asyncio.get_running_loop().time()
            finished = Finished(position=position, group=group, newest=_newest(group), since=now)
            started = self._running.pop(position)
            if finished.newest is not None and finished.newest < started:
                raise RunFailed(
                    f"the group at position {position} was started under version {started} of the "
                    f"weights, and its newest token is of version {finished.newest}"
                )
            self._finished[position] = finished
            self._changed.notify_all()

    async def take(self) -> list[Finished]:
        """Wait for a step's groups, remove and return them in the order of their positions."""
        async with self._changed:
            await self._changed.wait_for(self._step_is_ready)
            due = self._due()
            order = sorted(self._finished, key=lambda position: (position not in due, position))
            chosen = sorted(order[: self._config.groups_per_step])
            taken = [self._finished.pop(position) for position in chosen]
        now = asyncio.get_running_loop().time()
        self._waited = fmean(now - each.since for each in taken)
        for each in taken:
            self._given_up.pop(each.position, None)
            stage = Stage.passed_over if each.group is None else Stage.trained
            self._journal.close(each.position, stage)
        return taken

    async def published(self, version: int) -> None:
        """Every engine now serves `version`."""
        async with self._changed:
            self._version = version
            self._changed.notify_all()

    @property
    def journal_state(self) -> JournalState:
        """What the steps so far have trained."""
        return self._journal.state

    def metrics(self) -> dict[str, float]:
        """What waits, and what the last step's groups waited on average, in seconds."""
        counts = self._journal.counts()
        resampled, self._resampled = self._resampled, 0
        return {
            "buffer/size": float(len(self._finished)),
            "buffer/running": float(counts[Stage.running]),
            "buffer/waiting_s": self._waited,
            "buffer/resampled": float(resampled),
        }

    def _room(self) -> bool:
        """Whether one more group may exist."""
        size, ahead = self._config.groups_per_step, self._config.max_staleness
        late = sum(self._version - started > ahead for started in self._running.values())
        places = (self._version - self._start + ahead + 1) * size + min(late, ahead * size)
        return self._admitted < min(places, self._total)

    def _step_is_ready(self) -> bool:
        self._give_up_old_ones()
        enough = len(self._finished) >= self._config.groups_per_step
        return enough and self._due() <= self._finished.keys()

    def _due(self) -> set[int]:
        """Positions that this step must train: later they would be too old once more."""
        return {p for p, last in self._given_up.items() if last <= self._version}

    def _give_up_old_ones(self) -> None:
        oldest = self._version - self._config.max_lag
        late = [p for p, f in self._finished.items() if f.newest is not None and f.newest < oldest]
        for position in late:
            del self._finished[position]
            self._journal.give_up(position)
            self._given_up[position] = self._version + self._config.max_lag
            self._again.append(position)
            self._resampled += 1
        if late:
            self._changed.notify_all()


def _newest(group: Group | None) -> int | None:
    if group is None or group.skipped:
        return None
    return max((v for e in group.episodes for v in e.completion.versions.values), default=None)
