"""How draws begin: each with its own seed, and in a synchronous run all of a step together.

The last bits of what an engine computes depend on which requests share a step of its scheduler. So
requests that are to come out the same in every run are all in its queue, in one order, before that
goes on.
"""

import asyncio
import contextlib
from collections.abc import Callable
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass, replace

from rollout.draws import wide_hash

PATIENCE_S = 30.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Start:
    """The seed of a group, or of a draw, and what starts with it.

    Example, the second of two groups of four draws that start together: `Start(seed=9, place=1,
    together=2)`; the last of its draws, `of_draw(3, 4)`, is the place 7 of 8.
    """

    seed: int
    place: int = 0  # among those that start together
    together: int = 0  # how many start together; 0: it waits for none

    def of_engine(self, engines: int) -> "Start":
        """A group's, among those that the same one of `engines` gets: place p is engine p's."""
        mine = range(self.place % engines, self.together, engines)
        return replace(self, place=self.place // engines, together=len(mine))

    def of_draw(self, number: int, draws: int) -> "Start":
        """That of one of a group's `draws` draws."""
        return Start(
            seed=wide_hash(str(self.seed), "draw", str(number)),
            place=self.place * draws + number,
            together=self.together * draws,
        )

    def seed_after(self, begun: int) -> int:
        """The seed [63 bits] of the request that goes on after a draw's first `begun` tokens."""
        return wide_hash(str(self.seed), "segment", str(begun)) >> 1

    def alone(self) -> "Start":
        """The same seed, and nothing to wait for."""
        return replace(self, place=0, together=0)


class Gate:
    """Draws that start together wait here for each other, while the engine stands still."""

    def __init__(
        self,
        held: Callable[[], AbstractAsyncContextManager[None]],
        requests: Callable[[], int],
        *,
        patience_s: float = PATIENCE_S,
    ) -> None:
        """Let draws into one engine.

        Args:
            held: within it the engine's scheduler stands still, and its caches are empty.
            requests: how many have been sent to the engine and have not ended.
            patience_s: how long those that are here wait for one that does not come, as when it was
                given to a worker that is lost.
        """
        self._held, self._requests, self._patience_s = held, requests, patience_s
        self._waiting: list[tuple[int, asyncio.Future[None]]] = []
        self._all_here = asyncio.Event()
        self._opening: set[asyncio.Task[None]] = set()

    async def enter(self, start: Start) -> None:
        """Return when all that start together are here, in the order of their places.

        Raises what `held` raises.
        """
        waiting = asyncio.get_running_loop().create_future()
        self._waiting.append((start.place, waiting))
        if len(self._waiting) == 1:
            self._all_here.clear()
            opening = asyncio.create_task(self._open())
            self._opening.add(opening)
            opening.add_done_callback(self._opening.discard)
        if len(self._waiting) >= start.together:
            self._all_here.set()
        await waiting

    async def _open(self) -> None:
        try:
            async with self._held():
                with contextlib.suppress(TimeoutError):
                    async with asyncio.timeout(self._patience_s):
                        await self._all_here.wait()
                waiting = self._take()
                most = self._requests() + len(waiting)
                for each in waiting:
                    each.set_result(None)
                # A few turns of the loop: the engine must not go on before the last is queued.
                with contextlib.suppress(TimeoutError):
                    async with asyncio.timeout(self._patience_s):
                        while self._requests() < most:
                            await asyncio.sleep(0)
        except Exception as error:
            for each in self._take():
                each.set_exception(error)

    def _take(self) -> list[asyncio.Future[None]]:
        """Those that wait, in the order of their places; cancelled ones left out."""
        waiting = sorted(self._waiting, key=lambda pair: pair[0])
        self._waiting.clear()
        return [each for _, each in waiting if not each.done()]
