"""What dies in a run is started again: counted by part, told of, and not for ever."""

import json
import os
import time
from collections import Counter, deque
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path

from rl.errors import CrashLoop

KEPT_REASONS = 4  # of one part, for the diagnosis


@dataclass(frozen=True, slots=True, kw_only=True)
class Loss:
    """A part that was lost, and started again."""

    part: str
    why: str
    at: float  # seconds since 1970


class Restarts:
    """The restarts of one run, across all its attempts and processes.

    A part that is replaced in its place may be lost `most` times between two trained steps. The run
    may be sent back `most` times, by whichever parts, until it is further than it ever was: steps
    that are trained again are no progress. Once more is a crash loop: what ended it will end it
    again, be it a sample, the memory, or the machine.
    """

    def __init__(self, say: Callable[[str], None], *, most: int, logs: str = "") -> None:
        """Tell of every restart through `say`; `logs` is where the processes' own words are."""
        self._say = say
        self._most = most
        self.logs = logs
        self._losses: list[Loss] = []
        self._file: Path | None = None
        self._reasons: dict[str, deque[str]] = {}  # by who was lost: a part, or the run
        self._since_step: Counter[str] = Counter()
        self._sent_back = 0  # times since the run was `_furthest`
        self._furthest = 0
        self._run_lost_at: float | None = None

    @property
    def counts(self) -> Mapping[str, int]:
        """Restarts by part."""
        return dict(Counter(loss.part for loss in self._losses))

    @property
    def total(self) -> int:
        """Restarts of all parts."""
        return len(self._losses)

    def keep_in(self, file: Path) -> None:
        """Write every loss to `file`, at once, and begin with those that an earlier process of the
        run has written there."""
        self._file, written = file, _read(file)
        earlier = [loss for loss in written if loss not in self._losses]
        for loss in self._losses:
            if loss not in written:
                self._write(loss)
        self._losses = earlier + self._losses

    def lost(self, part: str, why: str) -> None:
        """A part is lost and will be started again.

        Raises:
            CrashLoop: it was lost too often since the last trained step.
        """
        self._count(Loss(part=part, why=why, at=time.time()))
        self._say(f"{part} was lost: {why}")
        self._since_step[part] += 1
        self._bear(part, why, self._since_step[part], "without a trained step between")

    def driver_lost(self, why: str) -> None:
        """An earlier driver of the run was lost; counted once, however many drivers hear of it.

        Raises what `lost` does.
        """
        self._run_lost_at = time.monotonic()
        if ("driver", why) not in {(loss.part, loss.why) for loss in self._losses}:
            self._count(Loss(part="driver", why=why, at=time.time()))
        self._send_back("driver", why)

    def run_lost(self, part: str, why: str) -> None:
        """A part is lost, and the whole run is started again for it.

        Raises:
            CrashLoop: the run was sent back too often since it was further than ever before.
        """
        self._run_lost_at = time.monotonic()
        self._count(Loss(part=part, why=why, at=time.time()))
        self._send_back(part, why)

    def run_back(self) -> None:
        """The whole run serves again, if it was lost."""
        if self._run_lost_at is not None:
            self.back("the run", time.monotonic() - self._run_lost_at)
            self._run_lost_at = None

    def back(self, part: str, seconds: float) -> None:
        """A lost part serves again."""
        self._say(f"{part} is back after {seconds:.1f} s")

    def progress(self, step: int) -> None:
        """A step was trained, perhaps again: what was lost before it did not stop the run."""
        self._since_step.clear()
        if step > self._furthest:
            self._furthest = step
            self._sent_back = 0

    def _count(self, loss: Loss) -> None:
        self._losses.append(loss)
        self._write(loss)

    def _write(self, loss: Loss) -> None:
        """A disk that is full does not end the run here: the next checkpoint says so."""
        if self._file is None:
            return
        try:
            with self._file.open("a") as lines:
                lines.write(f"\n{json.dumps(asdict(loss))}\n")  # the line before may be cut
                lines.flush()
                os.fsync(lines.fileno())
        except OSError as error:
            self._say(f"{self._file} cannot be written: {error.strerror}")

    def _send_back(self, part: str, why: str) -> None:
        self._say(f"{part} was lost: {why}")
        self._sent_back += 1
        self._bear("the run", f"{part}: {why}", self._sent_back, "and came no further between")

    def _bear(self, who: str, why: str, times: int, lacking: str) -> None:
        """Keep the reason. Raises CrashLoop if these were too many `times`."""
        self._reasons.setdefault(who, deque(maxlen=KEPT_REASONS)).append(why)
        if times > self._most:
            reasons = "\n".join(f"  - {reason}" for reason in self._reasons[who])
            raise CrashLoop(
                f"{who} was lost {times} times {lacking} "
                f"(cluster.max_restarts={self._most}):\n{reasons}\n"
                f"Logs of the processes: {self.logs or 'none'}. "
                "resume=true goes on from the last checkpoint"
            )


def _read(file: Path) -> list[Loss]:
    """What was written; not lines that were cut."""
    losses: list[Loss] = []
    if file.exists():
        for line in file.read_text().splitlines():
            with suppress(ValueError):
                losses.append(Loss(**json.loads(line)))
    return losses
