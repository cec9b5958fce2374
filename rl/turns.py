"""The engines' turns on devices that they share with the learner (k2-spec 6.1).

    engines | sample until a step's groups are there | asleep, requests kept  | new weights, go on
    learner | its state lies in the hosts' memory    | update, publish, leave |

`rl.colocated` begins and ends the turns. Where engines have devices of their own, one turn lasts
for ever.
"""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager


class EnginesTurn:
    """The time in which engines may use the devices; one that is still starting uses them, too."""

    def __init__(self, *, begun: bool = True) -> None:
        """It is the engines' turn, unless it has not `begun`."""
        self._now, self._none_joins = asyncio.Event(), asyncio.Event()
        self._joining = 0
        self._none_joins.set()
        if begun:
            self._now.set()

    @property
    def now(self) -> bool:
        """Whether engines may begin to use the devices."""
        return self._now.is_set()

    def begin(self) -> None:
        """The devices are the engines'."""
        self._now.set()

    async def end(self) -> None:
        """Let no engine start from now on; wait for those that are being started."""
        self._now.clear()
        await self._none_joins.wait()

    @asynccontextmanager
    async def joining(self) -> AsyncIterator[None]:
        """Wait for the turn; it does not end while an engine starts in here."""
        while not self._now.is_set():  # it may have ended again before this task goes on
            await self._now.wait()
        self._joining += 1
        self._none_joins.clear()
        try:
            yield
        finally:
            self._joining -= 1
            if not self._joining:
                self._none_joins.set()
