"""Weights from one process to another over gloo: exact, and never a hang."""

import multiprocessing
import os
import signal
import socket
import time
from collections.abc import Iterator
from multiprocessing.connection import Connection
from pathlib import Path

import pytest
import torch

from model.send_broadcast import Broadcaster, BroadcastError, Meeting
from model.send_weights import WeightSender
from rollout.errors import WeightUpdateError
from rollout.receive_broadcast import BroadcastReceiver
from rollout.receive_broadcast import Meeting as ReceiverMeeting
from rollout.receive_changes import HeldCopy
from rollout.receive_segments import Mappings, read_update

MEET_S = 120.0
LIMIT_S = 20.0
SHORT_S = 1.0


def free_port() -> int:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return free.getsockname()[1]


def meeting(port: int, meet_s: float) -> ReceiverMeeting:
    return ReceiverMeeting(
        address="127.0.0.1", port=port, rank=1, size=2, meet_s=meet_s, limit_s=LIMIT_S
    )


def receiving(port: int, root: Path, talk: Connection) -> None:
    """Another host: it takes updates as long as it is asked to, and tells what it holds."""
    torch.set_num_threads(1)
    receiver = BroadcastReceiver(meeting(port, MEET_S), root)
    held = HeldCopy(root)
    talk.send("met")
    while (version := talk.recv()) != "end":
        arrived = receiver.receive(version)
        taken = held.take(arrived)
        tensors = read_update(taken, Mappings())
        values = {name: tensor.float().sum().item() for name, tensor in tensors.items()}
        talk.send((arrived.version, values, held.taken_changed))
    receiver.close()
    held.close()


@pytest.fixture
def port() -> int:
    return free_port()


@pytest.fixture
def other(port: int, tmp_path: Path) -> Iterator[tuple[multiprocessing.Process, Connection]]:
    context = multiprocessing.get_context("forkserver")
    here, there = context.Pipe()
    process = context.Process(target=receiving, args=(port, tmp_path, there))
    process.start()
    yield process, here  # type: ignore[misc]
    process.kill()
    process.join()


def broadcaster(port: int, limit_s: float, meet_s: float = MEET_S) -> Broadcaster:
    return Broadcaster(
        Meeting(address="127.0.0.1", port=port, rank=0, size=2, meet_s=meet_s, limit_s=limit_s)
    )


def test_updates_arrive_whole_or_as_changes_and_a_dead_receiver_is_an_error(
    other, port: int, tmp_path: Path
):
    process, talk = other
    sender = WeightSender(bucket_bytes=3000, root=tmp_path, delta=True)
    weights = {"a": torch.randn(1000).bfloat16(), "b": torch.arange(5.0), "c": torch.ones(700)}
    group = broadcaster(port, LIMIT_S)
    assert talk.recv() == "met"
    for version, held, whole in ((1, None, True), (2, 1, False), (3, 2, False), (4, 2, True)):
        weights["a"][version] += 1
        update = sender.publish(weights.items(), version)
        talk.send(held)
        assert group.send(update) is whole
        expected = {name: tensor.float().sum().item() for name, tensor in weights.items()}
        assert talk.recv()[:2] == (version, expected)
        sender.release(version)
    os.kill(process.pid, signal.SIGKILL)
    start = time.monotonic()
    with pytest.raises(BroadcastError, match="version 5 was not sent"):
        group.send(sender.publish(weights.items(), 5))
    assert time.monotonic() - start < LIMIT_S + 10
    sender.close()


def test_a_receiver_that_does_nothing_is_an_error(other, port: int, tmp_path: Path):
    process, talk = other
    group = broadcaster(port, SHORT_S)
    assert talk.recv() == "met"
    os.kill(process.pid, signal.SIGSTOP)
    sender = WeightSender(root=tmp_path)
    with pytest.raises(BroadcastError, match="version 1 was not sent"):
        group.send(sender.publish([("a", torch.ones(3))], 1))
    sender.close()


def test_nobody_to_meet_is_an_error(port: int, tmp_path: Path):
    with pytest.raises(BroadcastError, match="not all of 1 receivers came"):
        broadcaster(port, SHORT_S, SHORT_S)
    with pytest.raises(WeightUpdateError, match="no meeting with the sender at 127"):
        BroadcastReceiver(meeting(port, SHORT_S), tmp_path)
