"""Looks after the reward workers: which rewards are slow, and whose process was replaced."""

import asyncio
from collections.abc import Callable, Sequence
from typing import Any

from rewards.watch import SlowReward
from rl.errors import PartLost
from rl.part import Part
from rl.supervision import Restarts

SLOW_ANSWER_S = 5.0  # a reward worker that is being restarted does not answer
LOOK_S = 2.0  # between two looks at a reward worker


class RewardWatch:
    """Asks the reward workers of a run, whose processes the cluster replaces by itself."""

    def __init__(self, judges: Sequence[Part], restarts: Restarts) -> None:
        """Ask these."""
        self._judges = list(judges)
        self._restarts = restarts
        self._asked: dict[int, asyncio.Task[Any]] = {}  # slow rewards, by judge: not answered yet
        self._watching: list[asyncio.Task[None]] = []

    def start(self, fail: Callable[[Exception], None]) -> None:
        """Count processes that end from now on; `fail` hears of a crash loop."""
        names = [f"reward worker {place}" for place in range(len(self._judges))]
        self._watching = [
            asyncio.create_task(self._watch(name, judge, fail))
            for name, judge in zip(names, self._judges, strict=True)
        ]

    def stop(self) -> None:
        """Count no more."""
        for watching in self._watching:
            watching.cancel()

    async def slow(self) -> list[SlowReward]:
        """Rewards that are unusually slow, each named once.

        A judge that does not answer in time, as when a plug-in lets no other thread run, is not
        asked again before it has: an answer that nobody hears would be lost.
        """
        for place, judge in enumerate(self._judges):
            if place not in self._asked:
                self._asked[place] = asyncio.create_task(_slow_of(judge))
        done, _ = await asyncio.wait(self._asked.values(), timeout=SLOW_ANSWER_S)
        answered = [place for place, asked in self._asked.items() if asked in done]
        return [slow for place in answered for slow in self._asked.pop(place).result()]

    async def _watch(self, name: str, judge: Part, fail: Callable[[Exception], None]) -> None:
        known: int | None = None
        try:
            while True:
                try:
                    process = await judge.call("ready")
                except PartLost:  # until the next process is there
                    await asyncio.sleep(LOOK_S / 4)
                    continue
                if known not in (None, process):
                    self._restarts.lost(name, f"process {known} ended, {process} is in its place")
                known = process
                await asyncio.sleep(LOOK_S)
        except Exception as error:
            fail(error)


async def _slow_of(judge: Part) -> list[SlowReward]:
    try:
        return await judge.call("slow")
    except PartLost:
        return []
