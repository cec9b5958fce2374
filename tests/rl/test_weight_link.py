"""Groups of processes: what torch is told when one is made."""

import os
from types import SimpleNamespace

import pytest
import torch
from torch.distributed import HashStore, PrefixStore

from rl.weight_link import CUDA, Meeting, nccl

WATCHDOG = "TORCH_NCCL_ASYNC_ERROR_HANDLING"


def test_a_lost_member_does_not_end_the_relay(monkeypatch: pytest.MonkeyPatch) -> None:
    """torch reads the variable when a group is made; by default its watchdog ends the process."""
    found: list[str | None] = []

    class Group:
        Options = SimpleNamespace

        def __init__(self, store: object, rank: int, size: int, options: object) -> None:
            found.append(os.environ.get(WATCHDOG))

    monkeypatch.setenv(WATCHDOG, "3")
    monkeypatch.setattr(torch.distributed, "ProcessGroupNCCL", Group, raising=False)
    meeting = Meeting(address="127.0.0.1", port=0, size=2, device=CUDA, piece=1)
    nccl(meeting, 0, PrefixStore("weights", HashStore()), "127.0.0.1")
    assert found == ["0"]
