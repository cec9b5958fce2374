"""Buckets in shared memory: what is in them, how large they are, when they go away."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file

from model.send_segments import Segment, file_bytes, places_of
from model.send_weights import Changes, WeightSender, buckets, layer_of, merged


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


def test_close_leaves_nothing(tmp_path: Path):
    sender = WeightSender(root=tmp_path)
    sender.publish(tensors(1), 1)
    sender.release(1)
    with pytest.raises(ValueError, match="version 1 is not published"):
        sender.release(1)
    sender.publish(tensors(1), 2)
    sender.close()
    sender.close()
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("behind", [0, 1])
def test_two_sets_of_files_take_turns(tmp_path: Path, behind: int):
    """Whether a version is released at once or when the next is there: the last one stays whole."""
    sender = WeightSender(bucket_bytes=64, root=tmp_path)
    files: list[list[str]] = []
    for version in range(6):
        content = torch.full((16,), float(version))
        files.append(sender.publish([("a", content), ("b", content)], version).files)
        if version:
            last = [t for file in files[-2] for t in load_file(file).values()]
            assert all(torch.equal(each, content - 1) for each in last)
        if version >= behind:
            sender.release(version - behind)
    assert files[0] == files[2] == files[4] and files[1] == files[3] == files[5]
    assert not set(files[0]) & set(files[1])
    assert len(list(tmp_path.glob("*/*"))) == 4
    sender.close()


@pytest.mark.parametrize("delta", [False, True])
def test_a_version_that_is_withdrawn_leaves_the_one_before_whole(tmp_path: Path, delta: bool):
    sender = WeightSender(root=tmp_path, delta=delta)
    kept = sender.publish([("a", torch.zeros(9))], 1)
    sender.release(1)
    for value in (1.0, 2.0, 3.0):  # other shards could not
        update = sender.publish([("a", torch.full((9,), value))], 2)
        assert not load_file(kept.files[0])["a"].any()
        assert update.changes is None or update.changes.base == 1
        if value < 3:
            sender.withdraw(2)
    assert load_file(update.files[0])["a"].eq(3).all()
    assert len(list(tmp_path.glob("*/*"))) == 2 + delta
    sender.release(2)
    with pytest.raises(ValueError, match="version 2 is not the last one published"):
        sender.withdraw(2)
    sender.close()


def test_other_shapes_get_other_files(tmp_path: Path):
    """What an engine has mapped is never cut."""
    sender = WeightSender(root=tmp_path)
    first = sender.publish([("a", torch.zeros(5000))], 1)
    sender.release(1)
    for version, size in ((2, 5000), (3, 100)):
        update = sender.publish([("a", torch.ones(size))], version)
        sender.release(version)
    assert update.files != first.files
    assert len(list(tmp_path.glob("*/*"))) == 2
    sender.close()


def test_a_file_that_was_not_written_to_its_end_cannot_be_read(tmp_path: Path):
    bucket = dict(tensors(1))
    segment = Segment(tmp_path / "file", file_bytes(places_of(bucket), 1))
    segment.write(bucket, places_of(bucket), 1)
    assert load_file(segment.file).keys() == bucket.keys()
    with pytest.raises(KeyError):
        segment.write({}, places_of(bucket), 2)
    with pytest.raises(SafetensorError):
        load_file(segment.file)


def test_failed_publication_leaves_nothing(tmp_path: Path):
    sender = WeightSender(bucket_bytes=64, root=tmp_path)
    with pytest.raises(ValueError, match="tensor t0 comes twice"):
        sender.publish([*tensors(2), ("t0", torch.zeros(1))], 1)
    sender.publish(tensors(1), 1)
    with pytest.raises(ValueError, match="version 1 is already published"):
        sender.publish(tensors(1), 1)
    with pytest.raises(ValueError, match="bucket_bytes must be at least 1, got 0"):
        WeightSender(bucket_bytes=0, root=tmp_path)


HOLDER = """
import sys, time
from pathlib import Path
from model.send_folder import PrivateFolder
folder = PrivateFolder(Path(sys.argv[1]))
print(folder.path, flush=True)
time.sleep(float(sys.argv[2]))
"""


def holder(root: Path, seconds: float, *apart: str) -> tuple[subprocess.Popen[str], Path]:
    """Another process with a folder of its own."""
    command = [*apart, sys.executable, "-c", HOLDER, str(root), str(seconds)]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    return process, Path(process.stdout.readline().strip())


def test_folder_is_private_and_those_of_the_dead_are_removed(tmp_path: Path):
    killed, dead = holder(tmp_path, 60)
    running, alive = holder(tmp_path, 60)
    killed.kill()
    killed.wait()
    foreign = tmp_path / f"temper-{killed.pid}-other"
    reused = tmp_path / f"temper-{os.getpid()}-{'0' * 16}"  # of an earlier process of this number
    for folder in (foreign, reused):
        folder.mkdir()
    assert dead.exists()
    sender = WeightSender(root=tmp_path)
    update = sender.publish(tensors(1), 1)
    own = Path(update.files[0]).parent
    assert own.stat().st_mode & 0o777 == 0o700
    assert set(tmp_path.iterdir()) == {own, alive, foreign}
    sender.close()
    sender.close()
    assert set(tmp_path.iterdir()) == {alive, foreign}
    running.kill()
    running.wait()


def test_another_container_leaves_a_living_folder_alone(tmp_path: Path):
    apart = ("unshare", "--pid", "--fork", "--mount-proc")
    if subprocess.run([*apart, "true"], capture_output=True).returncode:
        pytest.skip("needs unshare --pid")
    sender = WeightSender(root=tmp_path)
    own = Path(sender.publish(tensors(1), 1).files[0]).parent
    process, other = holder(tmp_path, 0, *apart)
    process.wait()
    assert other.parent == tmp_path and own.exists()
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


def test_tensors_that_no_file_can_hold_are_named(tmp_path: Path):
    sender = WeightSender(root=tmp_path)
    with pytest.raises(ValueError, match=r"tensor odd is torch\.complex64, which cannot be sent"):
        sender.publish([("odd", torch.zeros(1, dtype=torch.complex64))], 1)
    sender.close()


def test_changes_of_several_senders_become_one(tmp_path: Path):
    both = tensors(4)
    senders = [WeightSender(root=tmp_path, delta=True) for _ in range(2)]
    for version in (1, 2):
        parts = [s.publish(both[2 * i : 2 * i + 2], version) for i, s in enumerate(senders)]
    changes = merged(parts).changes
    assert changes is not None and changes.base == 1 and len(changes.files) == 2
    whole = WeightSender(root=tmp_path, delta=True).publish(both[2:], 2)
    assert merged([parts[0], whole]).changes == Changes(base=None, files=[], num_bytes=0)
    plain = WeightSender(root=tmp_path).publish(both[2:], 2)
    assert merged([parts[0], plain]).changes is None


def test_layers_lie_in_files_of_their_own_and_make_up_the_version(tmp_path: Path):
    def named(*names: str) -> list[tuple[str, torch.Tensor]]:
        return [(name, torch.full((4, 4), float(len(name)))) for name in names]

    first = WeightSender(bucket_bytes=130, root=tmp_path, by_layer=True)
    second = WeightSender(bucket_bytes=130, root=tmp_path, by_layer=True)
    mine = ["embed.weight", "layers.0.a", *(f"layers.1.experts.{i}.w" for i in (0, 10, 11)), "norm"]
    updates = [
        first.publish(named(*(f"model.{name}" for name in mine)), 3),
        second.publish(named("model.layers.1.b", "model.layers.12.c"), 3),
    ]
    whole = merged(updates)
    assert [layer_of(name) for name in ("model.norm", "model.layers.0.a.7.w")] == [0, 1]
    assert list(whole.layers) == [0, 1, 2, 13]
    assert [len(layer.files) for layer in whole.layers.values()] == [2, 1, 3, 1]
    for number, layer in whole.layers.items():
        found = {n: t for file in layer.files for n, t in load_file(file).items()}
        assert found.keys() == layer.digests.keys()
        assert {layer_of(name) for name in found} == {number}
        assert (layer.version, layer.num_bytes) == (3, 64 * len(found))
        assert layer.digests.items() <= whole.digests.items()
    parts = whole.layers.values()
    assert sorted(f for layer in parts for f in layer.files) == sorted(whole.files)
    assert sum(layer.num_bytes for layer in parts) == whole.num_bytes
    assert updates[1].layer(0).files == [] and not WeightSender(root=tmp_path).publish([], 1).layers
    with pytest.raises(ValueError, match=r"tensor model\.norm comes twice"):
        first.publish(named("model.norm", "model.layers.0.a", "model.norm"), 4)
