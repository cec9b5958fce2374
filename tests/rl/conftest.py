"""What several tests run in: an event loop whose clock jumps, and `temper eval-reward`."""

import asyncio
import selectors
import sys
from collections.abc import Callable, Coroutine
from pathlib import Path
from typing import Any

import pytest

from rl.cli import main

Simulate = Callable[[Coroutine[Any, Any, Any]], Any]


class _Jump(selectors.DefaultSelector):
    """Where nothing happens until a timer, its time comes at once: sleeping an hour takes none."""

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


@pytest.fixture
def eval_reward(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> Any:
    """Runs `temper eval-reward` in a folder of its own; its exit code, output and error output."""

    def run(*arguments: str) -> tuple[int, str, str]:
        monkeypatch.chdir(tmp_path)
        monkeypatch.setenv("COLUMNS", "120")
        monkeypatch.setattr(sys, "argv", ["temper", "eval-reward", *arguments])
        capsys.readouterr()
        code = 0
        try:
            main()
        except SystemExit as done:
            code = int(done.code or 0)
        captured = capsys.readouterr()
        return code, captured.out, captured.err

    return run
