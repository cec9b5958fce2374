"""What dies in a run is started again: counted by part, told of, and not for ever."""

import time
from collections import Counter, deque
from collections.abc import Callable, Mapping

from rl.errors import CrashLoop

KEPT_REASONS = 4  # of one part, for the diagnosis


class Restarts:
    """The restarts of one run, across all its attempts in this process.

    A part may be lost `most` times between two trained steps. Once more is a crash loop: whatever
    ends it will end it again, be it a sample, the memory, or the machine.
    """

    def __init__(self, say: Callable[[str], None], *, most: int, logs: str = "") -> None:
        """Tell of every restart through `say`; `logs` is where the processes' own words are."""
        self._say = say
        self._most = most
        self.logs = logs
        self._counts: Counter[str] = Counter()
        self._reasons: dict[str, deque[str]] = {}
        self._since_progress: Counter[str] = Counter()
        self._taken = 0
        self._run_lost_at: float | None = None

    @property
    def counts(self) -> Mapping[str, int]:
        """Restarts by part."""
        return dict(self._counts)

    @property
    def total(self) -> int:
        """Restarts of all parts."""
        return self._counts.total()

    def take(self) -> int:
        """How many there were since the last call."""
        new, self._taken = self.total - self._taken, self.total
        return new

    def carry(self, counts: Mapping[str, int]) -> None:
        """Begin with the restarts of an earlier process of the same run."""
        self._counts = Counter(counts)
        self._taken = self.total

    def lost(self, part: str, why: str) -> None:
        """A part is lost and will be started again.

        Raises:
            CrashLoop: it was lost too often since the last trained step.
        """
        self._counts[part] += 1
        self._since_progress[part] += 1
        self._reasons.setdefault(part, deque(maxlen=KEPT_REASONS)).append(why)
        self._say(f"{part} was lost: {why}")
        if self._since_progress[part] > self._most:
            reasons = "\n".join(f"  - {reason}" for reason in self._reasons[part])
            raise CrashLoop(
                f"{part} was lost {self._since_progress[part]} times without a trained step "
                f"between (cluster.max_restarts={self._most}):\n{reasons}\n"
                f"Logs of the processes: {self.logs or 'none'}. "
                "resume=true goes on from the last checkpoint"
            )

    def run_lost(self, part: str, why: str) -> None:
        """A part is lost, and the whole run is started again for it. Raises what `lost` does."""
        self._run_lost_at = time.monotonic()
        self.lost(part, why)

    def run_back(self) -> None:
        """The whole run serves again, if it was lost."""
        if self._run_lost_at is not None:
            self.back("the run", time.monotonic() - self._run_lost_at)
            self._run_lost_at = None

    def back(self, part: str, seconds: float) -> None:
        """A lost part serves again."""
        self._say(f"{part} is back after {seconds:.1f} s")

    def progress(self) -> None:
        """A step was trained: what was lost before it did not stop the run."""
        self._since_progress.clear()
