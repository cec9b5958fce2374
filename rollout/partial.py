"""Partial rollout: samples take turns in one engine, segment by segment (K1.5 sec. 2.6.2).

So many samples are in the engine at a time, the oldest first. One that has drawn its segment (so
many tokens, or for so long) under one version of the weights gives its place away and goes on when
the next version arrives, with all its tokens as prompt. It does not wait while there is room for
it: an idle place helps nobody.
"""

import asyncio
import heapq
import itertools
import math
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import replace
from typing import Protocol

import numpy as np

from rollout.episode import Completion, StopReason, kept
from rollout.routing import joined_routing
from rollout.starts import Start
from rollout.versions import Versions


class Segments(Protocol):
    """What is needed of an engine."""

    version: int  # of the weights that the next token is sampled with

    async def draw(
        self,
        prompt_ids: Sequence[int],
        *,
        max_tokens: int,
        temperature: float,
        begun: Sequence[int] = (),
        segment: int | None = None,
        seconds: float | None = None,
        start: Start | None = None,
    ) -> Completion:
        """The next tokens after `prompt_ids` and `begun`; see `rollout.engine.Engine.draw`."""
        ...


class Places:
    """A number of places; who is oldest gets the next that becomes free."""

    def __init__(self, count: int) -> None:
        """All are free."""
        self._free = count
        self._waiting: list[tuple[int, asyncio.Future[None]]] = []  # a heap: ages differ

    @property
    def free(self) -> int:
        """Places that nobody holds or waits for."""
        return self._free

    @asynccontextmanager
    async def hold(self, age: int) -> AsyncIterator[None]:
        """Wait for a place and hold it; the lower `age`, the earlier. Ages differ."""
        await self._take(age)
        try:
            yield
        finally:
            self._give_back()

    async def _take(self, age: int) -> None:
        if self._free:
            self._free -= 1
            return
        place = asyncio.get_running_loop().create_future()
        heapq.heappush(self._waiting, (age, place))
        try:
            await place
        except asyncio.CancelledError:
            if not place.cancelled():  # given and cancelled in one turn of the loop
                self._give_back()
            raise

    def _give_back(self) -> None:
        while self._waiting:
            _, place = heapq.heappop(self._waiting)
            if not place.done():
                place.set_result(None)
                return
        self._free += 1


class PartialRollout:
    """Draws whole completions from one engine, for any number of callers at once."""

    def __init__(
        self,
        engine: Segments,
        *,
        places: int,
        segment_tokens: int | None,
        segment_s: float | None = None,
    ) -> None:
        """Draw from `engine`, which is not owned, `places` samples at a time.

        `segment_tokens` is what a sample may draw under one version of the weights, `segment_s` how
        long [seconds]; None: without limit.
        """
        self._engine = engine
        self._places = Places(places)
        self._tokens, self._seconds = segment_tokens, segment_s
        self._arrived = -math.inf  # the engine's version
        self._ages = itertools.count()
        self._parked: dict[int, asyncio.Future[None]] = {}  # by age

    async def draw(
        self,
        prompt_ids: Sequence[int],
        *,
        max_tokens: int,
        temperature: float,
        park: bool = True,
        start: Start | None = None,
    ) -> Completion:
        """Draw one continuation of at most `max_tokens` tokens; in one go unless `park`.

        Each token has the version and the log-prob that it was sampled with. Draws that start
        together neither wait for a place nor park: the engine has them all, and gets no weights
        before the last has ended. Raises what the engine's `draw` raises.
        """
        if start is not None and start.together:
            return await self._engine.draw(
                prompt_ids, max_tokens=max_tokens, temperature=temperature, start=start
            )
        age = next(self._ages)
        drawn = Completion(
            prompt_ids=kept(prompt_ids, np.int32),
            token_ids=kept((), np.int32),
            logprobs=kept((), np.float32),
            versions=Versions.of(()),
            stop_reason=StopReason.length,
            temperature=temperature,
        )
        try:
            while True:
                async with self._places.hold(age):
                    drawn = await self._go_on(drawn, max_tokens, park, start)
                if _ended(drawn, max_tokens):
                    return drawn
                if self._places.free and age < min(self._parked, default=age + 1):
                    continue  # nobody would take its place
                drawn = replace(drawn, parked=drawn.parked + 1)
                await self._park(age)
        finally:
            self._go_on_where_room()

    async def _go_on(
        self, drawn: Completion, max_tokens: int, park: bool, start: Start | None
    ) -> Completion:
        """Draw to the end, or if it may `park`, until a segment is of the engine's version."""
        began = _now()
        tokens, seconds = (self._tokens, self._seconds) if park else (None, None)
        while True:
            piece = await self._engine.draw(
                drawn.prompt_ids.tolist(),
                max_tokens=max_tokens - len(drawn.token_ids),
                temperature=drawn.temperature,
                begun=drawn.token_ids.tolist(),
                segment=tokens,
                seconds=seconds,
                start=start,
            )
            drawn = _joined(drawn, piece)
            if not park or _ended(drawn, max_tokens):
                return drawn
            if self._tokens is not None:
                tokens = self._tokens - _drawn_under(self._engine.version, drawn)
            if self._seconds is not None:
                seconds = self._seconds - (_now() - max(began, self._arrived))
            if any(left is not None and left <= 0 for left in (tokens, seconds)):
                return drawn

    def new_version(self) -> None:
        """The engine has other weights: every sample that waits for them goes on."""
        self._arrived = _now()
        for _, waiting in sorted(self._parked.items()):  # the oldest first: ages differ
            if not waiting.done():
                waiting.set_result(None)

    async def _park(self, age: int) -> None:
        waiting = self._parked[age] = asyncio.get_running_loop().create_future()
        asyncio.get_running_loop().call_soon(self._go_on_where_room)
        try:
            await waiting
        finally:
            del self._parked[age]

    def _go_on_where_room(self) -> None:
        """The oldest go on without new weights where nobody waits for a place."""
        for age in sorted(self._parked)[: self._places.free]:
            if not self._parked[age].done():
                self._parked[age].set_result(None)


def _joined(drawn: Completion, piece: Completion) -> Completion:
    return replace(
        drawn,
        token_ids=np.concatenate((drawn.token_ids, piece.token_ids)),
        logprobs=np.concatenate((drawn.logprobs, piece.logprobs)),
        versions=drawn.versions + piece.versions,
        stop_reason=piece.stop_reason,
        routing=joined_routing(drawn.routing, piece.routing),
    )


def _ended(drawn: Completion, max_tokens: int) -> bool:
    return drawn.stop_reason is not StopReason.length or len(drawn.token_ids) >= max_tokens


def _now() -> float:
    return asyncio.get_running_loop().time()


def _drawn_under(version: int, drawn: Completion) -> int:
    """How many of its last tokens were sampled with `version`."""
    *_, (newest, tokens) = (version, 0), *drawn.versions.runs()
    return tokens if newest == version else 0
