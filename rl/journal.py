"""Accounts for every position of the task stream: each is trained once, across any crash."""

import heapq
from collections import Counter
from dataclasses import dataclass
from enum import StrEnum


class Stage(StrEnum):
    """Where a position is on its way to the learner."""

    pending = "pending"  # not asked yet, or to be asked again
    running = "running"  # its group is sampled or scored
    finished = "finished"  # its group is complete and waits for a step
    trained = "trained"
    passed_over = "passed_over"  # nothing was asked; its place in a step stayed empty


CLOSED = (Stage.trained, Stage.passed_over)


class JournalError(RuntimeError):
    """A position would be lost or trained twice: a fault of ours."""


@dataclass(frozen=True, slots=True, kw_only=True)
class JournalState:
    """What a resumed run needs; `open` holds fewer positions than exist at a time.

    Example, all of 0-9 trained but 3, which still runs, and 7, which was passed over:
    `JournalState(end=10, open=(3,), passed_over=1)`.
    """

    end: int = 0  # no position from here on has been in a step
    open: tuple[int, ...] = ()  # those before `end` that have been in none either, ascending
    passed_over: int = 0  # of those that have been in a step


class Journal:
    """The stage of every position. What ran or waited when a run ended is pending in the next."""

    def __init__(self, state: JournalState) -> None:
        """Go on from `state`."""
        self._end = self._next = state.end
        self._open: dict[int, Stage] = dict.fromkeys(state.open, Stage.pending)
        self._pending = sorted(state.open)  # a heap
        self._passed_over = state.passed_over

    def stage(self, position: int) -> Stage:
        """Where a position is; those passed over in earlier steps count as trained."""
        if position in self._open:
            return self._open[position]
        return Stage.pending if position >= self._next else Stage.trained

    def start(self) -> int:
        """The next position to ask, from now on running: the oldest that is pending."""
        if self._pending:
            position = heapq.heappop(self._pending)
        else:
            position, self._next = self._next, self._next + 1
        self._open[position] = Stage.running
        return position

    def start_again(self, position: int) -> None:
        """A position that was given up runs once more."""
        self._move(position, Stage.pending, Stage.running)

    def finish(self, position: int) -> None:
        """The group of a running position is complete."""
        self._move(position, Stage.running, Stage.finished)

    def give_up(self, position: int) -> None:
        """A finished group cannot be used: its position is pending until `start_again`."""
        self._move(position, Stage.finished, Stage.pending)

    def close(self, position: int, stage: Stage) -> None:
        """A finished position was in a step: trained or passed over, and never asked again."""
        if stage not in CLOSED:
            raise JournalError(f"position {position} cannot be closed as {stage}")
        self._move(position, Stage.finished, stage)
        del self._open[position]
        self._passed_over += stage is Stage.passed_over
        self._end = max(self._end, position + 1)

    @property
    def state(self) -> JournalState:
        """For a checkpoint: what was not in a step is as if it had never been asked."""
        return JournalState(
            end=self._end,
            open=tuple(sorted(p for p in self._open if p < self._end)),
            passed_over=self._passed_over,
        )

    def counts(self) -> Counter[Stage]:
        """Positions by stage; of pending positions, only those that were started once."""
        counts = Counter(self._open.values())
        closed = self._next - len(self._open)
        counts[Stage.passed_over] = self._passed_over
        counts[Stage.trained] = closed - self._passed_over
        return counts

    def _move(self, position: int, before: Stage, after: Stage) -> None:
        stage = self.stage(position)
        if stage is not before:
            raise JournalError(f"position {position} is {stage}, not {before}: cannot be {after}")
        self._open[position] = after
