"""Names rewards that take unusually long, for as long as a run lasts."""

import asyncio
from collections.abc import Awaitable, Callable, Sequence

from rewards.watch import SlowReward

MOST_LINES = 5  # rewards named at a time


class SlowRewardLog:
    """Asks for slow rewards again and again, says which they are, and counts them."""

    def __init__(self, say: Callable[[str], None], *, every_s: float) -> None:
        """Say a line through `say`, asking every `every_s` seconds."""
        self._say = say
        self._every_s = every_s
        self._count = 0
        self._asking: asyncio.Task[None] | None = None

    def start(self, ask: Callable[[], Awaitable[Sequence[SlowReward]]]) -> None:
        """Begin to ask `ask`, which names each slow reward once."""
        self._asking = asyncio.create_task(self._run(ask))

    def take(self) -> int:
        """How many there were since the last call."""
        count, self._count = self._count, 0
        return count

    def stop(self) -> None:
        """Ask no more."""
        if self._asking is not None:
            self._asking.cancel()

    async def _run(self, ask: Callable[[], Awaitable[Sequence[SlowReward]]]) -> None:
        while True:
            await asyncio.sleep(self._every_s)
            slow = await ask()
            self._count += len(slow)
            for each in slow[:MOST_LINES]:
                self._say(str(each))
            if len(slow) > MOST_LINES:
                self._say(f"and {len(slow) - MOST_LINES} more slow rewards")
