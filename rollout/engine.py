"""A vLLM engine: tokens in, tokens with log-probs and weight versions out; new weights in place.

The front half of vLLM runs in the process that owns the `Engine`, its core in one child process.
"""

import asyncio
import contextlib
import itertools
import logging
import time
from collections.abc import AsyncIterator, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from vllm import SamplingParams
from vllm.distributed.weight_transfer import base as transfer
from vllm.inputs.engine import tokens_input
from vllm.outputs import CompletionOutput, RequestOutput
from vllm.platforms import current_platform
from vllm.sampling_params import RequestOutputKind
from vllm.v1.engine import core_client
from vllm.v1.engine.async_llm import AsyncLLM
from vllm.v1.engine.exceptions import EngineDeadError, EngineGenerateError

from rewards.config import RepetitionConfig
from rewards.repetition import STRIDE, RepetitionDetector, smallest
from rollout.busy_clock import BusyClock
from rollout.config import EngineConfig
from rollout.early_stops import Timer, until_found
from rollout.episode import Completion, StopReason, kept
from rollout.errors import EngineError, WeightUpdateError
from rollout.receive_segments import REFUSED, Announced, PlacedUpdate
from rollout.receive_update import Arrivals, reason_of, subject, time_limit
from rollout.routing import RecordsRouting, dense_layers, returned
from rollout.starts import Gate, Start
from rollout.versions import Versions
from rollout.vllm_settings import core_environment, stop_token_ids, vllm_config

CORE_EXIT_S = 15.0  # then it is killed

# Nothing truncates the distribution: top_p 1 and top_k off are vLLM's own defaults.
COMMON_SAMPLING: dict[str, Any] = {
    "detokenize": False,
    "flat_logprobs": True,  # plain lists; one object per token is slow
}
WHOLE: dict[str, Any] = {"output_kind": RequestOutputKind.FINAL_ONLY}
PIECES: dict[str, Any] = {"output_kind": RequestOutputKind.DELTA, "stream_interval": STRIDE}


@dataclass(frozen=True, slots=True, kw_only=True)
class EngineStats:
    """What an engine has done since it started."""

    generated_tokens: int
    busy_seconds: float  # awake, with at least one request in the engine
    wall_seconds: float


class Engine:
    """One policy, served. Every method is for the event loop that called `start`."""

    def __init__(
        self, llm: AsyncLLM, version: int, repetition: RepetitionConfig | None = None
    ) -> None:
        """Wrap a started vLLM; use `start`."""
        self._llm = llm
        self._repetition = repetition if repetition and repetition.stop else None
        self.version = version  # of the weights that the next token is sampled with
        self._stop_ids = stop_token_ids(llm.vllm_config)
        self._max_len: int = llm.model_config.max_model_len
        self._dense: int | None = None  # layers without experts; None: none are recorded
        self._numbers = itertools.count()
        self._failure: str | None = None
        self._update_lock = asyncio.Lock()
        self._gate = Gate(self._held, llm.output_processor.get_num_unfinished_requests)
        self._arrivals = Arrivals()
        self._ranks: int = llm.vllm_config.parallel_config.world_size
        self._generated = 0
        self._clock = BusyClock()
        self._started_at = time.monotonic()

    @classmethod
    async def start(
        cls,
        config: EngineConfig,
        checkpoint: str | Path,
        *,
        version: int = 0,
        repetition: RepetitionConfig | None = None,
        sleeps: bool = False,
    ) -> "Engine":
        """Load a Hugging Face checkpoint folder, whose weights are called `version`, and warm up.

        With `sleeps` it can leave its device to others. Completions that go in circles by
        `repetition` are stopped; by default none is. Raises EngineError if vLLM does not come up
        within `config.start_timeout_s`, ValueError if `config.routing_replay` cannot be had of the
        checkpoint or of this machine.
        """
        dense = dense_layers(checkpoint) if config.routing_replay else None
        taught = config.routing_replay and current_platform.is_cpu()
        if taught and not config.eager:
            raise ValueError("engine.routing_replay on CPU needs engine.eager=true")
        deadline = time.monotonic() + config.start_timeout_s
        core_client.VLLM_ENGINE_READY_TIMEOUT_S = int(config.start_timeout_s)
        logging.getLogger("vllm").setLevel(logging.ERROR)
        with core_environment(config):
            try:
                llm = AsyncLLM.from_vllm_config(vllm_config(config, checkpoint, sleeps))
            except Exception as error:
                raise EngineError(f"vLLM did not start on {checkpoint}: {error}") from error
        engine = cls(llm, version, repetition)
        try:
            async with asyncio.timeout(deadline - time.monotonic()):
                await llm.update_weight_version(str(version))
                await llm.init_weight_transfer_engine(transfer.WeightTransferInitRequest())
                if taught:
                    await llm.collective_rpc(RecordsRouting.record_routing.__name__)
                await engine.generate([0], samples=1, max_tokens=2, temperature=1.0)
        except BaseException:
            await engine.shutdown()
            raise
        engine._generated = 0
        engine._dense = dense
        return engine

    async def generate(
        self, prompt_ids: Sequence[int], *, samples: int, max_tokens: int, temperature: float
    ) -> list[Completion]:
        """Draw `samples` continuations and wait for all of them; see `draw`."""
        draws = (
            self.draw(prompt_ids, max_tokens=max_tokens, temperature=temperature)
            for _ in range(samples)
        )
        return await asyncio.gather(*draws)

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
        """Draw one continuation; see `rollout.episode.Generate`.

        At temperature 0 the choice is greedy and the log-probs are those of temperature 1; vLLM
        takes temperatures up to 2. A completion that goes in circles is stopped; one that starts
        together with others, whose numbers would change when it leaves them, is drawn to its end
        and cut to where it was seen.

        Args:
            prompt_ids: ids [P] of the prompt.
            max_tokens: what may still be drawn.
            temperature: in [0, 2].
            begun: tokens of the completion that were drawn before; the answer is without them.
            segment: if given, stop after so many tokens, as if cut by `max_tokens`.
            seconds: if given, stop in the same way so long after the first token: it is looked at
                with that one and with every `STRIDE`th after it.
            start: its seed, and the draws that it waits for; None: the engine's own generator.

        Raises:
            ValueError: prompt and completion do not fit, or the temperature is out of range.
            EngineError: the engine is dead.
        """
        prompt = list(prompt_ids)
        if len(prompt) + len(begun) + max_tokens > self._max_len:
            raise ValueError(
                f"prompt of {len(prompt)} and {len(begun) + max_tokens} new tokens exceed "
                f"engine.max_model_len={self._max_len}"
            )
        rule = self._repetition
        if rule is not None and len(begun) + max_tokens < smallest(rule):
            rule = None
        together = start is not None and start.together > 0
        params = SamplingParams(
            temperature=temperature,
            max_tokens=max_tokens if segment is None else min(max_tokens, segment),
            logprobs=0,
            seed=None if start is None else start.seed_after(len(begun)),
            stop_token_ids=self._stop_ids,
            routed_experts_prompt_start=len(prompt) + len(begun) - 1 if len(begun) else 0,
            **COMMON_SAMPLING,
            **(WHOLE if (rule is None and seconds is None) or together else PIECES),
        )
        timer = None if seconds is None or together else Timer(seconds)
        detector = None if rule is None else RepetitionDetector(rule)
        if detector is not None:
            detector.feed(begun)
        if start is not None and together:
            await self._gate.enter(start)
        stops = [each for each in (timer, None if together else detector) if each is not None]
        outputs = await self._run([*prompt, *begun], params, stops)
        pieces = [output.outputs[0] for output in outputs]
        drawn = completion(prompt, pieces, temperature, self._dense)
        if timer is not None and timer.over and drawn.stop_reason is StopReason.abort:
            drawn = replace(drawn, stop_reason=StopReason.length)
        if detector is not None:
            drawn = until_found(drawn, detector) if together else drawn
            if detector.found:
                drawn = replace(drawn, stop_reason=StopReason.repetition)
        self._generated += len(drawn.token_ids)
        return drawn

    async def score_tokens(self, sequences: Sequence[Sequence[int]]) -> list[list[float]]:
        """Log-probs (nats, temperature 1) of each sequence's tokens after its first: [L - 1] each.

        A sequence must be shorter than `max_model_len` by one token.
        """
        params = SamplingParams(
            temperature=1.0, max_tokens=1, prompt_logprobs=0, **COMMON_SAMPLING, **WHOLE
        )
        outputs = await asyncio.gather(*(self._run(list(ids), params) for ids in sequences))
        return [flat(output.prompt_logprobs) for (output,) in outputs]

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
        """Take new weights while requests are in flight, which go on with rebuilt caches.

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
        elif not self._clock.asleep:
            await self._llm.resume_generation()
        if refusal is not None:
            raise refusal

    async def _stand_still(self) -> None:
        """Have memory for weights, and nothing that reads them."""
        if self._clock.asleep:
            await self._llm.wake_up(["weights"])  # the caches after: to load takes room
        else:
            await self._llm.pause_generation(mode="keep", clear_cache=True)

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

    async def answer(self) -> None:
        """Return once the core has answered, between two steps of its scheduler.

        Raises:
            EngineError: it is dead.
        """
        self._check_alive()
        try:
            await self._llm.is_sleeping()  # the shortest question that it knows
        except Exception as error:  # vLLM's own would not be readable where there is no vLLM
            raise EngineError(self._failure or f"the engine's core is dead: {error}") from None

    def stats(self) -> EngineStats:
        """Counters since the start, without a trip to the engine's core."""
        return EngineStats(
            generated_tokens=self._generated,
            busy_seconds=self._clock.seconds,
            wall_seconds=time.monotonic() - self._started_at,
        )

    async def shutdown(self) -> None:
        """End the core process. Requests in flight fail with EngineError. May be called twice."""
        self._failure = self._failure or "the engine was shut down"
        if self._llm.output_handler is not None:
            self._llm.output_handler.cancel()  # else it reports the end of the core as a crash
        self._llm.output_processor.propagate_error(EngineDeadError())
        await asyncio.to_thread(self._llm.shutdown, CORE_EXIT_S)
        self._arrivals.close()

    async def _run(
        self,
        prompt: list[int],
        params: SamplingParams,
        stops: "Sequence[RepetitionDetector | Timer]" = (),
    ) -> list[RequestOutput]:
        """Run one request to its end, or to where one of `stops` says so."""
        self._check_alive()
        number = str(next(self._numbers))
        outputs = []
        with self._clock.request(), self._dead_engine_as_error():
            # The prompt needs no thread of vLLM's to be made ready: it is token ids already.
            async for output in self._llm.generate(tokens_input(prompt), params, number):
                outputs.append(output)
                said = [each.feed(output.outputs[0].token_ids) for each in stops]
                if any(said) and not output.finished:
                    await self._llm.abort(number)  # one more output comes, with what is left
        return outputs

    def _check_alive(self) -> None:
        if self._failure is not None:
            raise EngineError(self._failure)

    @contextlib.contextmanager
    def _dead_engine_as_error(self) -> Iterator[None]:
        try:
            yield
        except (EngineDeadError, EngineGenerateError) as error:
            if self._llm.errored:
                self._failure = self._failure or "the engine's core process died"
            raise EngineError(self._failure or f"the engine failed: {error.__cause__}") from error


def flat(logprobs: Any) -> list[float]:
    """The numbers of a vLLM log-prob record; a prompt's first token has none."""
    return logprobs.logprobs


def completion(
    prompt: list[int], pieces: Sequence[CompletionOutput], temperature: float, dense: int | None
) -> Completion:
    """Our record of one vLLM output, which came in `pieces`."""
    last = pieces[-1]
    spans = last.weight_versions or ()
    return Completion(
        prompt_ids=kept(prompt, np.int32),
        token_ids=kept([token for piece in pieces for token in piece.token_ids], np.int32),
        logprobs=kept([value for piece in pieces for value in flat(piece.logprobs)], np.float32),
        versions=Versions.of_runs((int(span.version), span.end - span.start) for span in spans),
        stop_reason=StopReason(str(last.finish_reason)),
        temperature=temperature,
        routing=returned(last.routed_experts, dense),
    )
