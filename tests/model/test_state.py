"""State that is cut in another way when it is read than when it was written."""

from pathlib import Path

import pytest
import torch

from model.formats import CheckpointError
from model.state import Run, SavedState, state_file


def _write(folder: Path) -> None:
    values = torch.arange(10.0)
    for rank, (begin, end) in enumerate(((0, 4), (4, 10))):
        run = Run(kind="momentum", parameter="a.b", begin=begin, values=values[begin:end])
        torch.manual_seed(rank)
        state_file(folder, [run], rank=rank, size=2, counters={"adam_steps": 7}).write()


def test_any_part_is_found(tmp_path: Path) -> None:
    _write(tmp_path)
    saved = SavedState(tmp_path)
    assert saved.counters == {"adam_steps": 7}
    assert saved.has("momentum", "a.b") and not saved.has("exp_avg", "a.b")
    target = torch.zeros(5)
    saved.read_into("momentum", "a.b", 2, target)
    assert target.tolist() == [2, 3, 4, 5, 6]


def test_random_state_is_each_shards_own(tmp_path: Path) -> None:
    _write(tmp_path)
    saved = SavedState(tmp_path)
    torch.manual_seed(1)
    assert torch.equal(saved.random(1), torch.get_rng_state())
    assert torch.equal(saved.random(2), saved.random(0))
    assert not torch.equal(saved.random(0), saved.random(1))


def test_what_is_not_there_is_named(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="no optimiser state"):
        SavedState(tmp_path)
    _write(tmp_path)
    saved = SavedState(tmp_path)
    with pytest.raises(CheckpointError, match=r"momentum of a\.b is incomplete.*\[8, 12\).*2 were"):
        saved.read_into("momentum", "a.b", 8, torch.zeros(4))
    (tmp_path / "state-00001-of-00002.safetensors").write_bytes(b"12345678")
    with pytest.raises(CheckpointError, match=r"state-00001-of-00002.*truncated or corrupt"):
        SavedState(tmp_path)
    (tmp_path / "state-00001-of-00002.safetensors").unlink()
    with pytest.raises(CheckpointError, match="1 files of optimiser state, 2 were written"):
        SavedState(tmp_path)
