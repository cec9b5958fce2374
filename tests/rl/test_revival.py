"""Drivers that are really killed, with the smallest of runs in them."""

import asyncio
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import psutil
import pytest

from rl.config import TrainConfig
from rl.errors import BadInput, RunFailed
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


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGKILL])
def test_a_driver_ends_with_the_process_that_looks_on(tmp_path: Path, number: int) -> None:
    """Told to stop or killed, it leaves nothing behind, and revives nothing."""
    program = (
        "from rl.config import TrainConfig\n"
        "from rl.revival import revived\n"
        "from test_revival import sleeps\n"
        "if __name__ == '__main__':\n"
        f"    revived(sleeps, TrainConfig(run_dir={str(tmp_path)!r}), print, settle_s=0.0)\n"
    )
    path = tmp_path / "program.py"
    path.write_text(program)
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parent)}
    looking_on = subprocess.Popen(
        [sys.executable, str(path)], env=environment, stderr=subprocess.PIPE, text=True
    )
    pid = tmp_path / "pid"
    deadline = time.monotonic() + 60
    while not (pid.exists() and pid.read_text()):
        assert time.monotonic() < deadline
        time.sleep(0.05)
    driver = psutil.Process(int(pid.read_text()))
    looking_on.send_signal(number)
    _, said = looking_on.communicate(timeout=60)
    assert psutil.wait_procs([driver], timeout=30)[1] == []
    assert (tmp_path / "away").exists()
    if number == signal.SIGTERM:
        assert "stopped; go on from" in said and looking_on.returncode == 1


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
