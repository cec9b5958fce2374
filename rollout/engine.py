"""A vLLM engine: tokens in, tokens with log-probs and weight versions out.

The front half of vLLM runs in the process that owns the `Engine`, its core in one child process.
"""

import asyncio
import itertools
import logging
import time
from collections.abc import Sequence
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

from rewards.config import RepetitionConfig
from rewards.repetition import STRIDE, RepetitionDetector, smallest
from rollout.config import EngineConfig
from rollout.core_log import CoreLog
from rollout.early_stops import Timer, until_found
from rollout.engine_weights import WeightedEngine
from rollout.episode import Completion, StopReason, kept
from rollout.errors import EngineError
from rollout.routing import RecordsRouting, dense_layers, returned
from rollout.starts import Gate, Start
from rollout.versions import Versions
from rollout.vllm_settings import core_environment, stop_token_ids, vllm_config

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


class Engine(WeightedEngine):
    """One policy, served. Every method is for the event loop that called `start`."""

    def __init__(
        self,
        llm: AsyncLLM,
        log: CoreLog,
        version: int,
        repetition: RepetitionConfig | None = None,
        *,
        recompute_kv: bool = True,
        end_of_turn: int | None = None,
    ) -> None:
        """Wrap a started vLLM; use `start`."""
        super().__init__(llm, log, version, recompute_kv=recompute_kv)
        self._repetition = repetition if repetition and repetition.stop else None
        self._stop_ids = stop_token_ids(llm.vllm_config, end_of_turn)
        self._max_len: int = llm.model_config.max_model_len
        self._dense: int | None = None  # layers without experts; None: none are recorded
        self._numbers = itertools.count()
        self._gate = Gate(self._held, llm.output_processor.get_num_unfinished_requests)
        self._generated = 0
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
        end_of_turn: int | None = None,
    ) -> "Engine":
        """Load a Hugging Face checkpoint folder, whose weights are called `version`, and warm up.

        With `sleeps` it can leave its device to others. A turn ends with the checkpoint's own
        tokens for it, and with `end_of_turn`. Completions that go in circles by `repetition` are
        stopped; by default none is. Raises EngineError if vLLM does not come up
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
        log = CoreLog()
        try:
            with core_environment(config, checkpoint), log.written():
                llm = AsyncLLM.from_vllm_config(vllm_config(config, checkpoint, sleeps))
        except Exception as error:
            why = f"{error}{log.reason()}"
            raise EngineError(f"vLLM did not start on {checkpoint}: {why}") from error
        engine = cls(
            llm,
            log,
            version,
            repetition,
            recompute_kv=config.recompute_kv,
            end_of_turn=end_of_turn,
        )
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

    def stats(self) -> EngineStats:
        """Counters since the start, without a trip to the engine's core."""
        return EngineStats(
            generated_tokens=self._generated,
            busy_seconds=self._clock.seconds,
            wall_seconds=time.monotonic() - self._started_at,
        )

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
            tokens = tokens_input(prompt, cache_salt=self._cache_salt)
            async for output in self._llm.generate(tokens, params, number):
                outputs.append(output)
                said = [each.feed(output.outputs[0].token_ids) for each in stops]
                if any(said) and not output.finished:
                    await self._llm.abort(number)  # one more output comes, with what is left
        return outputs


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
