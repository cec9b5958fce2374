"""What runs in a process that scores; it loads neither torch nor Ray's parts of the run."""

import asyncio
import os
from collections.abc import Collection, Sequence
from concurrent.futures import ThreadPoolExecutor

from rewards.config import RewardsConfig
from rewards.judge import VerifiableJudge
from rewards.score import Score
from rewards.task import TaskKind
from rewards.watch import SlowReward
from rl.reward_pool import Item


class RewardWorker:
    """Scores episodes in a process of its own, several at a time in threads."""

    def __init__(self, config: RewardsConfig) -> None:
        """Load the plug-ins, and start what is slow to start."""
        self._judge = VerifiableJudge(config)
        self._threads = ThreadPoolExecutor(config.concurrency)
        self._threads.submit(self._judge.start)

    async def score(self, items: Sequence[Item]) -> list[Score]:
        """One score for each episode."""
        loop = asyncio.get_running_loop()
        shares = min(len(items), os.cpu_count() or 1)  # more threads would only take turns
        jobs = [
            loop.run_in_executor(self._threads, self._score_all, items[first::shares])
            for first in range(shares)
        ]
        done = await asyncio.gather(*jobs)
        return [done[place % shares][place // shares] for place in range(len(items))]

    def _score_all(self, items: Sequence[Item]) -> list[Score]:
        return [self._judge.score(task, [transcript])[0] for task, transcript in items]

    async def ready(self) -> int:
        """Answer, with its number: this process has started."""
        return os.getpid()

    async def check(self, kinds: Collection[TaskKind]) -> None:
        """Raise `RewardError` if tasks of these kinds cannot be scored here."""
        await asyncio.to_thread(self._judge.check, kinds)

    async def slow(self) -> list[SlowReward]:
        """Rewards that are unusually slow, each named once."""
        return self._judge.slow()

    async def close(self) -> None:
        """End the processes that this worker supervises."""
        await asyncio.to_thread(self._judge.close)
