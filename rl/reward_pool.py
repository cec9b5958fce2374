"""Hands finished episodes to the processes that score them, as they come."""

import asyncio
from collections import deque
from collections.abc import Awaitable, Callable, Collection, Sequence
from dataclasses import dataclass

from rewards.config import RewardsConfig
from rewards.errors import RewardError
from rewards.score import Score
from rewards.task import Task, TaskKind, Transcript

MOST_TOGETHER = 64  # episodes in one call

Item = tuple[Task, Transcript]
ScoreItems = Callable[[list[Item]], Awaitable[list[Score]]]
"""One worker's scores of some episodes, in order. Raises `WorkerDied` if its process ended."""

QUICK = {TaskKind.math.value, TaskKind.instructions.value}
"""Rewards that mostly cost less than a call to another process."""


class WorkerDied(RuntimeError):
    """The process that scores ended before it answered."""


def quick_kinds(config: RewardsConfig) -> set[TaskKind]:
    """The kinds of task whose every reward is quick."""
    return {TaskKind(kind) for kind, rewards in config.mixture.items() if rewards.keys() <= QUICK}


@dataclass(slots=True, eq=False)
class _Waiting:
    """An episode whose score somebody waits for."""

    item: Item
    result: asyncio.Future[Score]


class RewardPool:
    """Spreads episodes over workers, by the fewest under way (a rollout.sampler.Judge).

    Quick episodes travel together: those that end while a worker's last call of quick ones is
    under way wait for it, then go in one call. The others go one by one, at most `concurrency`
    to a worker:

        engine   | a ends | b ends, c ends | d ends |
        worker   |        | a .............| b c .......| d ...

    A worker whose process dies is given up for that call, which is made once more.
    """

    def __init__(
        self, workers: Sequence[ScoreItems], *, concurrency: int, quick: Collection[TaskKind]
    ) -> None:
        """Use these workers; tasks of the kinds in `quick` travel together."""
        self._workers = list(workers)
        self._concurrency = concurrency
        self._quick_kinds = quick
        self._quick: deque[_Waiting] = deque()
        self._slow: deque[_Waiting] = deque()
        self._under_way = [0] * len(workers)  # episodes
        self._quick_calls = [False] * len(workers)
        self._calls: set[asyncio.Task[None]] = set()

    async def score(self, task: Task, transcript: Transcript) -> Score:
        """The score of one episode.

        Raises:
            RewardError: what the worker raised, or two workers died of this episode.
        """
        waiting = _Waiting((task, transcript), asyncio.get_running_loop().create_future())
        (self._quick if task.kind in self._quick_kinds else self._slow).append(waiting)
        self._send()
        return await waiting.result

    def _send(self) -> None:
        """Start every call that may start now."""
        while self._quick:
            free = [i for i, busy in enumerate(self._quick_calls) if not busy]
            if not free:
                break
            worker = min(free, key=self._under_way.__getitem__)
            size = min(len(self._quick), MOST_TOGETHER)
            self._start(worker, [self._quick.popleft() for _ in range(size)], quick=True)
        while self._slow:
            worker = min(range(len(self._workers)), key=self._under_way.__getitem__)
            if self._under_way[worker] >= self._concurrency:
                break
            self._start(worker, [self._slow.popleft()], quick=False)

    def _start(self, worker: int, batch: list[_Waiting], *, quick: bool) -> None:
        batch = [waiting for waiting in batch if not waiting.result.cancelled()]
        if not batch:
            return
        self._under_way[worker] += len(batch)
        if quick:
            self._quick_calls[worker] = True
        call = asyncio.create_task(self._call(worker, batch, quick))
        self._calls.add(call)  # the event loop alone would not keep it
        call.add_done_callback(self._calls.discard)

    async def _call(self, worker: int, batch: list[_Waiting], quick: bool) -> None:
        try:
            scores = await self._scores(worker, [waiting.item for waiting in batch])
            for waiting, score in zip(batch, scores, strict=True):
                if not waiting.result.done():
                    waiting.result.set_result(score)
        except Exception as error:  # whoever waits raises it
            for waiting in batch:
                if not waiting.result.done():
                    waiting.result.set_exception(error)
        finally:
            self._under_way[worker] -= len(batch)
            if quick:
                self._quick_calls[worker] = False
        self._send()

    async def _scores(self, worker: int, items: list[Item]) -> list[Score]:
        try:
            return await self._workers[worker](items)
        except WorkerDied:
            other = (worker + 1) % len(self._workers)  # the same one, restarted, if it is alone
        try:
            return await self._workers[other](items)
        except WorkerDied as error:
            names = ", ".join(task.id for task, _ in items[:3])
            more = f" and {len(items) - 3} more" if len(items) > 3 else ""
            raise RewardError(f"scoring {names}{more} ended two reward workers: {error}") from error
