"""How long an engine has had work, and was awake to do it."""

import time
from collections.abc import Iterator
from contextlib import contextmanager


class BusyClock:
    """Counts the seconds in which at least one request runs, and the engine does not sleep."""

    def __init__(self) -> None:
        """Nothing runs."""
        self._seconds = 0.0
        self._running = 0
        self._asleep = False
        self._counted_at = time.monotonic()

    @property
    def seconds(self) -> float:
        """All so far."""
        self._count()
        return self._seconds

    @property
    def asleep(self) -> bool:
        """Whether the engine sleeps."""
        return self._asleep

    @asleep.setter
    def asleep(self, asleep: bool) -> None:
        self._count()
        self._asleep = asleep

    @contextmanager
    def request(self) -> Iterator[None]:
        """Within, a request runs."""
        self._count()
        self._running += 1
        try:
            yield
        finally:
            self._count()
            self._running -= 1

    def _count(self) -> None:
        now = time.monotonic()
        if self._running and not self._asleep:
            self._seconds += now - self._counted_at
        self._counted_at = now
