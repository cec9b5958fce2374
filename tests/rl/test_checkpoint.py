import asyncio
import subprocess
import sys
from pathlib import Path

import pytest

from rl.checkpoint import RunState, latest_checkpoint, read_state, save_checkpoint
from rl.errors import BadInput
from rl.evaluate import PassRate


def _state(step: int) -> RunState:
    return RunState(
        step=step,
        rollout_tokens=10,
        train_seconds=1.5,
        eval_before={"all": PassRate(value=0.3, low=0.2, high=0.4, tasks=50)},
        restarts=0,
    )


async def _write(folder: Path) -> None:
    (folder / "model").mkdir()
    (folder / "model" / "weights").write_bytes(b"w" * 1000)


def _save(folder: Path, step: int, keep: int = 2) -> Path:
    return asyncio.run(save_checkpoint(folder, _state(step), _write, keep=keep))


def test_round_trip_and_pruning(tmp_path: Path) -> None:
    for step in (1, 2, 10):
        _save(tmp_path, step)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["latest", "step_10", "step_2"]
    assert latest_checkpoint(tmp_path).name == "step_10"
    assert read_state(latest_checkpoint(tmp_path)) == _state(10)


@pytest.mark.parametrize("damage", ["missing", "truncated", "flipped", "manifest"])
def test_damage_is_named(tmp_path: Path, damage: str) -> None:
    weights = _save(tmp_path, 3) / "model" / "weights"
    if damage == "missing":
        weights.unlink()
    elif damage == "truncated":
        weights.write_bytes(b"w" * 999)
    elif damage == "flipped":
        weights.write_bytes(b"w" * 999 + b"v")
    else:
        (tmp_path / "step_3" / "manifest.json").write_text("{")
    with pytest.raises(BadInput, match="manifest" if damage == "manifest" else "model/weights"):
        latest_checkpoint(tmp_path)


def test_nothing_to_resume(tmp_path: Path) -> None:
    with pytest.raises(BadInput, match="no checkpoint to resume"):
        latest_checkpoint(tmp_path)


FULL_DISK = """
import asyncio, pathlib, resource, sys
from rl.checkpoint import RunState, save_checkpoint
from rl.errors import RunFailed
folder = pathlib.Path(sys.argv[1])
async def write(folder):
    (folder / "weights").write_bytes(b"w" * 100_000)
resource.setrlimit(resource.RLIMIT_FSIZE, (50_000, 50_000))
state = RunState(step=4, rollout_tokens=0, train_seconds=0, eval_before={}, restarts=0)
try:
    asyncio.run(save_checkpoint(folder, state, write, keep=1))
except RunFailed as error:
    print(error)
"""


def test_a_write_that_the_system_refuses_leaves_the_previous_checkpoint(tmp_path: Path) -> None:
    _save(tmp_path, 3)
    done = subprocess.run(
        [sys.executable, "-c", FULL_DISK, str(tmp_path)], capture_output=True, text=True, check=True
    )
    assert "step_4" in done.stdout and "File too large" in done.stdout
    assert "Last whole checkpoint: step_3" in done.stdout
    assert latest_checkpoint(tmp_path).name == "step_3"
    assert sorted(p.name for p in tmp_path.iterdir()) == ["latest", "step_3"]
