"""What `temper verify` and `temper eval-reward` do around `rewards`: options, progress, a table."""

import json
import os
import signal
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from types import FrameType

from rich.console import Console
from rich.markup import escape
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)
from rich.table import Table

from rewards.recorded import Verification
from rewards.rows import MOST_REPORTED, report_bad_rows
from rewards.task import TaskKind
from rewards.verdict import ScorerSpec
from rl.errors import BadInput, RunFailed

TIMEOUT_S = {TaskKind.math: 5.0, TaskKind.code: 60.0, TaskKind.instructions: 5.0}


def scorer_spec(kind: TaskKind, timeout_s: float | None, reward: str | None = None) -> ScorerSpec:
    """What to score with. Raises `BadInput` for a limit that is not positive."""
    limit_s = TIMEOUT_S[kind] if timeout_s is None else timeout_s
    if not 0.0 < limit_s <= 86400.0:
        raise BadInput(f"--timeout must be more than 0 and at most 86400 seconds, got {limit_s:g}")
    return ScorerSpec(kind=kind, timeout_s=limit_s, reward=reward)


def worker_count(kind: TaskKind, asked: int | None) -> int:
    """Processes that score, unless asked otherwise: one per core, for code, which waits, two."""
    if asked is not None and not 1 <= asked <= 4096:
        raise BadInput(f"--workers must be from 1 to 4096, got {asked}")
    return asked or len(os.sched_getaffinity(0)) * (2 if kind is TaskKind.code else 1)


@contextmanager
def scoring(console: Console) -> Iterator[Callable[[int, int], None]]:
    """Takes rows done and rows in all, and draws a bar on a terminal; 0 in all: still reading.

    SIGTERM ends it as Ctrl-C does, so that workers and files are tidied up.

    Raises:
        BadInput: for a ValueError inside.
        RunFailed: for an OSError inside, and when interrupted.
    """

    def interrupt(number: int, frame: FrameType | None) -> None:
        raise KeyboardInterrupt

    before = signal.signal(signal.SIGTERM, interrupt)
    try:
        with _bar(console) as bar:
            task = bar.add_task("reading", total=None)

            def progress(done: int, total: int) -> None:
                what = "scoring" if total else "reading"
                bar.update(task, description=what, completed=done, total=total or None)

            yield progress
    except KeyboardInterrupt as error:
        raise RunFailed("interrupted: nothing was written") from error
    except ValueError as error:
        raise BadInput(str(error)) from error
    except OSError as error:
        where = f"{error.filename}: " if error.filename else ""
        raise RunFailed(f"{where}{error.strerror or error}") from error
    finally:
        signal.signal(signal.SIGTERM, before)


def print_verification(done: Verification, source: Path, console: Console) -> None:
    """Rows left out, then the table of scores."""
    left_out = {**done.bad, **done.unscored}
    if left_out:
        console.print(report_bad_rows(source, left_out), highlight=False, markup=False)
    if done.golds_as_text:
        lines = ", ".join(str(line) for line in done.golds_as_text[:MOST_REPORTED])
        more = ", ..." if len(done.golds_as_text) > MOST_REPORTED else ""
        console.print(
            f"WARNING: {len(done.golds_as_text)} golds cannot be read and are compared as text: "
            f"line {lines}{more}",
            highlight=False,
        )
    table = Table(title=f"{done.kind}: {escape(source.name)}", title_justify="left")
    for column in ("", "rows", "share"):
        table.add_column(column, justify="left" if not column else "right")
    counts = {
        "score 1": done.full,
        "between 0 and 1": done.partial,
        "score 0": done.zero,
        "  over the time limit": done.late,
        "  on which the verifier failed": done.crashed,
        "  gold unreadable, and not its text": done.text_only,
    }
    for name, count in counts.items():
        table.add_row(name, str(count), f"{count / max(done.scored, 1):.1%}")
    table.add_section()
    table.add_row("scored", str(done.scored), f"mean {done.mean:.4f}")
    table.add_row("left out", str(len(left_out)), f"of {done.rows}")
    console.print(table)
    slowest = f", slowest row {done.slowest_seconds:.2f} s (line {done.slowest_line})"
    console.print(
        f"{done.rows_per_second:.0f} rows/s: {done.seconds:.1f} s on {done.workers} workers"
        + (slowest if done.scored else ""),
        highlight=False,
    )


def warn_of_crashes(done: Verification, source: Path, console: Console) -> None:
    """Name rows on which the verifier itself failed, if there are any."""
    if not done.crashes:
        return
    console.print(report_bad_rows(source, done.crashes), highlight=False, markup=False)
    console.print(
        f"WARNING: the verifier failed on {done.crashed} of {done.scored} rows, which score 0: a "
        "mistake of ours",
        style="bold red",
        highlight=False,
    )


def verification_json(done: Verification) -> str:
    """The counts as one JSON object."""
    more = {"mean": done.mean, "rows_per_second": done.rows_per_second, "broken": done.broken}
    return json.dumps({**asdict(done), **more})


def _bar(console: Console) -> Progress:
    return Progress(
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        TimeRemainingColumn(),
        console=console,
        disable=not console.is_terminal,
    )
