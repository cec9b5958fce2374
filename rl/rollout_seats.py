"""All rollout workers: a group goes to the least busy one, and a lost one is started again.

What a lost worker was doing is done again on any other: a group is handed in once, when it is whole
and scored, so nothing is counted twice. A worker that takes the place of a lost one receives the
weights that are served before it gets its first group.
"""

import asyncio
import contextlib
import time
from collections.abc import AsyncGenerator, Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from model.send_weights import WeightUpdate
from rewards.comparison import Pair, PairOutcome
from rewards.task import Task
from rl.errors import BadInput, PartLost
from rl.part import Part, asked_spans, within
from rl.supervision import Restarts
from rl.timeline import Span
from rl.turns import EnginesTurn
from rl.weight_layers import Layer
from rollout.episode import Group
from rollout.errors import EngineError, StaleWeightsError, WeightUpdateError
from rollout.probe import ProbeReport, compare_probe
from rollout.starts import Start

COMPARISON_TOKENS = 512  # of two verdicts, roughly: what a comparison weighs beside a group
PATIENCE_S = 10.0  # the driver's, beyond the worker's own with its engine

LOST = (PartLost, EngineError)
"""The worker's process has ended, or the engine in it."""

StartWorker = Callable[[int, int], Awaitable[Part]]
"""Starts rollout worker `index` for the n-th time, n from 0. Raises what is in `LOST`."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Offer:
    """Published weights, and what engines are compared on."""

    update: WeightUpdate
    probe: list[list[int]]  # [sequences][tokens]
    logprobs: list[list[float]]  # the learner's, of every token but the first
    tolerance: float  # nats
    at: Callable[[Part], Awaitable[WeightUpdate]] | None = None
    """Where the update lies for an engine, once it is there; None: as it is, for all. Raises what
    is in `LOST` if it cannot come there."""
    layers: Callable[[Sequence[Part]], AsyncGenerator[Layer, None]] | None = None
    """The same for several engines, layer by layer: what they take then, in step."""


@dataclass(slots=True, eq=False)
class _Seat:
    """The place of one rollout worker."""

    index: int
    part: Part | None  # None while it is being started again
    under_way: int = 0  # tokens that may be drawn
    given_up: asyncio.Event = field(default_factory=asyncio.Event)  # that part; set once
    starts: int = 1
    busy_before: float = 0.0  # seconds, of the workers that are gone
    busy: float = 0.0  # of all, when last asked

    @property
    def name(self) -> str:
        return f"rollout worker {self.index}"


class RemoteRollouts:
    """All rollout workers; a group goes to the worker with the fewest tokens under way."""

    def __init__(
        self,
        workers: Sequence[Part],
        start: StartWorker,
        restarts: Restarts,
        *,
        timeout_s: float,
        turn: EnginesTurn | None = None,
    ) -> None:
        """Use these workers, already started, and look after them.

        Args:
            workers: in the order of their indices.
            start: makes the one that takes the place of a lost one.
            restarts: counts, and says when it is enough.
            timeout_s: how long an engine may not answer: neither whether it is there nor, once it
                has been given weights, that it has them. How long a group takes does not matter.
            turn: when an engine may start; None: always.
        """
        self._seats = [_Seat(index, worker) for index, worker in enumerate(workers)]
        self._start = start
        self._restarts = restarts
        self._timeout_s = timeout_s
        self._turn = turn or EnginesTurn()
        self._weights = asyncio.Lock()  # a new version and a joining engine take turns
        self._offer: Offer | None = None
        self._failure: BaseException | None = None
        self._failed = asyncio.Event()
        self._changed = asyncio.Event()
        self._tasks = {asyncio.create_task(self._watch(seat)) for seat in self._seats}

    @property
    def workers(self) -> list[Part]:
        """Those that are there now."""
        return [seat.part for seat in self._seats if seat.part is not None]

    async def sample(
        self,
        task: Task,
        *,
        samples: int,
        temperature: float,
        rank: bool = True,
        start: Start | None = None,
    ) -> Group:
        """One group, from prompt to score; begun anew elsewhere if its worker is lost.

        What starts together goes to workers by its place, whatever they do; what is begun anew
        waits for no other, and so may come out otherwise.
        """
        tokens, group = samples * task.token_budget, (task, samples, temperature, rank)
        try:
            if start is not None and start.together:
                engines = len(self._seats)
                seat, given = self._seats[start.place % engines], start.of_engine(engines)
                with contextlib.suppress(*LOST):
                    return await self._on(seat, tokens, "sample", *group, given)
                start = start.alone()
            return await self._on_one(tokens, "sample", *group, start)
        except ValueError as error:
            raise BadInput(f"task {task.id}: {error}") from error

    async def compare(self, pairs: Sequence[Pair]) -> list[PairOutcome]:
        """The critic's outcome of each pair, in order; spread over the workers."""
        compared = (self._on_one(COMPARISON_TOKENS, "compare", pair) for pair in pairs)
        return list(await asyncio.gather(*compared))

    async def busy_seconds(self) -> float:
        """Seconds with work, averaged over engines."""
        busy = await asyncio.gather(*(self._busy(seat) for seat in self._seats))
        return sum(busy) / len(busy)

    async def spans(self) -> list[Span]:
        """What the workers did since the last call."""
        return await asked_spans({seat.name: seat.part for seat in self._seats if seat.part})

    async def serve(self, publish: Callable[[], Awaitable[Offer]]) -> list[ProbeReport]:
        """Bring what `publish` offers to every engine that is there; how each agrees with it.

        Raises:
            StaleWeightsError: an engine's log-probs are not those of the weights offered.
        """
        self.check()
        async with self._weights:
            self._offer = None
            self._offer = await publish()
            return await self._give_all(self._offer)

    async def sleep(self) -> None:
        """Have every engine leave its device, requests kept, until `serve` or `wake`.

        One that does not leave is killed. Its turn must have ended: no engine is being started.
        """
        self.check()
        await asyncio.gather(*(self._sleep(seat, seat.part) for seat in self._seats if seat.part))

    async def wake(self) -> None:
        """Bring sleeping engines back with the weights last offered; without any, they sleep on."""
        self.check()
        async with self._weights:
            if self._offer is not None:
                await self._give_all(self._offer)

    def check(self) -> None:
        """Raise what ended the supervision: a crash loop, or a mistake of ours."""
        if self._failure is not None:
            raise self._failure

    async def failed(self) -> None:
        """Wait for what ends the supervision, if anything does, and raise it."""
        await self._failed.wait()
        self.check()

    def fail(self, failure: BaseException) -> None:
        """Let everyone who waits for a worker, or for its answer, raise this."""
        self._failure = self._failure or failure
        self._failed.set()
        self._changed.set()
        for seat in self._seats:
            seat.given_up.set()

    async def close(self) -> None:
        """Start nothing any more, and look after nobody."""
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    async def _on_one(self, tokens: int, method: str, *args: Any) -> Any:
        """Call a method of the least busy worker; of another one if that is lost meanwhile."""
        while True:
            seat = await self._least_busy()
            with contextlib.suppress(*LOST):
                return await self._on(seat, tokens, method, *args)

    async def _on(self, seat: _Seat, tokens: int, method: str, *args: Any) -> Any:
        """Call a method of a seat's worker, once it has one. Raises `LOST` if that is lost then."""
        while (part := seat.part) is None:
            await self._change()
        seat.under_way += tokens
        try:
            return await self._call(seat, part, method, *args)
        except LOST as error:
            self.check()
            self._lose(seat, part, error)
            raise
        finally:
            seat.under_way -= tokens

    async def _call(self, seat: _Seat, part: Part, method: str, *args: Any) -> Any:
        """Call a method that may take as long as it likes, until its worker is given up.

        A process that hangs may not even end when it is killed, and its calls with it.
        """
        call = asyncio.create_task(part.call(method, *args))
        given_up = asyncio.create_task(seat.given_up.wait())
        try:
            await asyncio.wait((call, given_up), return_when=asyncio.FIRST_COMPLETED)
            if call.done():
                return call.result()
            raise PartLost(seat.name, "given up")
        finally:
            call.cancel()
            given_up.cancel()

    async def _least_busy(self) -> _Seat:
        """That of the worker with the fewest tokens under way, once there is one."""
        self.check()
        while not (free := [seat for seat in self._seats if seat.part is not None]):
            await self._change()
        return min(free, key=lambda seat: seat.under_way)

    async def _change(self) -> None:
        """Wait until a worker is back. Raises what ended the supervision."""
        self.check()
        self._changed.clear()
        await self._changed.wait()
        self.check()

    async def _busy(self, seat: _Seat) -> float:
        part = seat.part
        if part is not None:
            try:
                busy = await within(self._timeout_s, seat.name, part.call("busy_seconds"))
                if seat.part is part:  # else it is in `busy_before` already
                    seat.busy = seat.busy_before + busy
            except LOST as error:
                self._lose(seat, part, error)
        return seat.busy

    async def _sleep(self, seat: _Seat, part: Part) -> None:
        try:
            await within(self._timeout_s + PATIENCE_S, seat.name, part.call("sleep"))
        except LOST as error:
            part.kill()  # before the learner comes
            self._lose(seat, part, error)

    async def _give_all(self, offer: Offer) -> list[ProbeReport]:
        if offer.layers is not None:
            return await self._give_layers(offer, {s: s.part for s in self._seats if s.part})
        given = [self._give(seat, seat.part, offer) for seat in self._seats if seat.part]
        return [report for report in await asyncio.gather(*given) if report is not None]

    async def _give(self, seat: _Seat, part: Part, offer: Offer) -> ProbeReport | None:
        try:
            try:
                return await self._receive(seat, part, offer)
            except WeightUpdateError:  # the weights before serve on: once more, then a new engine
                return await self._receive(seat, part, offer)
        except (*LOST, WeightUpdateError) as error:
            self._lose(seat, part, error)
            return None

    async def _give_layers(self, offer: Offer, to: Mapping[_Seat, Part]) -> list[ProbeReport]:
        """Who cannot take a layer is lost: half of its weights are new, and half are old."""
        assert offer.layers is not None
        there, parts, reports = dict(to), list(to.values()), list[ProbeReport]()
        async with contextlib.aclosing(offer.layers(parts)) as layers:
            async for layer in layers:
                if not there:
                    break
                taking = (self._load(seat, part, layer, offer) for seat, part in there.items())
                answers = await asyncio.gather(*taking, return_exceptions=True)
                for (seat, part), answer in zip(list(there.items()), answers, strict=True):
                    if isinstance(answer, (*LOST, WeightUpdateError)):
                        del there[seat]
                        parts.remove(part)
                        self._lose(seat, part, answer)
                    elif isinstance(answer, BaseException):
                        raise answer
                    elif answer is not None:
                        reports.append(answer)
        return reports

    async def _load(
        self, seat: _Seat, part: Part, layer: Layer, offer: Offer
    ) -> ProbeReport | None:
        """Have an engine load a layer; after the last one, how it agrees."""
        placed = layer.placed[part]
        if isinstance(placed, BaseException):
            raise placed
        probe = offer.probe if layer.last else None
        loading = part.call("load_layer", placed, layer.first, probe)
        logprobs = await within(self._timeout_s + PATIENCE_S, seat.name, loading)
        return self._report(seat, offer, logprobs) if layer.last else None

    async def _receive_layers(self, seat: _Seat, part: Part, offer: Offer) -> None:
        """Have an engine that joins take them all."""
        assert offer.layers is not None
        async with contextlib.aclosing(offer.layers([part])) as layers:
            async for layer in layers:
                await self._load(seat, part, layer, offer)

    async def _receive(self, seat: _Seat, part: Part, offer: Offer) -> ProbeReport:
        update = offer.update if offer.at is None else await offer.at(part)
        receiving = part.call("receive", update, offer.probe)
        logprobs = await within(self._timeout_s + PATIENCE_S, seat.name, receiving)
        return self._report(seat, offer, logprobs)

    def _report(self, seat: _Seat, offer: Offer, logprobs: list[list[float]]) -> ProbeReport:
        return compare_probe(
            logprobs,
            offer.logprobs,
            tolerance=offer.tolerance,
            version=offer.update.version,
            engine=seat.name,
        )

    async def _watch(self, seat: _Seat) -> None:
        """Find a worker that hangs, or died while nothing was asked of it."""
        while True:
            await asyncio.sleep(self._timeout_s / 4)
            if (part := seat.part) is None:
                continue
            try:
                answer = part.call("answer", self._timeout_s)
                await within(self._timeout_s + PATIENCE_S, seat.name, answer)
            except LOST as error:
                self._lose(seat, part, error)
            except Exception as error:
                self.fail(error)
                return

    def _lose(self, seat: _Seat, part: Part, error: Exception) -> None:
        """Take a worker out of service and start another one; once, whoever notices."""
        if seat.part is not part:
            return
        seat.part = None
        seat.given_up.set()
        seat.given_up = asyncio.Event()
        seat.busy_before = seat.busy
        self._tasks.add(asyncio.create_task(self._restart(seat, part, error)))

    async def _restart(self, seat: _Seat, lost: Part, error: Exception) -> None:
        """Put a worker in the place of `lost`, which serves what the others serve."""
        started = time.monotonic()
        try:
            lost.kill()
            seat.part = await self._joined(seat, error)
        except Exception as failure:
            self.fail(failure)
            return
        self._restarts.back(seat.name, time.monotonic() - started)
        self._changed.set()

    async def _joined(self, seat: _Seat, error: Exception) -> Part:
        """A new worker with the weights that are served; as many attempts as `restarts` grants."""
        while True:
            self._restarts.lost(seat.name, error.why if isinstance(error, PartLost) else str(error))
            try:
                async with self._turn.joining():
                    return await self._join(seat)
            except (*LOST, WeightUpdateError, StaleWeightsError) as again:
                error = again

    async def _join(self, seat: _Seat) -> Part:
        seat.starts += 1
        part = await self._start(seat.index, seat.starts - 1)
        try:
            async with self._weights:
                if self._offer is not None and self._offer.layers is not None:
                    await self._receive_layers(seat, part, self._offer)
                elif self._offer is not None:
                    await self._receive(seat, part, self._offer)
                return part
        except BaseException:
            part.kill()
            raise
