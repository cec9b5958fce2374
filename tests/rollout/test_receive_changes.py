"""What changed is sent, and gives the new weights bit for bit."""

import logging
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from model.send_changes import BITS, EQUAL, POSITIONS, WHOLE, changes
from model.send_weights import WeightSender, WeightUpdate, merged
from rollout.receive_changes import HeldCopy, apply_changes
from rollout.receive_segments import Announced, Mappings, Refused, read_update

Weights = dict[str, torch.Tensor]


@pytest.fixture
def held(tmp_path: Path) -> Iterator[HeldCopy]:
    held = HeldCopy(tmp_path)
    yield held
    held.close()


def weights(seed: int = 0) -> Weights:
    generator = torch.Generator().manual_seed(seed)
    return {
        "wide": torch.randn(40, generator=generator),
        "matrix": torch.randn(64, 48, generator=generator).bfloat16(),
        "odd": torch.randint(0, 255, (7,), dtype=torch.uint8, generator=generator),
        "scalar": torch.tensor(3.0),
        "empty": torch.zeros(0, 4),
    }


def tensors_of(update: Announced) -> Weights:
    return read_update(update, Mappings())


def same_bits(one: Weights, other: Weights) -> bool:
    return one.keys() == other.keys() and all(
        one[name].dtype == other[name].dtype
        and one[name].numpy(force=True).tobytes() == other[name].numpy(force=True).tobytes()
        if one[name].dtype is not torch.bfloat16
        else torch.equal(one[name].view(torch.int16), other[name].view(torch.int16))
        for name in one
    )


@pytest.mark.parametrize("delta", [False, True])
def test_a_version_that_is_taken_once_more_leaves_the_one_before_whole(
    tmp_path: Path, held: HeldCopy, delta: bool
):
    """Its first load failed: the engine has gone back, and may have to again."""
    sender = WeightSender(root=tmp_path, delta=delta)
    before = held.take(sender.publish(weights(1).items(), 1))
    update = sender.publish(weights(2).items(), 2)
    for _ in range(3):
        assert same_bits(tensors_of(held.take(update)), weights(2))
        assert same_bits(tensors_of(before), weights(1))
    sender.close()


def test_the_copy_of_an_engine_that_was_killed_goes(tmp_path: Path):
    """Nobody else would make room for it: senders start with the run, engines at any time."""
    killed = subprocess.Popen([sys.executable, "-c", ""])
    killed.wait()
    left = tmp_path / f"temper-{killed.pid}-{'0' * 16}"
    left.mkdir()
    other = HeldCopy(tmp_path)
    assert not left.exists()
    HeldCopy(tmp_path).close()
    assert len(list(tmp_path.iterdir())) == 1  # of a process that lives
    other.close()


@pytest.mark.parametrize(
    ("changed", "kind"),
    [(0, EQUAL), (1, POSITIONS), (4000, POSITIONS), (4200, BITS), (60000, BITS), (65000, WHOLE)],
)
def test_each_chunk_is_stored_the_shortest_way(changed: int, kind: int):
    old = torch.randn(1 << 16).bfloat16()
    new = old.clone()
    new[torch.randperm(1 << 16)[:changed]] *= -1
    one, other = (each.view(torch.uint8).numpy() for each in (old, new))
    found = changes(one, other)
    assert found["kinds"].tolist() == [kind]
    sizes = {
        EQUAL: 0,
        POSITIONS: 4 * changed,
        BITS: 8192 + 2 * changed,
        WHOLE: 1 << 17,
    }
    assert sum(found[name].nbytes for name in ("positions", "bits", "values")) == sizes[kind]
    made = np.empty_like(one)
    apply_changes(one, made, found)
    assert np.array_equal(made, other)


@settings(max_examples=60, deadline=None)
@given(st.integers(0, 300_000), st.floats(0, 1), st.integers(0, 2**32 - 1))
def test_changes_give_the_new_bytes(size: int, share: float, seed: int):
    generator = np.random.default_rng(seed)
    old = generator.integers(0, 256, size, np.uint8)
    new = np.where(generator.random(size) < share, generator.integers(0, 256, size, np.uint8), old)
    made = np.empty_like(new)
    apply_changes(old, made, changes(old, new))
    assert np.array_equal(made, new)


def test_a_thousand_updates_are_exact(tmp_path: Path, held: HeldCopy):
    """Two senders, as of two shards; steps of every size, with zeros of both signs and NaNs."""
    generator = torch.Generator().manual_seed(1)
    shards = [weights(0), {f"b.{name}": tensor for name, tensor in weights(1).items()}]
    senders = [WeightSender(root=tmp_path, delta=True) for _ in shards]
    sent = 0
    for version in range(1001):
        matrix = shards[version % 2]["matrix" if version % 2 == 0 else "b.matrix"]
        hit = torch.rand(matrix.shape, generator=generator) < (0.001, 0.1, 1.0)[version % 3]
        matrix += hit * torch.randn(matrix.shape, generator=generator).bfloat16() * 1e-2
        matrix[0, 0] = (0.0, -0.0, torch.nan)[version % 3]
        parts = [
            sender.publish(shard.items(), version)
            for sender, shard in zip(senders, shards, strict=True)
        ]
        update = merged(parts)
        assert update.changes is not None
        sent += update.changes.num_bytes
        assert same_bits(tensors_of(held.take(update)), shards[0] | shards[1])
        for sender in senders:
            sender.release(version)
    assert (held.taken_whole, held.taken_changed) == (1, 1000)
    assert len(list(tmp_path.glob("*/*"))) <= 3 * 2 * len(update.files)
    for sender in senders:
        sender.close()


@pytest.fixture
def sender(tmp_path: Path) -> Iterator[WeightSender]:
    sender = WeightSender(bucket_bytes=3000, root=tmp_path, delta=True)
    yield sender
    sender.close()


def step(sender: WeightSender, state: Weights, version: int) -> WeightUpdate:
    state["matrix"][0, version % 48] += 1
    return sender.publish(state.items(), version)


def test_a_missed_version_means_a_whole_one(held, sender, caplog: pytest.LogCaptureFixture):
    state = weights()
    held.take(step(sender, state, 1))
    step(sender, state, 2)
    with caplog.at_level(logging.WARNING):
        taken = held.take(step(sender, state, 3))
    assert same_bits(tensors_of(taken), state)
    assert held.taken_whole == 2
    assert "version 3 is taken whole" in caplog.text
    assert "version 1 is held, the changes are of version 2" in caplog.text
    assert same_bits(tensors_of(held.take(step(sender, state, 4))), state)
    assert held.taken_changed == 1


def flip(file: str, at: int) -> None:
    with open(file, "r+b") as handle:
        handle.seek(at, 2 if at < 0 else 0)
        byte = handle.read(1)
        handle.seek(-1, 1)
        handle.write(bytes([byte[0] ^ 1]))


@pytest.mark.parametrize("what", ["held", "changes"])
def test_changes_that_do_not_fit_are_not_used(held, sender, caplog, what: str):
    """A bit of the copy has flipped, or one of what was sent."""
    state = weights()
    mine = held.take(step(sender, state, 1))
    update = step(sender, state, 2)
    assert update.changes is not None
    flip(mine.files[0] if what == "held" else update.changes.files[0], -100)
    with caplog.at_level(logging.WARNING):
        taken = held.take(update)
    assert same_bits(tensors_of(taken), state)
    assert "does not match its digest" in caplog.text
    assert held.taken_whole == 2


def test_a_whole_update_that_is_corrupt_too_is_refused_and_nothing_lost(held, sender):
    state = weights()
    held.take(step(sender, state, 1))
    before = {name: tensor.clone() for name, tensor in state.items()}
    update = step(sender, state, 2)
    assert update.changes is not None
    flip(update.changes.files[0], -100)
    flip(update.files[0], -100)
    with pytest.raises(Refused, match="does not match its digest"):
        held.take(update)
    sender.release(2)
    state = before
    again = step(sender, state, 2)
    assert same_bits(tensors_of(held.take(again)), state)


def test_other_tensors_come_whole(held, sender):
    state = weights()
    held.take(step(sender, state, 1))
    state["more"] = torch.ones(3)
    update = step(sender, state, 2)
    assert update.changes is not None and update.changes.base is None
    assert same_bits(tensors_of(held.take(update)), state)


def test_nothing_is_left(tmp_path: Path, sender):
    held = HeldCopy(tmp_path)
    held.take(step(sender, weights(), 1))
    held.close()
    held.close()
    sender.close()
    assert list(tmp_path.iterdir()) == []
