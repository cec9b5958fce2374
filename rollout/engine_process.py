"""The core process of a vLLM engine, as its owner sees it: whether it lives, and its end."""

import asyncio
import contextlib
from collections.abc import Iterator

from vllm.v1.engine.async_llm import AsyncLLM
from vllm.v1.engine.exceptions import EngineDeadError, EngineGenerateError

from rollout.busy_clock import BusyClock
from rollout.core_log import CoreLog
from rollout.errors import EngineError

CORE_EXIT_S = 15.0  # then it is killed


class EngineProcess:
    """A started vLLM whose end is an EngineError for everyone who waits for it."""

    def __init__(self, llm: AsyncLLM, log: CoreLog) -> None:
        """Wrap it; `log` is what its core writes to."""
        self._llm, self._log = llm, log
        self._failure: str | None = None
        self._clock = BusyClock()

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

    async def shutdown(self) -> None:
        """End the core process. Requests in flight fail with EngineError. May be called twice."""
        self._failure = self._failure or "the engine was shut down"
        if self._llm.output_handler is not None:
            self._llm.output_handler.cancel()  # else it reports the end of the core as a crash
        self._llm.output_processor.propagate_error(EngineDeadError())
        if not self._llm.errored:
            self._log.remove()
        await asyncio.to_thread(self._llm.shutdown, CORE_EXIT_S)

    def _check_alive(self) -> None:
        if self._failure is not None:
            raise EngineError(self._failure)

    @contextlib.contextmanager
    def _dead_engine_as_error(self) -> Iterator[None]:
        try:
            yield
        except (EngineDeadError, EngineGenerateError) as error:
            if self._llm.errored:
                died = f"the engine's core process died{self._log.reason()}"
                self._failure = self._failure or died
            raise EngineError(self._failure or f"the engine failed: {error.__cause__}") from error
