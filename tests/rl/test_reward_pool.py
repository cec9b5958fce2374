"""The pool with workers in this process: what travels together, where it goes, what dies."""

import asyncio
from collections.abc import Sequence

import pytest

from rewards.config import RewardsConfig
from rewards.errors import RewardError
from rewards.score import Score
from rewards.task import Message, Task, TaskKind, Transcript
from rl.reward_pool import Item, RewardPool, WorkerDied, quick_kinds


def _item(number: int, kind: TaskKind = TaskKind.math) -> Item:
    task = Task(
        id=f"t/{number}",
        kind=kind,
        messages=(Message(role="user", content="?"),),
        reference=str(number),
        token_budget=8,
    )
    return task, Transcript(messages=(), response="", response_tokens=1, truncated=False)


class Worker:
    """Scores a task by its reference, when it is told to."""

    def __init__(self, *, open_: bool = True) -> None:
        self.calls: list[list[str]] = []
        self.gate = asyncio.Event()
        self.deaths = 0
        if open_:
            self.gate.set()

    async def __call__(self, items: list[Item]) -> list[Score]:
        self.calls.append([task.id for task, _ in items])
        await self.gate.wait()
        if self.deaths:
            self.deaths -= 1
            raise WorkerDied("killed")
        if any(task.reference == "13" for task, _ in items):
            raise RewardError("task t/13: its gold cannot be read")
        return [Score(total=float(task.reference)) for task, _ in items]


def _pool(*workers: Worker, concurrency: int = 2) -> RewardPool:
    return RewardPool(workers, concurrency=concurrency, quick={TaskKind.math})


async def _all(pool: RewardPool, items: Sequence[Item]) -> list[float]:
    return [score.total for score in await asyncio.gather(*(pool.score(*each) for each in items))]


def test_quick_episodes_that_end_during_a_call_travel_together() -> None:
    async def main() -> None:
        worker = Worker()
        pool = _pool(worker)
        totals = await _all(pool, [_item(n) for n in range(6)])
        assert totals == [0, 1, 2, 3, 4, 5]
        assert worker.calls == [["t/0"], ["t/1", "t/2", "t/3", "t/4", "t/5"]]

    asyncio.run(main())


def test_the_others_go_one_by_one_to_the_least_busy_up_to_the_limit() -> None:
    async def main() -> None:
        one, two = Worker(open_=False), Worker(open_=False)
        pool = _pool(one, two, concurrency=2)
        running = asyncio.create_task(_all(pool, [_item(n, TaskKind.code) for n in range(6)]))
        await asyncio.sleep(0.01)
        assert one.calls == [["t/0"], ["t/2"]] and two.calls == [["t/1"], ["t/3"]]
        two.gate.set()
        await asyncio.sleep(0.01)
        assert len(one.calls) == 2 and two.calls[2:] == [["t/4"], ["t/5"]]
        one.gate.set()
        assert await running == [0, 1, 2, 3, 4, 5]

    asyncio.run(main())


def test_a_call_to_a_worker_that_died_is_made_once_more_elsewhere() -> None:
    async def main() -> None:
        one, two = Worker(), Worker()
        one.deaths = 1
        assert await _all(_pool(one, two), [_item(3)]) == [3]
        assert (one.calls, two.calls) == ([["t/3"]], [["t/3"]])

    asyncio.run(main())


def test_episodes_that_end_two_workers_are_an_error_not_a_zero() -> None:
    async def main() -> None:
        worker = Worker()
        worker.deaths = 2
        pool = _pool(worker)
        with pytest.raises(RewardError, match="scoring t/4 ended two reward workers: killed"):
            await pool.score(*_item(4))
        assert (await pool.score(*_item(5))).total == 5

    asyncio.run(main())


def test_what_a_worker_raises_reaches_whoever_waits_and_the_pool_goes_on() -> None:
    async def main() -> None:
        pool = _pool(Worker())
        with pytest.raises(RewardError, match="t/13"):
            await pool.score(*_item(13))
        assert (await pool.score(*_item(1))).total == 1

    asyncio.run(main())


def test_a_score_too_few_is_an_error_and_nobody_waits_for_ever() -> None:
    async def short(items: list[Item]) -> list[Score]:
        return [Score(total=1.0)] * (len(items) - 1)

    async def main() -> None:
        pool = RewardPool([short], concurrency=2, quick={TaskKind.math})
        with pytest.raises(ValueError, match="shorter"):
            await asyncio.wait_for(pool.score(*_item(1)), 10)

    asyncio.run(main())


def test_an_episode_nobody_waits_for_any_more_is_not_sent() -> None:
    async def main() -> None:
        worker = Worker(open_=False)
        pool = _pool(worker)
        tasks = [asyncio.create_task(pool.score(*_item(n))) for n in range(3)]
        await asyncio.sleep(0.01)
        tasks[0].cancel()
        tasks[1].cancel()
        await asyncio.sleep(0)
        worker.gate.set()
        assert (await tasks[2]).total == 2
        assert worker.calls == [["t/0"], ["t/2"]]

    asyncio.run(main())


def test_a_plugin_may_be_slow() -> None:
    config = RewardsConfig(mixture={"math": {"math": 0.5, "a.py:f": 0.5}, "open": {"a.py:f": 1.0}})
    assert quick_kinds(config) == {TaskKind.instructions}
    assert quick_kinds(RewardsConfig()) == {TaskKind.math, TaskKind.instructions}
