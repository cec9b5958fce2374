"""Which rewards take unusually long, while they do."""

import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass


@dataclass(frozen=True, slots=True, kw_only=True)
class SlowReward:
    """One reward that took longer than it should."""

    task_id: str
    part: str
    seconds: float  # so far
    running: bool

    def __str__(self) -> str:
        """As in a log."""
        verb = "has been running for" if self.running else "took"
        return f"slow reward: {self.part} {verb} {self.seconds:.1f} s on task {self.task_id}"


class Watch:
    """Times rewards; safe to share between threads. Each slow one is reported once."""

    def __init__(self, slow_s: float) -> None:
        """Call slow what takes longer than `slow_s` seconds."""
        self._slow_s = slow_s
        self._lock = threading.Lock()
        self._running: dict[object, tuple[str, str, float]] = {}
        self._ended: list[SlowReward] = []

    @contextmanager
    def timed(self, task_id: str, part: str) -> Iterator[None]:
        """Time the body: the reward `part` of one episode."""
        key, started = object(), time.monotonic()
        with self._lock:
            self._running[key] = (task_id, part, started)
        try:
            yield
        finally:
            seconds = time.monotonic() - started
            with self._lock:
                unreported = self._running.pop(key, None) is not None
                if unreported and seconds > self._slow_s:
                    slow = SlowReward(task_id=task_id, part=part, seconds=seconds, running=False)
                    self._ended.append(slow)

    def slow(self) -> list[SlowReward]:
        """The slow ones since the last call, ended or still running."""
        now = time.monotonic()
        with self._lock:
            found, self._ended = self._ended, []
            for key, (task_id, part, started) in list(self._running.items()):
                if now - started > self._slow_s:
                    del self._running[key]
                    found.append(
                        SlowReward(task_id=task_id, part=part, seconds=now - started, running=True)
                    )
        return found
