"""Self-checks of a machine and an installation, in order, each within its time."""

import importlib
import multiprocessing
import os
import signal
import sys
import threading
import time
import traceback
from collections.abc import Callable, Generator, Iterator
from dataclasses import asdict, dataclass, replace
from enum import StrEnum
from multiprocessing.connection import Connection
from pathlib import Path
from types import FrameType
from typing import Any

LEAVE_S = 30.0  # for a process to put its own processes away
LAST_LINES = 12


class Verdict(StrEnum):
    """How a check ended."""

    ok = "ok"
    warning = "warning"  # runs work, but less well, or not all of them
    fail = "FAIL"


@dataclass(frozen=True, slots=True, kw_only=True)
class Finding:
    """What one check found."""

    check: str
    verdict: Verdict
    found: str
    advice: str = ""  # what to do, unless all is well
    seconds: float = 0.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Agreement:
    """How far the log-probs of engine and learner are apart on the same tokens."""

    tokens: str  # which
    mean: float  # nats
    largest: float
    tolerance: float  # of the mean

    @property
    def agrees(self) -> bool:
        """Whether rounding explains the difference. False for what is no number."""
        return self.mean <= self.tolerance


Told = Finding | Agreement
Tell = Callable[[Told], None]


@dataclass(frozen=True, slots=True, kw_only=True)
class Check:
    """A check that needs no process of its own."""

    name: str
    run: Callable[[], Finding]
    limit_s: float = 20.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Apart:
    """A check that starts things, and so gets a process of its own."""

    name: str
    work: str
    """A function of a module, "rl.doctor_engine:examine_ray". It is given a `Tell` and `args`; the
    module is imported in the process alone. SIGTERM asks it to put things away."""
    args: tuple[Any, ...]
    limit_s: float
    log: Path  # takes what is printed

    def last_words(self) -> str:
        """The end of what was printed."""
        text = self.log.read_text(errors="replace") if self.log.exists() else ""
        return "\n".join(text.splitlines()[-LAST_LINES:])


@dataclass(frozen=True, slots=True, kw_only=True)
class Examination:
    """All that was found."""

    findings: tuple[Finding, ...]
    agreements: tuple[Agreement, ...]

    @property
    def healthy(self) -> bool:
        """Whether nothing failed."""
        failed = any(each.verdict is Verdict.fail for each in self.findings)
        return not failed and all(each.agrees for each in self.agreements)

    def record(self) -> dict[str, object]:
        """As `--json` prints it."""
        return {
            "healthy": self.healthy,
            "checks": [asdict(finding) for finding in self.findings],
            "agreement": [asdict(each) | {"agrees": each.agrees} for each in self.agreements],
        }


def fine(check: str, found: str) -> Finding:
    """A finding that needs nothing."""
    return Finding(check=check, verdict=Verdict.ok, found=found)


def failed(check: str, found: object, advice: str) -> Finding:
    """A finding that ends in FAIL."""
    return Finding(check=check, verdict=Verdict.fail, found=str(found), advice=advice)


def examine(check: Check) -> Finding:
    """Run a check in a thread, which is left alone if it hangs."""
    started = time.monotonic()
    findings: list[Finding] = []

    def work() -> None:
        try:
            findings.append(check.run())
        except Exception as error:  # a check that fails in a way of its own is a finding too
            what = f"{type(error).__name__}: {error}"
            findings.append(failed(check.name, what, "this check itself failed: please report it"))

    thread = threading.Thread(target=work, daemon=True)
    thread.start()
    thread.join(check.limit_s)
    hangs = f"no answer within {check.limit_s:g} s"
    finding = findings[0] if findings else failed(check.name, hangs, "see what it hangs on")
    return replace(finding, seconds=time.monotonic() - started)


def examine_apart(apart: Apart) -> Iterator[Told]:
    """Run it in a process of its own; yields what it tells, as it is told.

    The process is ended when its time is over or when nobody listens any more; what it printed last
    is the advice of a finding that it could not tell itself.
    """
    context = multiprocessing.get_context("spawn")
    listening, telling = context.Pipe(duplex=False)
    process = context.Process(target=_work_apart, args=(telling, apart))
    process.start()
    telling.close()
    try:
        done = yield from _heard(apart, listening)
        process.join(LEAVE_S if done else 0.0)
        if done and process.exitcode:
            yield failed(
                apart.name, f"its process ended with {process.exitcode}", apart.last_words()
            )
    finally:
        if process.is_alive():
            process.terminate()  # it puts its own processes away
            process.join(LEAVE_S)
        if process.is_alive():
            process.kill()
            process.join()


def _heard(apart: Apart, listening: Connection) -> Generator[Told, None, bool]:
    """What is told within the time; returns whether the process was done by then."""
    deadline = time.monotonic() + apart.limit_s
    started = time.monotonic()
    while listening.poll(max(deadline - time.monotonic(), 0.0)):
        try:
            told = listening.recv()
        except EOFError:
            return True
        if isinstance(told, Finding):
            told = replace(told, seconds=time.monotonic() - started)
            started = time.monotonic()
        yield told
    yield failed(apart.name, f"not done within {apart.limit_s:g} s", apart.last_words())
    return False


def _work_apart(telling: Connection, apart: Apart) -> None:
    """In the process: out of reach of the terminal's Ctrl-C, which the parent passes on."""
    os.setsid()
    signal.signal(signal.SIGTERM, _leave)
    _print_to(apart.log)
    module, _, name = apart.work.partition(":")
    try:
        getattr(importlib.import_module(module), name)(telling.send, *apart.args)
    except Exception as error:
        traceback.print_exc()
        sys.stderr.flush()
        telling.send(failed(apart.name, f"{type(error).__name__}: {error}", apart.last_words()))


def _leave(number: int, frame: FrameType | None) -> None:
    """Leave as at the end, not at once: Ray ends what it has just started."""
    sys.exit(128 + number)


def _print_to(log: Path) -> None:
    """Send what this process and its children print to a file."""
    file = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
    for stream in (1, 2):
        os.dup2(file, stream)
    os.close(file)
