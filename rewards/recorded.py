"""Scores a file of recorded responses: every row in, every row out, or nothing at all."""

import gzip
import os
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import BinaryIO, cast

from rewards.errors import RewardError
from rewards.math_answer import MathVerifier
from rewards.rows import MOST_REPORTED, RowError, lines_of, read_row, report_bad_rows
from rewards.scoring import ScoringPool
from rewards.task import TaskKind
from rewards.verdict import ScorerSpec, Trouble, Verdict

READING_TIMEOUT_S = 60.0  # of a gold answer
FEW_CRASHES, CRASHED_SHARE = 3, 0.01  # rows, and their share, up to which a run is sound

Progress = Callable[[int, int], None]
"""Called with rows done and rows in all; the latter is 0 while the file is being read."""


@dataclass(slots=True, kw_only=True)
class Verification:
    """What came of a file: `rows` = scored + bad + unscored."""

    kind: str
    rows: int = 0
    scored: int = 0
    full: int = 0  # with score 1
    partial: int = 0  # between 0 and 1
    zero: int = 0  # of these, some may be late, crashed or text_only
    late: int = 0
    crashed: int = 0  # the verifier raised, which it never should
    text_only: int = 0
    score_sum: float = 0.0
    workers: int = 1
    seconds: float = 0.0  # of scoring
    slowest_seconds: float = 0.0
    slowest_line: int = 0
    bad: dict[int, str] = field(default_factory=dict)  # unreadable rows left out, by line
    golds_as_text: list[int] = field(default_factory=list)  # lines whose gold cannot be read
    unscored: dict[int, str] = field(default_factory=dict)  # rows left out while scoring, by line
    crashes: dict[int, str] = field(default_factory=dict)  # the first ten, by line

    @property
    def broken(self) -> bool:
        """The verifier failed on more than a few rows: their zeros say nothing of the responses."""
        return self.crashed > max(FEW_CRASHES, CRASHED_SHARE * self.scored)

    @property
    def mean(self) -> float:
        """Mean score of the rows that have one; 0 without any."""
        return self.score_sum / max(self.scored, 1)

    @property
    def rows_per_second(self) -> float:
        """Throughput of scoring."""
        return self.scored / max(self.seconds, 1e-9)

    def add(self, verdict: Verdict) -> None:
        """Count one verdict."""
        if verdict.seconds > self.slowest_seconds:
            self.slowest_seconds, self.slowest_line = verdict.seconds, verdict.number
        if verdict.score is None:
            self.unscored[verdict.number] = verdict.why
            return
        self.scored += 1
        self.score_sum += verdict.score
        self.full += verdict.score >= 1.0
        self.partial += 0.0 < verdict.score < 1.0
        self.zero += verdict.score <= 0.0
        self.late += verdict.trouble is Trouble.late
        if verdict.trouble is Trouble.crashed:
            self.crashed += 1
            if len(self.crashes) < MOST_REPORTED:
                self.crashes[verdict.number] = verdict.why
        self.text_only += verdict.trouble is Trouble.text_only


def verify_file(
    source: Path,
    out: Path,
    spec: ScorerSpec,
    *,
    workers: int,
    skip_bad_rows: bool = False,
    progress: Progress = lambda done, total: None,
) -> Verification:
    """Write the rows of `source` with "score" and "why" to `out`, in order.

    All rows are read before any is scored. `out` appears, or is replaced, when it is complete;
    names in .gz are compressed. With `skip_bad_rows` rows that cannot be used are left out and
    counted. A gold answer that no grammar reads is compared as text, and counted.

    Raises:
        RowError: `source` or a row, or with `skip_bad_rows` every row, cannot be read; `out` cannot
            be written to.
        RewardError: a row has no score through no fault of its response, or no worker starts.
        OSError: writing failed.
    """
    _check_out(source, out)
    counted = Verification(kind=spec.kind.value, workers=workers)
    _read_all(source, spec.kind, counted, progress)
    if counted.bad and not skip_bad_rows:
        raise RowError(report_bad_rows(source, counted.bad))
    if counted.bad and len(counted.bad) == counted.rows:
        raise RowError(f"no row could be read:\n{report_bad_rows(source, counted.bad)}")
    started = time.monotonic()
    lines = (line for line in lines_of(source) if line.number not in counted.bad)
    with _replacing(out) as file, ScoringPool(spec, workers) as pool:
        for verdict in pool.score(lines):
            counted.add(verdict)
            if verdict.score is None and not skip_bad_rows:
                raise RewardError(
                    f"{source} line {verdict.number}: {verdict.why}\n{out} was not written; "
                    "--skip-bad-rows leaves such rows out and counts them"
                )
            file.write(verdict.line)
            progress(counted.scored, counted.rows - len(counted.bad))
    counted.seconds = time.monotonic() - started
    return counted


def _read_all(source: Path, kind: TaskKind, counted: Verification, progress: Progress) -> None:
    """Count the rows, and find those that cannot be used, or by their text only."""
    verifier = MathVerifier(timeout_s=READING_TIMEOUT_S)
    try:
        for line in lines_of(source):
            counted.rows += 1
            try:
                row = read_row(kind, line.raw)
                if kind is TaskKind.math and not verifier.readable(row.reference):
                    if row.reference.count("{") != row.reference.count("}"):
                        raise RowError('"gold" cannot be read: its braces do not match')
                    counted.golds_as_text.append(line.number)
            except RowError as error:
                counted.bad[line.number] = str(error)
            if counted.rows % 1000 == 0:
                progress(counted.rows, 0)
    finally:
        verifier.close()


def _check_out(source: Path, out: Path) -> None:
    if out.exists() and not out.is_file():
        raise RowError(f"cannot write {out}: it is not a regular file")
    link = out.readlink() if out.is_symlink() else out  # /dev/stdout is one
    if any(Path("/proc") in path.parents for path in (link, out.parent.resolve() / out.name)):
        raise RowError(f"cannot write {out}: it is open already; name a file that can be replaced")
    if not out.parent.is_dir():
        raise RowError(f"cannot write {out}: there is no folder {out.parent}")
    if source.exists() and out.exists() and source.samefile(out):
        raise RowError(f"{out} is the input: choose another file")


@contextmanager
def _replacing(out: Path) -> Iterator[BinaryIO]:
    """A file beside `out` that takes its place if all went well."""
    out = out.resolve()  # a link stays a link
    partial = out.with_name(f".{out.name}.{os.getpid()}.partial")
    try:
        with partial.open("wb") as file:
            if out.suffix == ".gz":
                with gzip.GzipFile("", "wb", 6, file, mtime=0) as zipped:
                    yield cast(BinaryIO, zipped)
            else:
                yield file
            file.flush()
            os.fsync(file.fileno())
        partial.replace(out)
    finally:
        with suppress(FileNotFoundError):
            partial.unlink()
