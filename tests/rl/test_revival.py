"""Drivers that are really killed, with the smallest of runs in them."""

import asyncio
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import psutil
import pytest

from rl.config import ClusterConfig, TrainConfig
from rl.errors import BadInput, CrashLoop, RunFailed
from rl.revival import revived

STEPS = 3


def drive(config: TrainConfig, lost: Sequence[str]) -> list[str]:
    """One step in the life of each driver, which notes what it was told; the last one returns."""
    checkpoints = Path(config.run_dir or "") / "checkpoints"
    checkpoints.mkdir(parents=True, exist_ok=True)
    trained = len(list(checkpoints.glob("step_*")))
    with (checkpoints / "log").open("a") as log:
        log.write(f"{trained} {config.resume} {list(lost)}\n")
    if trained == STEPS:
        return (checkpoints / "log").read_text().splitlines()
    (checkpoints / f"step_{trained}").mkdir()
    latest = checkpoints / "latest"
    latest.unlink(missing_ok=True)
    latest.symlink_to(f"step_{trained}")
    os.kill(os.getpid(), signal.SIGKILL)
    raise AssertionError


def never_saves(config: TrainConfig, lost: Sequence[str]) -> None:
    """Ends as Ray ends a driver, without a word, before there is a checkpoint."""
    if len(lost) == 2:
        raise RunFailed(f"resume={config.resume}, {list(lost)}")
    os._exit(3)


def never_begins(config: TrainConfig, lost: Sequence[str]) -> None:
    """Killed while it reads its tasks, before it could count the drivers that were lost."""
    os.kill(os.getpid(), signal.SIGKILL)


def notes(config: TrainConfig, lost: Sequence[str]) -> None:
    """Writes down the signals that it gets, and ends some time after the first."""
    folder, told = Path(config.run_dir or ""), list[int]()
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, lambda number, frame: told.append(number))
    (folder / "pid").write_text(str(os.getpid()))
    while not told:
        time.sleep(0.02)
    time.sleep(0.5)
    (folder / "told").write_text(str(told))


def refuses(config: TrainConfig, lost: Sequence[str]) -> None:
    raise BadInput("a mistake in the recipe")


def sleeps(config: TrainConfig, lost: Sequence[str]) -> None:
    """Told to stop, it puts things away, as a run does."""
    folder = Path(config.run_dir or "")

    async def run() -> None:
        task = asyncio.current_task()
        assert task is not None
        asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, task.cancel)
        (folder / "pid").write_text(str(os.getpid()))
        try:
            await asyncio.sleep(600)
        finally:
            await asyncio.sleep(0.2)
            (folder / "away").touch()

    try:
        asyncio.run(run())
    except asyncio.CancelledError as stop:
        raise RunFailed("stopped; go on from the last checkpoint with resume=true") from stop


def test_a_killed_driver_goes_on_from_the_last_checkpoint(tmp_path: Path) -> None:
    said: list[str] = []
    config = TrainConfig(run_dir=str(tmp_path))
    found = [_without_pids(line) for line in revived(drive, config, said.append, settle_s=0.0)]
    assert found == [
        "0 False []",
        "1 True ['process N ended by SIGKILL']",
        "2 True ['process N ended by SIGKILL']",
        "3 True ['process N ended by SIGKILL']",
    ], "a checkpoint in between: the loss before it no longer counts"
    assert len(set(said)) == 3
    (line,) = {_without_pids(each) for each in said}
    assert line == "the driver was lost: process N ended by SIGKILL; another one starts in 0 s"


def _without_pids(line: str) -> str:
    return re.sub(r"process \d+", "process N", line)


def test_losses_without_a_checkpoint_between_add_up_and_the_run_starts_anew(tmp_path: Path) -> None:
    config = TrainConfig(run_dir=str(tmp_path))
    with pytest.raises(
        RunFailed, match=r"resume=False, \['process \d+ ended with 3', 'process \d+ "
    ):
        revived(never_saves, config, lambda line: None, settle_s=0.0)


@pytest.mark.parametrize("most", [0, 1])
def test_drivers_that_never_begin_are_given_up(tmp_path: Path, most: int) -> None:
    config = TrainConfig(run_dir=str(tmp_path), cluster=ClusterConfig(max_restarts=most))
    said: list[str] = []

    def hear(line: str) -> None:
        said.append(line)
        assert len(said) < 5, "it goes on for ever"

    with pytest.raises(CrashLoop) as ended:
        revived(never_begins, config, hear, settle_s=0.0)
    assert f"lost {most + 2} times before it could begin" in str(ended.value)
    assert str(ended.value).count("ended by SIGKILL") == most + 2
    assert len(said) == most + 1, "and none is promised after the last"


def begins(config: TrainConfig, lost: Sequence[str]) -> list[bool]:
    """Killed before it moves an earlier run away, then after it, then with a checkpoint of its own,
    written but not yet `latest`; the last one returns what it was told."""
    root = Path(config.run_dir or "")
    told = root.with_name("told")
    with told.open("a") as notes:
        notes.write(f"{config.resume}\n")
    match told.read_text().split():
        case [_, _]:
            root.rename(root.with_name("run.1"))
            root.mkdir()
        case [_, _, _]:
            (root / "checkpoints" / "step_10").mkdir(parents=True)
        case [_, _, _, _] as words:
            return [word == "True" for word in words]
    os.kill(os.getpid(), signal.SIGKILL)
    raise AssertionError


def test_an_earlier_run_in_the_folder_is_not_gone_on_with(tmp_path: Path) -> None:
    step = tmp_path / "run" / "checkpoints" / "step_80"
    step.mkdir(parents=True)
    (step.parent / "latest").symlink_to("step_80")
    config = TrainConfig(run_dir=str(tmp_path / "run"))
    told = revived(begins, config, lambda line: None, settle_s=0.0)
    assert told == [False, False, False, True]


def test_what_a_driver_raises_is_raised_and_ends_it(tmp_path: Path) -> None:
    with pytest.raises(BadInput, match="a mistake in the recipe"):
        revived(refuses, TrainConfig(run_dir=str(tmp_path)), pytest.fail, settle_s=0.0)


@contextmanager
def _looking_on(
    folder: Path, drive: Callable[[TrainConfig, Sequence[str]], None], first: str = "pass"
) -> Iterator[subprocess.Popen[str]]:
    """The process that looks on; its drivers run `first` before anything else, and write `pid`."""
    path = folder / "program.py"
    path.write_text(
        "import os, time\n"
        "from pathlib import Path\n"
        "from rl.config import TrainConfig\n"
        "from rl.revival import revived\n"
        f"from test_revival import {drive.__name__} as drive\n"
        f"folder = Path({str(folder)!r})\n"
        "if __name__ == '__main__':\n"
        "    revived(drive, TrainConfig(run_dir=str(folder)), print, settle_s=0.0)\n"
        f"else:\n    {first}\n"
    )
    process = subprocess.Popen(
        [sys.executable, str(path)],
        env={**os.environ, "PYTHONPATH": str(Path(__file__).parent)},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
        # A test run that was started in the background ignores Ctrl-C, and so would its children.
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.default_int_handler),
    )
    try:
        yield process
    finally:
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGKILL)
        process.communicate(timeout=60)


def _driver_of(folder: Path) -> psutil.Process:
    pid, deadline = folder / "pid", time.monotonic() + 60
    while not (pid.exists() and pid.read_text()):
        assert time.monotonic() < deadline
        time.sleep(0.05)
    return psutil.Process(int(pid.read_text()))


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT, signal.SIGKILL])
def test_a_driver_ends_with_the_process_that_looks_on(tmp_path: Path, number: int) -> None:
    """Told to stop or killed, it leaves nothing behind, and revives nothing."""
    with _looking_on(tmp_path, sleeps) as looking_on:
        driver = _driver_of(tmp_path)
        looking_on.send_signal(number)
        _, said = looking_on.communicate(timeout=60)
        assert psutil.wait_procs([driver], timeout=30)[1] == []
    assert (tmp_path / "away").exists()
    if number != signal.SIGKILL:
        assert "stopped; go on from" in said and looking_on.returncode == 1


def test_ctrl_c_of_a_terminal_is_heard_once(tmp_path: Path) -> None:
    """It goes to all processes of the group in front."""
    with _looking_on(tmp_path, notes) as looking_on:
        _driver_of(tmp_path)
        os.killpg(looking_on.pid, signal.SIGINT)
        _, said = looking_on.communicate(timeout=60)
    assert (tmp_path / "told").read_text() == str([int(signal.SIGTERM)])
    assert looking_on.returncode == 0, said


@pytest.mark.parametrize("to", ["group", "process"])
def test_ctrl_c_before_a_driver_begins_starts_no_other(tmp_path: Path, to: str) -> None:
    first = "(folder / 'pid').write_text(str(os.getpid())); time.sleep(600)"
    with _looking_on(tmp_path, sleeps, first) as looking_on:
        driver = _driver_of(tmp_path)
        if to == "group":
            os.killpg(looking_on.pid, signal.SIGINT)
        else:
            looking_on.send_signal(signal.SIGINT)
        output, said = looking_on.communicate(timeout=30)
        assert psutil.wait_procs([driver], timeout=30)[1] == []
    assert "stopped before the first checkpoint" in said and looking_on.returncode == 1
    assert output == "", "no driver was lost"


@pytest.mark.parametrize("latest", ["link", "folder", "none"])
def test_a_run_that_goes_on_is_not_moved_aside(tmp_path: Path, latest: str) -> None:
    """The first driver resumes: its checkpoint is from before, and a loss counts against it."""
    config = TrainConfig(run_dir=str(tmp_path))
    step = tmp_path / "checkpoints" / "step_7"
    step.mkdir(parents=True)
    if latest == "link":
        (step.parent / "latest").symlink_to("step_7")
    elif latest == "folder":  # of a copy that followed links
        (step.parent / "latest").mkdir()
    with pytest.raises(RunFailed, match="resume=True"):
        revived(never_saves, replace(config, resume=True), lambda line: None, settle_s=0.0)
