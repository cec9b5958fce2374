"""Copies that stay as they were, in memory that is taken once; and a thread that writes them."""

import threading

import pytest
import torch

from model.snapshot import Snapshot, Writing


def test_copies_keep_what_was_there_when_they_were_made() -> None:
    snapshot = Snapshot()
    tensors = [
        torch.arange(12.0).view(3, 4).T,
        torch.arange(5, dtype=torch.int32),
        torch.ones(3, dtype=torch.bfloat16),
        torch.empty(0, 7),
        torch.tensor(3.5, dtype=torch.float64),
    ]
    snapshot.begin()
    copies = [snapshot.copy(tensor) for tensor in tensors]
    before = [tensor.clone() for tensor in tensors]
    for tensor in tensors:
        tensor.zero_()
    for copy, tensor in zip(copies, before, strict=True):
        assert copy.is_contiguous() and copy.dtype == tensor.dtype
        assert torch.equal(copy, tensor)


def test_memory_is_taken_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("model.snapshot.BLOCK", 1 << 10)
    snapshot = Snapshot()
    tensors = [torch.randn(n) for n in (100, 200, 700, 30, 0, 90)]  # one is larger than a block
    places = []
    for _ in range(3):
        snapshot.begin()
        copies = [snapshot.copy(tensor) for tensor in tensors]
        for copy, tensor in zip(copies, tensors, strict=True):
            assert torch.equal(copy, tensor)
        places.append([copy.data_ptr() for copy in copies if len(copy)])
    assert places[0] == places[1] == places[2]
    assert sorted(len(block) for block in snapshot._blocks) == [1 << 10, 1 << 10, 1 << 12]


def test_the_next_copies_wait_until_the_last_are_written() -> None:
    snapshot, gate, began = Snapshot(), threading.Event(), threading.Event()
    assert snapshot.writing == Writing(done=True)
    snapshot.begin()

    def write() -> None:
        assert gate.wait(20)

    snapshot.write(write)
    next_one = threading.Thread(target=lambda: (snapshot.begin(), began.set()))
    next_one.start()
    assert snapshot.writing == Writing(done=False)
    assert not began.wait(0.05)
    gate.set()
    next_one.join(20)
    assert began.is_set() and snapshot.writing == Writing(done=True)
    snapshot.close()


def test_why_files_are_not_there_is_told() -> None:
    snapshot, full = Snapshot(), OSError(28, "No space left on device")

    def write() -> None:
        raise full

    snapshot.write(write)
    snapshot.begin()  # the next one is not kept from it
    assert snapshot.writing == Writing(done=True, error=full)
