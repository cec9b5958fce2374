"""State that leaves its device and comes back: every bit, and nothing stays."""

import json
import socket
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

from model.host_memory import BLOCK, HostMemory

CPU = torch.device("cpu")
JOB = Path(__file__).with_name("host_memory_job.py")


@pytest.mark.parametrize("block", [1 << 28, 1024])
def test_views_stay_views_and_their_memory_is_gone_meanwhile(
    monkeypatch: pytest.MonkeyPatch, block: int
) -> None:
    monkeypatch.setattr("model.host_memory.BLOCK", block)
    flat = torch.randn(1000, generator=torch.Generator().manual_seed(0))
    whole, part = flat.clone(), torch.nn.Parameter(flat[100:300].view(20, 10))
    other, empty = torch.arange(7, dtype=torch.bfloat16), torch.empty(0)
    host = HostMemory()
    for _ in range(2):
        assert host.take([flat, part, part.data.t(), other, empty, flat], CPU) == 4000 + 14
        assert flat.untyped_storage().nbytes() == part.untyped_storage().nbytes() == 0
        assert other.untyped_storage().nbytes() == 0 and flat.shape == (1000,)
        host.give_back()
        assert torch.equal(flat, whole) and torch.equal(other, torch.arange(7).bfloat16())
        assert part.data_ptr() == flat.data_ptr() + 400
    with torch.no_grad():
        part.fill_(3.0)
    assert (flat[100:300] == 3).all() and torch.equal(flat[:100], whole[:100])
    host.give_back()  # nothing is away
    assert (flat[100:300] == 3).all()


def test_what_is_pinned_is_hardly_more_than_what_is_away() -> None:
    """CUDA pins the next power of two: of a block each, and of what is left after them."""
    host, storage = HostMemory(), torch.empty(2 * BLOCK + 5, dtype=torch.uint8)
    assert host.take([storage], CPU) == len(storage)
    ((_, blocks),) = host._away
    assert [len(block) for block in blocks] == [BLOCK, BLOCK, 5]
    before = {block.data_ptr() for block in blocks}
    host.give_back()
    host.take([storage], CPU)
    assert {block.data_ptr() for block in host._away[0][1]} == before, "the same memory is used"
    host.give_back()


def test_what_lies_elsewhere_is_left_alone() -> None:
    there, here = torch.ones(5, device="meta"), torch.ones(5)
    host = HostMemory()
    assert host.take([there, here], CPU) == 20
    assert there.untyped_storage().nbytes() == 20
    host.give_back()
    assert host.take([here], torch.device("cuda")) == 0 and here.sum() == 5


@pytest.fixture(scope="module")
def told(tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, Any]]:
    """What both ranks saw, by the way in which the job was cut."""
    folder = tmp_path_factory.mktemp("away")
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    ranks = [
        subprocess.Popen(
            [sys.executable, "-W", "ignore", str(JOB), str(folder), str(rank), str(port)],
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        for rank in range(2)
    ]
    printed = [rank.communicate(timeout=300)[0] for rank in ranks]
    assert not any(rank.returncode for rank in ranks), printed[0][-3000:] + printed[1][-3000:]
    return [json.loads((folder / f"told-{rank}.json").read_text()) for rank in range(2)]


@pytest.mark.parametrize("cut", ["1", "2-bf16", "2-offload", "3", "3-experts"])
def test_a_shard_that_was_away_is_the_same_and_trains_the_same(
    told: list[dict[str, Any]], cut: str
) -> None:
    for rank in told:
        assert rank[cut]["same_steps"]
        for turn in rank[cut]["turns"]:
            assert turn["same"]
            assert turn["in_kept"] == 0 and turn["moved"] > 0


@pytest.mark.parametrize("cut", ["1", "2-bf16", "2-offload", "3", "3-experts"])
def test_nothing_of_a_shard_stays(told: list[dict[str, Any]], cut: str) -> None:
    """Of all tensors that came into being with it, those that ZeRO makes of them included."""
    for rank in told:
        for turn in rank[cut]["turns"]:
            assert turn["had"] > 10_000
            assert turn["left"] < 0.01 * turn["had"]
