"""Buckets in shared memory: what is in them, how large they are, when they go away."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file

from model.send_weights import WeightSender, buckets, merged


def tensors(count: int) -> list[tuple[str, torch.Tensor]]:
    return [(f"t{index}", torch.full((4, 4), float(index))) for index in range(count)]  # 64 bytes


def test_published_tensors_come_back(tmp_path: Path):
    sender = WeightSender(bucket_bytes=130, root=tmp_path)
    named = [*tensors(5), ("half", torch.ones(3, dtype=torch.bfloat16)), ("one", torch.tensor(2))]
    update = sender.publish(iter(named), version=-4)
    found = {n: t for file in update.files for n, t in load_file(file).items()}
    assert [file[-17:] for file in update.files] == [f"0000{i}.safetensors" for i in range(3)]
    assert found.keys() == dict(named).keys()
    assert all(torch.equal(found[n], t) and found[n].dtype == t.dtype for n, t in named)
    assert update.num_bytes == 5 * 64 + 6 + 8
    with safe_open(update.files[0], framework="pt") as handle:
        assert handle.metadata()["version"] == "-4"
    sender.close()


def test_buckets_are_bounded_and_a_large_tensor_is_alone():
    named = [*tensors(3), ("large", torch.zeros(100)), ("last", torch.zeros(1))]
    assert [list(bucket) for bucket in buckets(named, 128)] == [
        ["t0", "t1"],
        ["t2"],
        ["large"],
        ["last"],
    ]


def test_tensors_are_taken_one_bucket_at_a_time():
    taken = []

    def stream():
        for name, tensor in tensors(6):
            taken.append(name)
            yield name, tensor

    next(iter(buckets(stream(), 128)))
    assert taken == ["t0", "t1", "t2"]


def test_a_bucket_does_not_share_memory_with_a_strided_view():
    source = torch.arange(6.0).view(2, 3)
    (bucket,) = buckets([("t", source.T)], 1000)
    assert bucket["t"].is_contiguous() and torch.equal(bucket["t"], source.T)


def test_digest_depends_on_content_names_and_version(tmp_path: Path):
    sender = WeightSender(root=tmp_path)
    base = sender.publish(tensors(2), 1).digest
    assert WeightSender(root=tmp_path).publish(tensors(2), 1).digest == base
    assert sender.publish(tensors(2), 2).digest != base
    assert sender.publish([("t1", tensors(2)[1][1]), ("x", torch.zeros(4, 4))], 3).digest != base
    changed = tensors(2)
    changed[1][1][0, 0] += 1
    assert WeightSender(root=tmp_path).publish(changed, 1).digest != base


def test_release_and_close_leave_nothing(tmp_path: Path):
    sender = WeightSender(root=tmp_path)
    first, second = sender.publish(tensors(1), 1), sender.publish(tensors(1), 2)
    sender.release(1)
    assert not Path(first.files[0]).exists() and Path(second.files[0]).exists()
    with pytest.raises(ValueError, match="version 1 is not published"):
        sender.release(1)
    sender.close()
    sender.close()
    assert list(tmp_path.iterdir()) == []


def test_failed_publication_leaves_nothing(tmp_path: Path):
    sender = WeightSender(bucket_bytes=64, root=tmp_path)
    with pytest.raises(ValueError, match="tensor t0 comes twice"):
        sender.publish([*tensors(2), ("t0", torch.zeros(1))], 1)
    sender.publish(tensors(1), 1)
    with pytest.raises(ValueError, match="version 1 is already published"):
        sender.publish(tensors(1), 1)
    with pytest.raises(ValueError, match="bucket_bytes must be at least 1, got 0"):
        WeightSender(bucket_bytes=0, root=tmp_path)


def test_folder_is_private_and_those_of_the_dead_are_removed(tmp_path: Path):
    process = subprocess.Popen([sys.executable, "-c", ""])
    process.wait()
    dead = tmp_path / f"temper-{process.pid}-{'0' * 16}"
    alive = tmp_path / f"temper-{os.getppid()}-{'0' * 16}"
    foreign = tmp_path / f"temper-{process.pid}-other"
    for folder in (dead, alive, foreign):
        folder.mkdir()
    sender = WeightSender(root=tmp_path)
    update = sender.publish(tensors(1), 1)
    own = Path(update.files[0]).parent.parent
    assert own.stat().st_mode & 0o777 == 0o700
    assert set(tmp_path.iterdir()) == {own, alive, foreign}
    sender.close()


def test_updates_of_several_senders_become_one(tmp_path: Path) -> None:
    both = tensors(4)
    first = WeightSender(root=tmp_path).publish(both[:2], 1)
    second = WeightSender(root=tmp_path).publish(both[2:], 1)
    whole = WeightSender(root=tmp_path).publish(both, 1)
    update = merged([first, second])
    assert update.files == first.files + second.files
    assert update.digest == whole.digest
    assert update.num_bytes == whole.num_bytes
    with pytest.raises(ValueError, match="tensor t0 is published by two senders"):
        merged([first, first])
    other = WeightSender(root=tmp_path).publish(both[2:], 2)
    with pytest.raises(ValueError, match="versions 1 and 2 in one update"):
        merged([first, other])
