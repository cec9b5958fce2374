"""In what order a checkpoint reaches the disk: no power cut leaves `latest` on half of one."""

import asyncio
import os
import shutil
from pathlib import Path
from typing import Any

import pytest

from rl.checkpoint import RunState
from rl.save_checkpoint import Checkpoints, Written


def _never(line: str) -> None:
    raise AssertionError(line)


async def _there() -> None:
    """All files have been written."""


async def _write(folder: Path) -> Written:
    (folder / "model").mkdir()
    (folder / "model" / "weights").write_bytes(b"w")
    return _there


def _save(folder: Path, step: int) -> None:
    state = RunState(step=step, rollout_tokens=0, train_seconds=0.0, eval_before={})

    async def main() -> None:
        checkpoints = Checkpoints(folder, _never, keep=1)
        await checkpoints.save(state, _write)
        await checkpoints.settle()

    asyncio.run(main())


@pytest.fixture
def done(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """What is brought to the disk and what is moved, by name and in order."""
    seen: list[str] = []
    fsync, rename, replace = os.fsync, os.rename, os.replace

    def synced(number: int) -> None:
        seen.append(f"sync {Path(os.readlink(f'/proc/self/fd/{number}')).name}")
        fsync(number)

    def renamed(source: Any, target: Any) -> None:
        seen.append(f"move {Path(source).name}")
        rename(source, target)

    def replaced(source: Any, target: Any) -> None:
        seen.append(f"replace {Path(target).name}")
        replace(source, target)

    monkeypatch.setattr(os, "fsync", synced)
    monkeypatch.setattr(os, "rename", renamed)
    monkeypatch.setattr(os, "replace", replaced)
    return seen


def test_everything_is_on_the_disk_before_it_is_called_a_checkpoint(
    tmp_path: Path, done: list[str]
) -> None:
    _save(tmp_path, 1)
    before = done[: done.index("move step_1.partial")]
    wanted = ("weights", "state.json", "manifest.json", "model", "step_1.partial")
    assert {f"sync {name}" for name in wanted} <= set(before)
    assert before.index("sync weights") < before.index("sync manifest.json")
    assert before[-1] == "sync step_1.partial"


def test_the_names_of_a_checkpoint_and_of_the_latest_are_brought_to_the_disk_last(
    tmp_path: Path, done: list[str]
) -> None:
    _save(tmp_path, 1)
    assert done[-3:] == ["move step_1.partial", "replace latest", f"sync {tmp_path.name}"]


def test_latest_has_moved_before_an_older_one_goes(
    tmp_path: Path, done: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    _save(tmp_path, 1)
    latest: list[str] = []
    rmtree = shutil.rmtree

    def removed(path: Path, **options: Any) -> None:
        if Path(path).name == "step_1":
            latest.append(os.readlink(tmp_path / "latest"))
            assert done[-1] == f"sync {tmp_path.name}"
        rmtree(path, **options)

    monkeypatch.setattr(shutil, "rmtree", removed)
    _save(tmp_path, 2)
    assert latest == ["step_2"]
