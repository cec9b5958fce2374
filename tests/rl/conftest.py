"""An event loop whose clock jumps: what sleeps an hour takes no time."""

import asyncio
import selectors
from collections.abc import Callable, Coroutine
from typing import Any

import pytest

Simulate = Callable[[Coroutine[Any, Any, Any]], Any]


class _Jump(selectors.DefaultSelector):
    """Where nothing happens until a timer, the time of that timer comes at once."""

    now = 0.0

    def select(self, timeout: float | None = None) -> list[Any]:
        events = super().select(0 if timeout is None or timeout > 0 else timeout)
        if not events:
            if timeout is None:
                raise RuntimeError("everything waits, and nothing will ever happen")
            self.now += max(timeout, 0.0)
        return events


def _loop() -> asyncio.AbstractEventLoop:
    selector = _Jump()
    loop = asyncio.SelectorEventLoop(selector)
    loop.time = lambda: selector.now  # type: ignore[method-assign]
    return loop


@pytest.fixture(scope="session")
def simulate() -> Simulate:
    """Runs a coroutine to its end in simulated time; raises where it would hang."""

    def run(main: Coroutine[Any, Any, Any]) -> Any:
        with asyncio.Runner(loop_factory=_loop) as runner:
            return runner.run(main)

    return run
