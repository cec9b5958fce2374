"""New weights in a running vLLM engine, between two tokens of its requests; its sleep, too, from
which weights wake it.
"""

import asyncio
import contextlib
from collections.abc import AsyncIterator, Sequence
from typing import Any

from vllm.distributed.weight_transfer import base as transfer
from vllm.v1.engine.async_llm import AsyncLLM

from rollout.core_log import CoreLog
from rollout.engine_process import EngineProcess
from rollout.errors import EngineError, WeightUpdateError
from rollout.receive_segments import REFUSED, Announced, PlacedUpdate
from rollout.receive_update import Arrivals, reason_of, subject, time_limit


class WeightedEngine(EngineProcess):
    """An engine whose weights change while it serves."""

    def __init__(self, llm: AsyncLLM, log: CoreLog, version: int, *, recompute_kv: bool) -> None:
        """Serve `version`; `recompute_kv` as in `EngineConfig`."""
        super().__init__(llm, log)
        self._recompute_kv = recompute_kv
        self.version = version  # of the weights that the next token is sampled with
        self._update_lock = asyncio.Lock()
        self._arrivals = Arrivals()
        self._ranks: int = llm.vllm_config.parallel_config.world_size

    async def shutdown(self) -> None:
        """End the core process. Requests in flight fail with EngineError. May be called twice."""
        await super().shutdown()
        self._arrivals.close()

    async def sleep(self) -> None:
        """Leave the device to others until `receive`: weights and caches are dropped there.

        Requests are kept, and taken: they go on under the weights that come. On CPU vLLM can drop
        nothing: the engine stands still, forgets what its caches hold, and keeps its memory. Raises
        EngineError if it cannot.
        """
        if self._clock.asleep:
            return
        await self._update_lock.acquire()  # until it wakes: nothing else may let it go on
        try:
            self._check_alive()
            await self._llm.sleep(level=2, mode="keep")
        except Exception as error:  # vLLM's own would not be readable where there is no vLLM
            self._update_lock.release()
            raise EngineError(self._failure or f"the engine cannot sleep: {error}") from None
        self._clock.asleep = True

    async def receive(self, update: PlacedUpdate) -> None:
        """Take new weights while requests are in flight, which go on; their keys and values are
        computed again, unless the engine keeps those of older weights (`EngineConfig`).

        The files are verified while requests run; generation pauses for the loading only. A caller
        that gives up waiting does not stop it. Every step has `time_limit`. An engine that sleeps
        wakes with the new weights, and sleeps on if they are refused.

        Raises WeightUpdateError if the update was refused or could not be loaded (the old weights
        serve on), EngineError if the engine was lost over it (it then serves nothing any more).
        """
        await asyncio.shield(asyncio.ensure_future(self._receive(update)))

    async def load_layer(self, layer: PlacedUpdate, *, first: bool, last: bool) -> None:
        """Take one layer of a version that comes layer by layer.

        From the first layer to the last generation stands still, requests kept; an engine that
        sleeps wakes with the last. The files may be written again once this has returned. Every
        step has `time_limit`.

        Raises EngineError if the layer cannot be taken: half of the weights are new then, and half
        are old, and the engine serves nothing any more.
        """
        await asyncio.shield(asyncio.ensure_future(self._load_layer(layer, first, last)))

    async def _load_layer(self, layer: PlacedUpdate, first: bool, last: bool) -> None:
        if first and not self._clock.asleep:
            await self._update_lock.acquire()  # until the last one
        try:
            self._check_alive()
            here = await self._arrivals.verified(layer)
            async with asyncio.timeout(time_limit(layer.num_bytes)):
                with self._dead_engine_as_error():
                    if first:
                        await self._stand_still()
                        await self._llm.start_weight_update()
                    told = {"by_layer": True, "first": first, "last": last}
                    await self._tell_ranks(here, layer.by_rank, told)
                    if last:
                        await self._llm.finish_weight_update(weight_version=str(here.version))
                        self.version = here.version
                        awake = not self._clock.asleep
                        await self._go_on()
                        if awake:
                            self._update_lock.release()
        except BaseException as error:
            why = reason_of(error) if REFUSED in str(error) else repr(error)
            self._failure = self._failure or f"{subject(layer.version)} came half-way: {why}"
            await self.shutdown()
            if self._update_lock.locked():
                self._update_lock.release()  # who waits for it hears of the failure
            raise EngineError(self._failure) from error

    async def _receive(self, update: PlacedUpdate) -> None:
        async with contextlib.nullcontext() if self._clock.asleep else self._update_lock:
            self._check_alive()
            here = await self._arrivals.verified(update)
            limit = time_limit(update.num_bytes)
            try:
                async with asyncio.timeout(limit):
                    with self._dead_engine_as_error():
                        await self._load(here, update.by_rank)
            except (WeightUpdateError, EngineError):
                raise
            except BaseException as error:
                late = f"not within {limit:.0f} s" if isinstance(error, TimeoutError) else error
                self._failure = f"{subject(update.version)} was loaded half-way: {late}"
                await self.shutdown()
                raise EngineError(self._failure) from error

    async def _load(self, here: Announced, by_rank: Sequence[Sequence[str]]) -> None:
        """Load what is verified, between two tokens of every request."""
        refusal: WeightUpdateError | None = None
        await self._stand_still()
        try:
            await self._llm.start_weight_update()
            await self._tell_ranks(here, by_rank, {})
            await self._llm.finish_weight_update(weight_version=str(here.version))
            self.version = here.version
        except Exception as error:
            # Of several ranks one may have loaded what another refused.
            if REFUSED not in str(error) or self._ranks > 1:
                raise
            refusal = WeightUpdateError(f"{subject(here.version)} was refused: {reason_of(error)}")
        if refusal is None:
            await self._go_on()
            return
        if not self._clock.asleep:
            await self._llm.resume_generation()
        raise refusal

    @property
    def _cache_salt(self) -> str | None:
        """What parts the prefix cache: where it outlives weights, none is read that others made."""
        return None if self._recompute_kv else str(self.version)

    async def _stand_still(self) -> None:
        """Have memory for weights, and nothing that reads them."""
        if self._clock.asleep:
            await self._llm.wake_up(["weights"])  # the caches after: to load takes room
        else:
            await self._llm.pause_generation(mode="keep", clear_cache=self._recompute_kv)

    async def _go_on(self) -> None:
        """Draw with the new weights."""
        if not self._clock.asleep:
            await self._llm.resume_generation()
            return
        await self._llm.wake_up(["kv_cache"])  # goes on, being awake
        self._clock.asleep = False
        self._update_lock.release()

    async def _tell_ranks(
        self, here: Announced, by_rank: Sequence[Sequence[str]], more: dict[str, bool]
    ) -> None:
        """Have all ranks load these files, each those on its host if they are not the same."""
        told = {"version": here.version, "digest": here.digest, **more}
        infos = [told | {"files": list(files)} for files in by_rank or (here.files,)]
        info: Any = infos if by_rank else infos[0]
        await self._llm.update_weights(transfer.WeightTransferUpdateRequest(update_info=info))

    @contextlib.asynccontextmanager
    async def _held(self) -> AsyncIterator[None]:
        """Within, the scheduler stands still, and nothing is cached."""
        async with self._update_lock:
            self._check_alive()
            with self._dead_engine_as_error():
                await self._llm.pause_generation(mode="keep", clear_cache=True)
                try:
                    yield
                finally:
                    await self._llm.resume_generation()
