"""Which checkpoint a run goes on from, and how one is written while the run goes on."""

import asyncio
import multiprocessing
import os
import signal
import threading
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch

from model.shards import tensor_shapes, write_shards
from model.snapshot import Writing
from rl.checkpoint import RunState, latest_checkpoint, manifest_of, read_state, step_of, verify
from rl.errors import BadInput, PartLost, RunFailed
from rl.evaluate import PassRate
from rl.save_checkpoint import Checkpoints, Written, save_checkpoint, shards_written


def _state(step: int) -> RunState:
    return RunState(
        step=step,
        rollout_tokens=10,
        train_seconds=1.5,
        eval_before={"all": PassRate(value=0.3, low=0.2, high=0.4, tasks=50)},
    )


async def _there() -> None:
    """All files have been written."""


async def _write(folder: Path) -> Written:
    (folder / "model").mkdir()
    (folder / "model" / "weights").write_bytes(b"w" * 1000)
    return _there


async def _refuse(folder: Path) -> Written:
    (folder / "model").mkdir()
    raise OSError(28, "No space left on device")


def _save(folder: Path, step: int, keep: int = 2) -> Path:
    return asyncio.run(save_checkpoint(folder, _state(step), _write, keep=keep))


def _names(folder: Path) -> list[str]:
    return sorted(p.name for p in folder.iterdir())


def test_round_trip_and_pruning(tmp_path: Path) -> None:
    for step in (0, 1, 2, 10):
        _save(tmp_path, step)
    assert _names(tmp_path) == ["latest", "step_0", "step_10", "step_2"]
    assert latest_checkpoint(tmp_path).name == "step_10"
    assert read_state(latest_checkpoint(tmp_path)) == _state(10)


@pytest.mark.parametrize("damage", ["missing", "truncated", "flipped", "manifest", "folder"])
def test_the_one_before_a_damaged_one_is_used_loudly(tmp_path: Path, damage: str) -> None:
    _save(tmp_path, 2)
    weights = _save(tmp_path, 3) / "model" / "weights"
    if damage == "missing":
        weights.unlink()
    elif damage == "truncated":
        weights.write_bytes(b"w" * 999)
    elif damage == "flipped":
        weights.write_bytes(b"w" * 999 + b"v")
    elif damage == "manifest":
        (tmp_path / "step_3" / "manifest.json").write_text("{")
    else:
        (tmp_path / "step_3").rename(tmp_path / "step_3.replaced")
    said: list[str] = []
    assert latest_checkpoint(tmp_path, said.append).name == "step_2"
    assert "step_3" in said[0]
    named = "model/weights" if damage in ("missing", "truncated", "flipped") else "manifest.json"
    assert named in said[0]
    assert "step_2" in said[1]


def test_a_damaged_one_is_loud_even_where_nobody_listens(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    _save(tmp_path, 2)
    (_save(tmp_path, 3) / "state.json").unlink()
    assert latest_checkpoint(tmp_path).name == "step_2"
    assert "state.json is missing" in capsys.readouterr().err


def test_none_that_is_whole(tmp_path: Path) -> None:
    for step in (1, 2):
        (_save(tmp_path, step) / "model" / "weights").unlink()
    with pytest.raises(BadInput, match=r"(?s)no checkpoint is whole.*step_2.*step_1"):
        latest_checkpoint(tmp_path)


def test_nothing_to_resume(tmp_path: Path) -> None:
    with pytest.raises(BadInput, match="there is no checkpoint in"):
        latest_checkpoint(tmp_path)


def test_a_person_may_go_back_and_the_future_given_up_does_not_count(tmp_path: Path) -> None:
    for step in (10, 20, 40):
        _save(tmp_path, step, keep=3)
    (tmp_path / "latest").unlink()
    (tmp_path / "latest").symlink_to("step_20")
    assert latest_checkpoint(tmp_path).name == "step_20"
    _save(tmp_path, 25, keep=1)
    assert _names(tmp_path) == ["latest", "step_25", "step_40"]
    assert latest_checkpoint(tmp_path).name == "step_25"
    _save(tmp_path, 40, keep=1)
    assert _names(tmp_path) == ["latest", "step_40"]
    verify(tmp_path / "step_40")


def _going_on(folder: Path, step: int) -> None:
    """A run that goes on from what is there saves `step`."""

    async def main() -> None:
        whole = latest_checkpoint(folder, lambda line: None)
        checkpoints = Checkpoints(folder, _never, keep=2, whole=whole)
        await checkpoints.save(_state(step), _write)
        await checkpoints.settle()

    asyncio.run(main())


def test_a_future_given_up_neither_counts_nor_is_gone_back_to(tmp_path: Path) -> None:
    """Its steps are not those that the run comes by, as after another `checkpoint.every`."""
    for step in (0, 10, 20):
        _save(tmp_path, step)
    (tmp_path / "latest").unlink()
    (tmp_path / "latest").symlink_to("step_10")
    _going_on(tmp_path, 15)
    assert _names(tmp_path) == ["latest", "step_0", "step_10", "step_15", "step_20"]
    _going_on(tmp_path, 25)
    assert _names(tmp_path) == ["latest", "step_0", "step_15", "step_25"]
    (tmp_path / "step_25" / "model" / "weights").unlink()
    assert latest_checkpoint(tmp_path, lambda line: None).name == "step_15"


def test_a_damaged_one_that_was_gone_back_before_goes_when_it_is_passed(tmp_path: Path) -> None:
    for step in (10, 20):
        _save(tmp_path, step)
    (tmp_path / "step_20" / "model" / "weights").unlink()
    _going_on(tmp_path, 21)  # the disk has refused step 20
    assert _names(tmp_path) == ["latest", "step_10", "step_21"]


def test_where_none_is_whole_a_future_given_up_is_named_and_not_taken(tmp_path: Path) -> None:
    for step in (10, 20):
        _save(tmp_path, step)
    (tmp_path / "latest").unlink()
    (tmp_path / "latest").symlink_to("step_10")
    (tmp_path / "step_10" / "state.json").unlink()
    with pytest.raises(
        BadInput, match=r"(?s)point latest at what was given up \(step_20\).*step_10"
    ):
        latest_checkpoint(tmp_path)


@pytest.mark.parametrize("target", ["best", "step_10.bak", "../other", "."])
def test_a_latest_that_points_elsewhere_is_named_with_what_to_do(
    tmp_path: Path, target: str
) -> None:
    _save(tmp_path, 10)
    (tmp_path / "latest").unlink()
    (tmp_path / "latest").symlink_to(target)
    with pytest.raises(BadInput, match="which is no step_N: point it at") as found:
        latest_checkpoint(tmp_path)
    assert f"{tmp_path / 'latest'} points at {target}," in str(found.value)
    (tmp_path / "latest").unlink()
    assert latest_checkpoint(tmp_path, _never).name == "step_10", "as it says"


@pytest.mark.parametrize("target", ["step_10/", "../checkpoints/step_10", "{}/step_10"])
def test_a_latest_may_be_written_in_other_ways(tmp_path: Path, target: str) -> None:
    folder = tmp_path / "checkpoints"
    _save(folder, 10)
    (folder / "latest").unlink()
    (folder / "latest").symlink_to(target.format(folder))
    assert latest_checkpoint(folder, _never).samefile(folder / "step_10")


def test_a_file_that_is_not_in_the_manifest_is_no_damage(tmp_path: Path) -> None:
    (_save(tmp_path, 1) / "notes.txt").write_text("mine")
    assert latest_checkpoint(tmp_path, _never).name == "step_1"


def test_the_run_goes_on_while_a_checkpoint_is_finished(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    gate = threading.Event()

    def slow(folder: Path) -> dict[str, dict[str, int | str]]:
        assert gate.wait(20)
        return manifest_of(folder)

    monkeypatch.setattr("rl.save_checkpoint.manifest_of", slow)

    async def main() -> None:
        checkpoints = Checkpoints(tmp_path, _never, keep=2)
        await checkpoints.save(_state(1), _write)
        assert _names(tmp_path) == ["step_1.partial"]  # and yet `save` has returned
        second = asyncio.create_task(checkpoints.save(_state(2), _write))
        await asyncio.sleep(0.05)
        assert _names(tmp_path) == ["step_1.partial"]  # at most one is under way
        gate.set()
        await second
        assert await checkpoints.complete(_state(2), _refuse) == tmp_path / "step_2"

    asyncio.run(main())
    assert _names(tmp_path) == ["latest", "step_1", "step_2"]


def test_whoever_is_cancelled_while_it_waits_for_a_checkpoint_may_wait_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    gate = threading.Event()

    def slow(folder: Path) -> dict[str, dict[str, int | str]]:
        assert gate.wait(20)
        return manifest_of(folder)

    monkeypatch.setattr("rl.save_checkpoint.manifest_of", slow)

    async def main() -> None:
        checkpoints = Checkpoints(tmp_path, _never, keep=2)
        await checkpoints.save(_state(1), _write)
        stopped = asyncio.create_task(checkpoints.save(_state(2), _write))
        await asyncio.sleep(0.05)
        stopped.cancel()  # another part of the run was lost
        await asyncio.wait([stopped])
        closing = asyncio.create_task(checkpoints.settle())
        await asyncio.sleep(0.05)
        assert not closing.done()  # what comes next would find half a checkpoint
        gate.set()
        await closing
        assert latest_checkpoint(tmp_path, _never).name == "step_1"

    asyncio.run(main())


def test_what_a_kill_has_left_beside_a_checkpoint_does_not_keep_it_from_being_replaced(
    tmp_path: Path,
) -> None:
    (_save(tmp_path, 2) / "mark").touch()
    (tmp_path / "step_2.replaced").mkdir()
    (tmp_path / "step_2.replaced" / "old").touch()
    assert not (_save(tmp_path, 2) / "mark").exists()
    assert _names(tmp_path) == ["latest", "step_2"]


def test_a_full_disk_does_not_end_the_run_and_the_next_step_tries_again(tmp_path: Path) -> None:
    said: list[str] = []

    async def main() -> None:
        checkpoints = Checkpoints(tmp_path, said.append, keep=2)
        await checkpoints.save(_state(3), _write)
        await checkpoints.save(_state(4), _refuse)
        assert checkpoints.behind and _names(tmp_path) == ["latest", "step_3"]
        assert "step_4: [Errno 28] No space left" in said[0] and "step_3" in said[0]
        await checkpoints.save(_state(5), _write)
        await checkpoints.settle()
        assert not checkpoints.behind

    asyncio.run(main())
    assert latest_checkpoint(tmp_path).name == "step_5"


def test_a_digest_that_cannot_be_written_leaves_the_one_before(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(folder: Path) -> dict[str, dict[str, int | str]]:
        raise OSError(5, "Input/output error")

    _save(tmp_path, 3)
    monkeypatch.setattr("rl.save_checkpoint.manifest_of", refuse)
    with pytest.raises(RunFailed, match=r"step_4: \[Errno 5\]"):
        _save(tmp_path, 4)
    assert _names(tmp_path) == ["latest", "step_3"]


def test_the_end_of_a_run_waits_for_a_disk_and_then_fails(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("rl.save_checkpoint.RETRY_S", 0.0)
    monkeypatch.setattr("rl.save_checkpoint.TRIES", 3)
    said: list[str] = []

    async def main() -> None:
        checkpoints = Checkpoints(tmp_path, said.append, keep=2)
        refusing = 2

        async def later(folder: Path) -> Written:
            nonlocal refusing
            refusing -= 1
            return await (_refuse(folder) if refusing >= 0 else _write(folder))

        assert step_of(await checkpoints.complete(_state(4), later)) == 4
        assert len(said) == 4  # twice refused, twice told of the next time
        with pytest.raises(RunFailed, match=r"step_5.*Last whole checkpoint: .*step_4"):
            await checkpoints.complete(_state(5), _refuse)

    asyncio.run(main())


@pytest.mark.parametrize("copied", [False, True])
def test_a_learner_that_is_lost_while_it_writes_leaves_nothing_that_counts(
    tmp_path: Path, copied: bool
) -> None:
    async def lost() -> None:
        raise PartLost("learner shard 1", "killed")

    async def die(folder: Path) -> Written:
        (folder / "half").write_bytes(b"w")
        if not copied:
            await lost()
        return lost

    async def main() -> None:
        checkpoints = Checkpoints(tmp_path, _never, keep=2)
        await checkpoints.save(_state(3), _write)
        with pytest.raises(PartLost):
            await checkpoints.save(_state(4), die)
            await checkpoints.settle()
        await checkpoints.close()
        assert latest_checkpoint(tmp_path, _never).name == "step_3"
        await checkpoints.save(_state(5), _write)
        await checkpoints.settle()
        await checkpoints.save(_state(6), die if copied else _write)
        await checkpoints.close()  # says nothing of a shard that is lost: others do

    asyncio.run(main())
    left = ["latest", "step_3", "step_5"] if copied else ["latest", "step_5", "step_6"]
    assert [name for name in _names(tmp_path) if "partial" not in name] == left


def test_the_end_does_not_wait_for_ever_for_files(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("rl.save_checkpoint.CLOSE_S", 0.05)

    async def hang(folder: Path) -> Written:
        return asyncio.Event().wait

    async def main() -> None:
        checkpoints = Checkpoints(tmp_path, _never, keep=2)
        await checkpoints.save(_state(3), _write)
        await checkpoints.save(_state(4), hang)
        await asyncio.wait_for(checkpoints.close(), 20)

    asyncio.run(main())
    assert latest_checkpoint(tmp_path, _never).name == "step_3"


def test_a_checkpoint_that_was_given_up_never_becomes_the_latest(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The thread that makes its digests goes on, while the run starts again from the one before."""
    monkeypatch.setattr("rl.save_checkpoint.CLOSE_S", 0.05)
    gate = threading.Event()

    def slow(folder: Path) -> dict[str, dict[str, int | str]]:
        assert gate.wait(20)
        return manifest_of(folder)

    async def main() -> None:
        first = Checkpoints(tmp_path, _never, keep=2)
        await first.save(_state(3), _write)
        await first.settle()
        monkeypatch.setattr("rl.save_checkpoint.manifest_of", slow)
        await first.save(_state(4), _write)
        await asyncio.sleep(0.02)
        await asyncio.wait_for(first.close(), 20)
        gate.set()

    asyncio.run(main())  # waits for its threads
    assert _names(tmp_path) == ["latest", "step_3", "step_4.partial"]
    assert latest_checkpoint(tmp_path, _never).name == "step_3"
    monkeypatch.setattr("rl.save_checkpoint.manifest_of", manifest_of)
    _save(tmp_path, 5)
    assert _names(tmp_path) == ["latest", "step_3", "step_5"]


def test_a_folder_in_the_place_of_the_link_is_moved_aside_once(tmp_path: Path) -> None:
    """As copies of a run have it that followed links."""
    _save(tmp_path, 2)
    (tmp_path / "latest").unlink()
    (tmp_path / "latest").mkdir()
    (tmp_path / "latest" / "mine").touch()
    (tmp_path / "latest.1").mkdir()  # of a copy before
    said: list[str] = []

    async def main() -> None:
        checkpoints = Checkpoints(
            tmp_path, said.append, keep=1, whole=latest_checkpoint(tmp_path, _never)
        )
        for step in (3, 4):
            await checkpoints.save(_state(step), _write)
        await checkpoints.settle()

    asyncio.run(main())
    assert _names(tmp_path) == ["latest", "latest.1", "latest.2", "step_4"]
    assert (tmp_path / "latest").is_symlink() and (tmp_path / "latest.2" / "mine").exists()
    (line,) = said
    assert f"moved to {tmp_path / 'latest.2'}" in line
    assert latest_checkpoint(tmp_path, _never).name == "step_4"


class FakeShard:
    """A learner shard that has written its files when it has been asked so often."""

    def __init__(self, folder: Path, rank: int, asked: int, error: Exception | None = None) -> None:
        self._folder, self._rank, self._asked, self._error = folder, rank, asked, error

    async def call(self, method: str, *args: Any) -> Writing:
        assert method == "written"
        if self._asked > 0:
            self._asked -= 1
            return Writing(done=False)
        if self._error is None:
            weights = {f"w{self._rank}": torch.ones(3)}
            write_shards(weights.items(), self._folder / "model", 1 << 20, part=self._rank)
        return Writing(done=True, error=self._error)

    def kill(self) -> None:
        raise AssertionError("nothing is lost")


def test_a_checkpoint_is_of_the_files_of_all_shards(tmp_path: Path) -> None:
    async def write(folder: Path) -> Written:
        (folder / "model").mkdir()
        shards = [FakeShard(folder, rank, asked) for rank, asked in enumerate((0, 3))]
        return partial(shards_written, shards, folder)

    path = asyncio.run(save_checkpoint(tmp_path, _state(1), write, keep=1))
    verify(path)
    (path / "model" / "config.json").write_text("{}")
    assert set(tensor_shapes(path / "model")) == {"w0", "w1"}


def test_one_shard_of_many_whose_disk_is_full_fails_the_checkpoint_of_all(tmp_path: Path) -> None:
    """Its folder stays until the last has ended: the others write into it."""
    full = OSError(28, "No space left on device")
    slow: list[FakeShard] = []

    async def write(folder: Path) -> Written:
        (folder / "model").mkdir()
        slow[:] = [FakeShard(folder, 1, 3)]
        return partial(shards_written, [FakeShard(folder, 0, 0, full), *slow], folder)

    said: list[str] = []

    async def main() -> None:
        checkpoints = Checkpoints(tmp_path, said.append, keep=2)
        await checkpoints.save(_state(3), _write)
        await checkpoints.save(_state(4), write)
        assert not checkpoints.behind  # it is not known yet
        await checkpoints.settle()
        assert checkpoints.behind and slow[0]._asked == 0

    asyncio.run(main())
    assert _names(tmp_path) == ["latest", "step_3"]
    assert "step_4: [Errno 28] No space left" in said[0]


def test_a_kill_while_shards_write_leaves_the_one_before(tmp_path: Path) -> None:
    async def main() -> None:
        async def die() -> None:
            (tmp_path / "step_2.partial" / "model" / "weights").write_bytes(b"w")
            os.kill(os.getpid(), signal.SIGKILL)

        async def half(folder: Path) -> Written:
            await _write(folder)
            return die

        checkpoints = Checkpoints(tmp_path, _never, keep=2)
        await checkpoints.save(_state(1), _write)
        await checkpoints.save(_state(2), half)
        await checkpoints.settle()

    driver = multiprocessing.get_context("fork").Process(target=lambda: asyncio.run(main()))
    driver.start()
    driver.join(60)
    assert driver.exitcode == -signal.SIGKILL
    assert _names(tmp_path) == ["latest", "step_1", "step_2.partial"]
    assert latest_checkpoint(tmp_path, _never).name == "step_1"
    _save(tmp_path, 2)
    assert _names(tmp_path) == ["latest", "step_1", "step_2"]


def _never(line: str) -> None:
    raise AssertionError(line)
