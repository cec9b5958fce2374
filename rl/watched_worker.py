"""A rollout worker that says whether its engine is there, and ends one that is not."""

import asyncio

import psutil

from rl.rollout_worker import RolloutWorker
from rollout.errors import EngineError


class WatchedRolloutWorker(RolloutWorker):
    """A rollout worker under supervision."""

    async def answer(self, within_s: float) -> None:
        """Return once the engine's core has answered; its queue of requests does not matter.

        The core answers between two steps of its scheduler, however long its requests take.

        Raises:
            EngineError: it is dead, or did not answer in time and was killed. Every request that
                is under way then fails with the same.
        """
        try:
            async with asyncio.timeout(within_s):
                await self._engine.answer()
        except TimeoutError as error:
            for process in psutil.Process().children(recursive=True):
                process.kill()
            raise EngineError(
                f"the engine's core did not answer for {within_s:g} s and was killed"
            ) from error
