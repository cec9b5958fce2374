"""A driver that is killed is started again, as a person would with `resume=true`.

The process that looks on loads neither torch nor Ray. The driver is its child, and ends with it.
"""

import multiprocessing
import os
import signal
import threading
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Self, TypeVar

from rl.checkpoint import by_preference, stopped
from rl.config import TrainConfig
from rl.errors import CrashLoop
from rl.run_folder import run_root

Result = TypeVar("Result")

SETTLE_S = 10.0  # for what a lost driver leaves behind to end

Drive = Callable[[TrainConfig, Sequence[str]], Result]
"""Runs a recipe. The reasons are those for which drivers before it were lost since the checkpoint
that it goes on from; too many of them are an error."""


def revived(
    drive: Drive[Result],
    config: TrainConfig,
    say: Callable[[str], None],
    settle_s: float = SETTLE_S,
) -> Result:
    """What `drive` returns or raises, in a process of its own, however often that is killed.

    Args:
        drive: a function that a new process can import.
        config: of the run; a new driver goes on from its last whole checkpoint. Those of an earlier
            run, which a lost driver has not moved aside, are not this run's.
        say: hears that a driver was lost.
        settle_s: seconds between the end of a driver and the next.

    Raises:
        RunFailed: this process was told to stop (Ctrl-C, SIGTERM), and the driver could not say so.
        CrashLoop: drivers are lost again and again, before one lives to count the losses itself.
    """
    checkpoints = run_root(config) / "checkpoints"
    earlier = None if config.resume else _identity(checkpoints)
    lost: list[str] = []
    newest = _newest(checkpoints, earlier)
    while True:
        try:
            return _in_child(drive, config, lost)
        except ChildLost as error:
            reason = str(error)
        before, newest = newest, _newest(checkpoints, earlier)
        lost = [*(lost if newest == before else ()), reason]
        if len(lost) > config.cluster.max_restarts + 1:  # a driver that lives says it at one less
            reasons = "\n".join(f"  - {each}" for each in lost)
            raise CrashLoop(
                f"the driver was lost {len(lost)} times before it could begin "
                f"(cluster.max_restarts={config.cluster.max_restarts}):\n{reasons}"
            )
        say(f"the driver was lost: {reason}; another one starts in {settle_s:.0f} s")
        time.sleep(settle_s)
        config = replace(config, resume=config.resume or newest is not None)


class ChildLost(Exception):
    """The process has ended without an answer."""


def _in_child(drive: Drive[Result], config: TrainConfig, lost: Sequence[str]) -> Result:
    """Raises ChildLost, or what `drive` raised."""
    spawn = multiprocessing.get_context("spawn")
    with _Stop() as stop, ProcessPoolExecutor(1, mp_context=spawn, initializer=_begin) as pool:
        before = set(multiprocessing.active_children())
        future = pool.submit(_drive, drive, config, lost)
        (child,) = set(multiprocessing.active_children()) - before
        stop.passes_to(child)
        try:
            return future.result()
        except BrokenProcessPool as error:
            pool.shutdown()  # its own thread may be the one that reaps the child
            if stop.told:
                raise stopped(run_root(config) / "checkpoints") from error
            raise ChildLost(f"process {child.pid} {_end_of(child.exitcode)}") from error


class _Stop:
    """Ctrl-C and SIGTERM, which a run takes for the same, reach the child as one SIGTERM each."""

    def __init__(self) -> None:
        self.told = False
        self._child: multiprocessing.process.BaseProcess | None = None

    def __enter__(self) -> Self:
        """From here on both are heard: what comes before there is a child waits for it."""
        numbers = (signal.SIGINT, signal.SIGTERM)
        self._before = {each: signal.signal(each, self._hear) for each in numbers}
        return self

    def __exit__(self, *_: object) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def passes_to(self, child: multiprocessing.process.BaseProcess) -> None:
        """Tell `child`, which was started just now: a second time would not be noticed."""
        self._child = child
        if self.told:
            child.terminate()

    def _hear(self, number: int, frame: object) -> None:
        self.told = True
        if self._child is not None:
            self._child.terminate()


def _begin() -> None:
    """In the child: a run that is told to stop by its parent alone, and when that ends."""
    os.setpgrp()  # else a terminal's Ctrl-C came here too, beside what the parent makes of it

    def end_with_parent() -> None:
        _parent().join()
        os.kill(os.getpid(), signal.SIGTERM)

    threading.Thread(target=end_with_parent, daemon=True).start()


def _drive(drive: Drive[Result], config: TrainConfig, lost: Sequence[str]) -> Result:
    """In the child: the run, which puts its things away when it is told to stop."""
    try:
        return drive(config, lost)
    finally:
        if not _parent().is_alive():  # who would hear of it, or call for more
            os._exit(1)


def _parent() -> multiprocessing.process.BaseProcess:
    parent = multiprocessing.parent_process()
    assert parent is not None
    return parent


def _end_of(code: int | None) -> str:
    if code is not None and code < 0:
        with suppress(ValueError):
            return f"ended by {signal.Signals(-code).name}"
    return f"ended with {code}"


def _newest(checkpoints: Path, earlier: tuple[int, int] | None) -> str | None:
    """The checkpoint that a run would go on from, unless the folder is the `earlier` one."""
    if _identity(checkpoints) == earlier:
        return None
    return next((each.name for each in by_preference(checkpoints) if each.is_dir()), None)


def _identity(folder: Path) -> tuple[int, int] | None:
    """What stays with a folder that is moved; None if there is none."""
    with suppress(OSError):
        found = folder.stat()
        return found.st_dev, found.st_ino
    return None
