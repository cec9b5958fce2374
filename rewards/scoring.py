"""Scores many rows on worker processes, in order, whatever happens to a worker.

A worker (`rewards.scoring_worker`) is a fresh Python process in a session of its own, so a script
without a main guard may use this too. It is killed with its whole process group when it is late
and replaced when it dies; the rows it had not answered go to others. It ends with the thread that
uses the pool.
"""

import contextlib
import os
import pickle
import selectors
import signal
import subprocess
import sys
import time
from collections import deque
from collections.abc import Iterable, Iterator
from pathlib import Path
from types import TracebackType
from typing import BinaryIO, cast

from rewards.errors import RewardError
from rewards.rows import Line
from rewards.task import TaskKind
from rewards.verdict import (
    LENGTH,
    NotStarted,
    ScorerSpec,
    Trouble,
    Verdict,
    unscored,
    write_frame,
    zero,
)

START_TIMEOUT_S = 120.0  # a worker imports sympy: 2 s, or many on a busy machine
OWN_LIMIT_GRACE_S = 60.0  # for verifiers that keep the limit themselves and restart their children
GRACE_S = 1.0
CHUNK_S = 0.2  # work handed out at once: long against a hand-over, short against a run
MOST_CHUNK_ROWS, MOST_CHUNK_BYTES = 256, 1 << 20
MOST_HELD_BYTES = 64 << 20  # of rows handed out and not yielded yet: what one slow row may hold up
ROW_COST_BYTES = 512  # of memory, besides its text
MOST_DEATHS = 3  # of workers, over one row
CLOSE_TIMEOUT_S = 10.0

_NOTHING = object()


class ScoringPool:
    """Worker processes with one scorer each; a context manager."""

    def __init__(self, spec: ScorerSpec, workers: int) -> None:
        """Workers start with the first rows."""
        self._spec = spec
        keeps_limit = spec.reward is None and spec.kind is not TaskKind.instructions
        self._limit_s = spec.timeout_s + (OWN_LIMIT_GRACE_S if keeps_limit else GRACE_S)
        self._workers = [_Worker(spec, self._limit_s) for _ in range(workers)]
        self._again: deque[_Job] = deque()  # of workers that were lost
        self._failed_starts = 0  # one after another

    def __enter__(self) -> "ScoringPool":
        """The pool itself."""
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        """End every process: after an error at once, else by letting verifiers tidy up."""
        for worker in self._workers:
            if kind is None:
                worker.close()
            else:
                worker.kill()

    @property
    def pids(self) -> list[int]:
        """Process ids of the workers that run."""
        return [worker.pid for worker in self._workers if worker.pid is not None]

    def score(self, lines: Iterable[Line]) -> Iterator[Verdict]:
        """One verdict per line, in order; at most 64 MiB of rows wait for a slow one.

        A late row and one on which the scorer raises score 0. Rows of a worker that dies are scored
        by another; one over which three workers die is unscored: verifiers keep what is untrusted
        in processes of their own, so this is no fault of the response. Raises `ValueError` for a
        plug-in that cannot be loaded, `RewardError` if workers cannot start.
        """
        source = enumerate(lines)
        known: dict[int, Verdict] = {}
        waiting: deque[_Job] = deque()  # handed out and not yielded, in order
        held = 0
        while True:
            for worker in [each for each in self._workers if not each.jobs]:
                if self._again:
                    worker.give([self._again.popleft()])
                    continue
                room = MOST_HELD_BYTES - held
                chunk = _next_chunk(source, worker.chunk_rows, min(room, MOST_CHUNK_BYTES))
                held += sum(job.cost for job in chunk)
                waiting += chunk
                worker.give(chunk)
            if not waiting:
                return
            for index, verdict in self._collect():
                known[index] = verdict
            while waiting and waiting[0].index in known:
                job = waiting.popleft()
                held -= job.cost
                yield known.pop(job.index)

    def _collect(self) -> list[tuple[int, Verdict]]:
        """What came in, after waiting for something to happen."""
        busy = [worker for worker in self._workers if worker.jobs]
        with selectors.DefaultSelector() as selector:
            for worker in busy:
                selector.register(worker.pipe, selectors.EVENT_READ, worker)
            first = min((worker.deadline for worker in busy), default=0.0)
            events = selector.select(max(0.0, first - time.monotonic())) if busy else []
        found: list[tuple[int, Verdict]] = []
        for key, _ in events:
            worker = cast(_Worker, key.data)
            alive = worker.receive(found)
            if not alive:
                found += self._lost(worker)
        for worker in busy:
            if worker.jobs and time.monotonic() > worker.deadline:
                found += self._late(worker)
        return found

    def _lost(self, worker: "_Worker") -> list[tuple[int, Verdict]]:
        """Rows of a dead worker are scored again, the one it died over alone."""
        if not worker.ready:
            self._failed_starts += 1
            if self._failed_starts == MOST_DEATHS:
                raise RewardError("workers die while starting: what they wrote is above")
            self._again += worker.kill()
            return []
        self._failed_starts = 0
        job, *others = worker.kill()
        self._again += others
        job.deaths += 1
        if job.deaths < MOST_DEATHS:
            self._again.append(job)
            return []
        why = f"{MOST_DEATHS} workers died over this row"
        return [(job.index, unscored(job.line, why, 0.0))]

    def _late(self, worker: "_Worker") -> list[tuple[int, Verdict]]:
        if not worker.ready:
            worker.kill()
            raise RewardError(f"a worker was not ready after {START_TIMEOUT_S:g} s")
        job, *others = worker.kill()
        self._again += others
        why = f"not scored within {self._spec.timeout_s:g} s"
        return [(job.index, zero(job.line, self._spec.kind, why, Trouble.late, self._limit_s))]


class _Job:
    """A line on its way."""

    __slots__ = ("deaths", "index", "line")

    def __init__(self, index: int, line: Line) -> None:
        self.index, self.line, self.deaths = index, line, 0

    @property
    def cost(self) -> int:
        """Bytes of memory."""
        return len(self.line.raw) + ROW_COST_BYTES


class _Worker:
    """One process of `rewards.scoring_worker` and the rows it has not answered."""

    def __init__(self, spec: ScorerSpec, limit_s: float) -> None:
        self._spec, self._limit_s = spec, limit_s
        self._process: subprocess.Popen[bytes] | None = None
        self._received = bytearray()
        self.jobs: deque[_Job] = deque()
        self.ready = False
        self.deadline = 0.0  # of the monotonic clock
        self.chunk_rows = 1
        self._given = (0, 0.0)  # rows of this chunk, and when it was handed out

    @property
    def pid(self) -> int | None:
        """The process id, if it runs."""
        return None if self._process is None else self._process.pid

    @property
    def pipe(self) -> BinaryIO:
        """Where its verdicts come from."""
        assert self._process is not None
        return cast(BinaryIO, self._process.stdout)

    def give(self, jobs: list[_Job]) -> None:
        """Hand out rows to an idle worker; a new process starts if there is none."""
        if not jobs:
            return
        self.jobs.extend(jobs)
        if self._process is None:
            self._spawn()
        if self.ready:
            self._send_jobs()

    def receive(self, found: list[tuple[int, Verdict]]) -> bool:
        """Read what is there into `found`; False: the process is gone."""
        chunk = os.read(self.pipe.fileno(), 1 << 20)
        self._received += chunk
        while (message := self._next_frame()) is not _NOTHING:
            self.deadline = time.monotonic() + self._limit_s
            if isinstance(message, Verdict):
                found.append((self.jobs.popleft().index, message))
            elif isinstance(message, NotStarted):
                kind = ValueError if message.bad_input else RewardError
                raise kind(message.message)
            else:
                self.ready = True
                self._send_jobs()
        if chunk and not self.jobs:
            self._measure()
        return bool(chunk)

    def kill(self) -> deque[_Job]:
        """End the process with its whole group; returns the rows it had not answered."""
        process, self._process = self._process, None
        jobs, self.jobs = self.jobs, deque()
        self._received.clear()
        self.ready, self.chunk_rows = False, 1
        if process is not None:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)  # before wait, or the number may be reused
            process.wait()
            for pipe in (process.stdin, process.stdout):
                assert pipe is not None
                with contextlib.suppress(OSError):
                    pipe.close()
        return jobs

    def close(self) -> None:
        """Let an idle worker end its verifiers; a busy one is killed."""
        if self.ready and not self.jobs and self._process is not None:
            assert self._process.stdin is not None
            with contextlib.suppress(OSError):
                write_frame(cast(BinaryIO, self._process.stdin), None)
                with selectors.DefaultSelector() as selector:
                    selector.register(self.pipe, selectors.EVENT_READ)
                    selector.select(CLOSE_TIMEOUT_S)
        self.kill()

    def _spawn(self) -> None:
        package_root = str(Path(__file__).parents[1])
        path = os.pathsep.join(filter(None, [package_root, os.environ.get("PYTHONPATH")]))
        self._process = subprocess.Popen(
            [sys.executable, "-P", "-W", "ignore", "-m", "rewards.scoring_worker"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            env={**os.environ, "PYTHONPATH": path},
            start_new_session=True,
        )
        self.deadline = time.monotonic() + START_TIMEOUT_S
        self._send(self._spec)

    def _send_jobs(self) -> None:
        now = time.monotonic()
        self._given = (len(self.jobs), now)
        self.deadline = now + self._limit_s  # it may have been idle for long
        self._send([job.line for job in self.jobs])

    def _send(self, message: object) -> None:
        assert self._process is not None
        with contextlib.suppress(BrokenPipeError):  # its end is noticed where verdicts are read
            write_frame(cast(BinaryIO, self._process.stdin), message)

    def _measure(self) -> None:
        """Choose the next chunk's rows by how long this one took."""
        rows, since = self._given
        took = max(time.monotonic() - since, 1e-6)
        wanted = min(int(rows * CHUNK_S / took), 2 * rows, MOST_CHUNK_ROWS)
        self.chunk_rows = max(wanted, 1)

    def _next_frame(self) -> object:
        """The next whole message received, or `_NOTHING`."""
        if len(self._received) < LENGTH.size:
            return _NOTHING
        end = LENGTH.size + LENGTH.unpack_from(self._received)[0]
        if len(self._received) < end:
            return _NOTHING
        message = pickle.loads(self._received[LENGTH.size : end])
        del self._received[:end]
        return message


def _next_chunk(source: Iterator[tuple[int, Line]], rows: int, most_bytes: int) -> list[_Job]:
    """At most so many rows; at least one, if there is room for any and one is left."""
    chunk: list[_Job] = []
    while len(chunk) < rows and most_bytes > 0:
        numbered = next(source, None)
        if numbered is None:
            break
        chunk.append(_Job(*numbered))
        most_bytes -= chunk[-1].cost
    return chunk
