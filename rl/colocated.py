"""The learner on the engines' devices: one of them is there, the other sleeps (k2-spec 6.1).

The loop takes no part in it. A call that needs the learner's devices begins its turn: the engines
leave, the state comes from host memory. Weights that are published end it: the state leaves, and
the engines wake with the new version.
"""

import asyncio
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

from rl.part import Part
from rl.remote import RemoteLearner
from rl.rollout_seats import RemoteRollouts
from rl.turns import EnginesTurn
from rl.weight_transport import WeightTransport

if TYPE_CHECKING:
    from rl.learner_spec import Published

ANYWHERE = frozenset({"set_threads", "release"})
"""Calls that touch nothing on a device."""


class ColocatedLearner(RemoteLearner):
    """All learner shards, and the turns that they take with the engines.

    A turn is begun by the first call that needs it and lasts until weights are published: nothing
    wakes the engines between an update and its publication. A checkpoint that is saved in the
    engines' turn interrupts it, and the engines go on with the weights that they had.
    """

    def __init__(
        self,
        shards: Sequence[Part],
        note: str | None,
        share: Callable[[Any], Any] = lambda argument: argument,
        transport: WeightTransport | None = None,
    ) -> None:
        """Take shards that have just come up, and have the devices."""
        super().__init__(shards, note, share, transport)
        self.engines_turn = EnginesTurn(begun=False)
        self._engines: RemoteRollouts | None = None
        self._here = True
        self._calls = asyncio.Lock()  # one at a time, the change of turns before it included

    def share_with(self, engines: RemoteRollouts) -> None:
        """These are the engines that leave when the learner comes. They are awake."""
        self._engines = engines

    async def ready(self) -> None:
        """Begin a turn, unless it is the learner's already."""
        async with self._calls:
            await self._come()

    async def leave(self) -> None:
        """Put the state into host memory and let the engines have their turn."""
        async with self._calls:
            await self._go()

    async def call_all(self, method: str, *args: Any) -> list[Any]:
        """Call a method of every shard, in a turn of the learner if it needs the devices."""
        if method in ANYWHERE:
            return await super().call_all(method, *args)
        async with self._calls:
            interrupted = not self._here
            await self._come()
            try:
                return await super().call_all(method, *args)
            except asyncio.CancelledError:
                interrupted = False  # the run ends: nobody goes on
                raise
            finally:
                if interrupted and method == "save":
                    await self._go()
                    await self._wake()

    async def publish(self, version: int) -> "list[Published]":
        """Every shard's share of the weights; it ends the turn. Raises what the others' does."""
        published = await super().publish(version)
        await self.leave()
        return published

    async def _come(self) -> None:
        if self._here:
            return
        await self.engines_turn.end()
        if self._engines is not None:
            await self._engines.sleep()
        await super().call_all("reload")
        self._here = True

    async def _go(self) -> None:
        if not self._here:
            return
        self._here = False
        await super().call_all("offload")
        self.engines_turn.begin()

    async def _wake(self) -> None:
        if self._engines is not None:
            await self._engines.wake()
