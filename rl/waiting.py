"""Says what a run is waiting for, when it waits longer than usual."""

import statistics
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from types import TracebackType

FIRST_S = 20.0  # nothing is said before
UNUSUAL = 3.0  # times the median of the last ones
REMEMBERED = 20  # durations of each kind of wait
LOOK_S = 1.0


def nothing() -> str:
    """No detail."""
    return ""


@dataclass(slots=True, eq=False)
class _Wait:
    """One wait under way."""

    what: str
    which: str
    detail: Callable[[], str]
    since: float
    due_s: float  # the next line comes when it has lasted so long


class Waits:
    """Waits under way, and how long those of each kind usually take.

        with waits.waiting_for("the checkpoint", "of step 20"):
            ...
        -> waiting for the checkpoint of step 20: 45 s so far, usually 12 s
        -> waiting for the checkpoint of step 20: 90 s so far, usually 12 s

    Lines come after three times the median of the last ones, and never before 20 s; then whenever
    the wait has doubled. One thread looks after all waits, so that a blocked event loop is told of
    too; it lives from `__enter__` to `__exit__`.
    """

    def __init__(
        self, say: Callable[[str], None], *, clock: Callable[[], float] = time.monotonic
    ) -> None:
        """Say lines through `say`, from another thread."""
        self._say = say
        self._clock = clock
        self._lock = threading.Lock()
        self._under_way: list[_Wait] = []
        self._lasted: dict[str, deque[float]] = {}  # seconds, by kind
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._look, name="temper-waits", daemon=True)

    def __enter__(self) -> "Waits":
        """Begin to look."""
        self._thread.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        """Look no more."""
        self._ended.set()
        self._thread.join()

    @contextmanager
    def waiting_for(
        self, what: str, which: str = "", detail: Callable[[], str] = nothing
    ) -> Iterator[None]:
        """Wait within this; waits may overlap.

        Args:
            what: the kind of wait, whose earlier durations are compared with.
            which: the one of its kind.
            detail: what else a line says, asked for when the line is due, in another thread.
        """
        wait = _Wait(what, which, detail, self._clock(), self._first_due(what))
        with self._lock:
            self._under_way.append(wait)
        try:
            yield
            with self._lock:
                lasted = self._lasted.setdefault(what, deque(maxlen=REMEMBERED))
                lasted.append(self._clock() - wait.since)
        finally:
            with self._lock:
                self._under_way.remove(wait)

    def tell(self) -> None:
        """Say the lines that are due now."""
        now = self._clock()
        with self._lock:
            due = [wait for wait in self._under_way if now - wait.since >= wait.due_s]
        for wait in due:
            wait.due_s = 2 * (now - wait.since)
            self._say(self._line(wait, now))

    def _line(self, wait: _Wait, now: float) -> str:
        usual = self._usual(wait.what)
        compared = "the first of its kind" if usual is None else f"usually {usual:.0f} s"
        detail = wait.detail()
        name = f"{wait.what} {wait.which}".strip()
        line = f"waiting for {name}: {now - wait.since:.0f} s so far, {compared}"
        return f"{line}; {detail}" if detail else line

    def _first_due(self, what: str) -> float:
        return max(FIRST_S, UNUSUAL * (self._usual(what) or 0.0))

    def _usual(self, what: str) -> float | None:
        with self._lock:
            lasted = self._lasted.get(what)
            return statistics.median(lasted) if lasted else None

    def _look(self) -> None:
        while not self._ended.wait(LOOK_S):
            self.tell()
