"""The learner's shards as the driver speaks to them, and the way of their weights to engines."""

import asyncio
import time
from collections.abc import Callable, Coroutine, Sequence
from functools import partial
from typing import TYPE_CHECKING, Any, TypeVar

from model.formats import CheckpointError
from model.send_weights import merged
from rl.batch import Batch, shares_of
from rl.errors import PartLost, RunFailed
from rl.learner_spec import OtherShardFailed
from rl.part import Part, asked_spans
from rl.rollout_seats import Offer, RemoteRollouts
from rl.supervision import Restarts
from rl.timeline import Span
from rl.weight_layers import by_layer
from rl.weight_transport import WeightTransport

if TYPE_CHECKING:
    from rl.learner_spec import Published

Answer = TypeVar("Answer")

FAREWELL_S = 10.0  # after one shard's error: an end of another may be what it comes from


async def together(
    shards: Sequence[Part], calls: Sequence[Coroutine[Any, Any, Answer]]
) -> list[Answer]:
    """The answers to one call of each shard, which may have to meet to answer.

    The first error that tells why is raised. A lost shard takes the state of all with it: the
    others, who may wait for it in vain, are ended, and `PartLost` is raised even if another
    complained first.
    """
    tasks = [asyncio.create_task(call) for call in calls]
    try:
        done, waiting = await asyncio.wait(tasks, return_when=asyncio.FIRST_EXCEPTION)
        if waiting:
            done |= (await asyncio.wait(waiting, timeout=FAREWELL_S))[0]
    finally:
        for task in tasks:
            task.cancel()
    errors = [error for task in tasks if task in done and (error := task.exception())]
    if any(isinstance(error, PartLost) for error in errors):
        for shard in shards:
            shard.kill()
    for error in sorted(errors, key=_cause):
        raise error
    return [task.result() for task in tasks]


def _cause(error: BaseException) -> int:
    """Errors in the order in which they are causes of others."""
    return 0 if isinstance(error, PartLost) else 1 + isinstance(error, OtherShardFailed)


class RemoteLearner:
    """All learner shards: every call goes to all of them at once."""

    def __init__(
        self,
        shards: Sequence[Part],
        note: str | None,
        share: Callable[[Any], Any] = lambda argument: argument,
        transport: WeightTransport | None = None,
    ) -> None:
        """Use these shards, already started, which had something to say.

        `share` puts an argument where whoever gets it reads it; `transport` brings what they
        publish to engines, which all see it where it is without one.
        """
        self.shards, self.note, self.transport = list(shards), note, transport
        self._share = share
        self._published: int | None = None

    async def call_all(self, method: str, *args: Any) -> list[Any]:
        """Call a method of every shard; their answers, by rank.

        Of a batch, or of several, each shard gets its share: no host takes what others train on.
        The first error is raised; `PartLost` if a shard is lost.
        """
        given = [self._by_shard(argument) for argument in args]
        calls = [
            shard.call("call", method, *(shares[rank] for shares in given))
            for rank, shard in enumerate(self.shards)
        ]
        return await together(self.shards, calls)

    async def ready(self) -> None:
        """Have the devices, from which weights are published."""

    async def spans(self) -> list[Span]:
        """What the shards did since the last call."""
        parts = {f"learner shard {rank}": shard for rank, shard in enumerate(self.shards)}
        return await asked_spans(parts | (self.transport.relays if self.transport else {}))

    async def call(self, method: str, *args: Any) -> Any:
        """The same; the answer of rank 0, where all answers are alike."""
        return (await self.call_all(method, *args))[0]

    def _by_shard(self, argument: Any) -> list[Any]:
        """What each shard gets of an argument."""
        size = len(self.shards)
        match argument:
            case Batch():
                return [self._share(share) for share in shares_of(argument, size)]
            case [Batch() | None, *_]:
                of_each = zip(*(shares_of(batch, size) for batch in argument), strict=True)
                return [self._share(shares) for shares in of_each]
            case _:
                return [self._share(argument)] * size

    async def publish(self, version: int) -> "list[Published]":
        """Every shard's share of the weights, in the place of the version published before.

        Raises:
            RunFailed: a shard cannot write its share. Engines keep the version before, and the same
                version may be published again.
        """
        if self._published is not None:
            before, self._published = self._published, None
            await self.call_all("release", before)
        try:
            published: list[Published] = await self.call_all("publish", version)
        except (OSError, CheckpointError) as error:
            raise RunFailed(
                f"version {version} of the weights cannot be published: {error}. Shared memory "
                "(/dev/shm) must hold two versions of them: make it larger, then resume=true"
            ) from error
        self._published = version
        return published


class RemotePolicy:
    """The learner and the way of its weights to every engine.

    The version that is served stays published until the next one takes its place, so that an engine
    that is started again can take it. The one before it lies beside it, for engines that go back.
    """

    def __init__(
        self,
        learner: RemoteLearner,
        rollouts: RemoteRollouts,
        restarts: Restarts,
        *,
        probe: list[list[int]],
        tolerance: float,
    ) -> None:
        """Publish from `learner` to `rollouts`, comparing both on `probe` [sequences][tokens]."""
        self._learner = learner
        self._rollouts = rollouts
        self._restarts = restarts
        self._probe = probe
        self._tolerance = tolerance
        self._version = 0  # published last

    async def update(
        self, minibatches: Sequence[Batch], ptx: Sequence[Batch | None]
    ) -> dict[str, float]:
        """One iteration of the optimiser."""
        metrics = await self._learner.call("update", minibatches, ptx)
        self._restarts.progress(self._version + 1)
        return metrics

    async def publish(self, version: int) -> dict[str, float]:
        """Bring the weights to every engine, then compare log-probs of the probe.

        An engine that is being started again is passed over: it takes this version when it joins.

        Raises:
            StaleWeightsError: an engine's log-probs are not those of the weights sent.
        """
        started = time.perf_counter()

        async def offer() -> Offer:
            published = await self._learner.publish(version)
            updates, transport = [part.update for part in published], self._learner.transport
            delivery = await transport.begin(updates, self._rollouts.workers) if transport else None
            whole = merged(updates)
            layers = partial(by_layer, transport, updates) if transport and whole.layers else None
            return Offer(
                update=whole,
                at=delivery.at if delivery else None,
                layers=layers,
                probe=self._probe,
                logprobs=published[0].probe_logprobs,
                tolerance=self._tolerance,
            )

        await self._learner.ready()
        reports = await self._rollouts.serve(offer)
        self._version = version
        metrics = {"time/sync": time.perf_counter() - started}
        if reports:
            metrics["probe/abs_logprob"] = max(r.typical for r in reports)
            metrics["probe/max_abs_logprob"] = max(r.largest for r in reports)
        return metrics
