"""Weights between processes over gloo: exact, and never a hang, whoever dies."""

import asyncio
import contextlib
import multiprocessing
import os
import signal
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import pytest
import torch

from model.send_weights import WeightSender
from rl.weight_link import CPU, IN_FLIGHT, LIMIT_S, PIECE, GroupOver, Link, Meeting, listen
from rl.weight_relay import WeightRelay
from rollout.errors import WeightUpdateError
from rollout.receive_segments import Announced, Mappings, read_update, update_digest
from rollout.receive_update import Arrivals

SLOW_S = 120.0  # a busy machine


def living(delta: bool, talk: Connection) -> None:
    """A relay on another host: does what it is told and says what came of it."""
    torch.set_num_threads(1)
    relay = WeightRelay("127.0.0.1", delta)
    talk.send(os.getpid())
    while (told := talk.recv()) is not None:
        method, arguments = told
        try:
            talk.send(getattr(relay, method)(*arguments))
        except WeightUpdateError as error:
            talk.send(error)
    relay.close()


def nursery(talks: list[tuple[bool, Connection]]) -> None:
    """Imports once for all hosts."""
    for delta, talk in talks:
        if not os.fork():
            living(delta, talk)
            os._exit(0)
    os.wait()


@dataclass
class Host:
    """One such process."""

    talk: Connection
    pid: int = 0

    def begin(self, method: str, *arguments: Any) -> None:
        self.talk.send((method, arguments))

    def answer(self) -> Any:
        assert self.talk.poll(SLOW_S)
        return self.talk.recv()


@pytest.fixture(scope="module")
def hosts() -> Iterator[dict[bool, list[Host]]]:
    """Hosts that take changes and hosts that do not; a test keeps what it uses."""
    context = multiprocessing.get_context("forkserver")
    found: dict[bool, list[Host]] = {True: [], False: []}
    talks = []
    for delta in (True, True, False, False, False, False, False, False):
        here, there = context.Pipe()
        talks.append((delta, there))
        found[delta].append(Host(here))
    process = context.Process(target=nursery, args=(talks,))
    process.start()
    every = [host for some in found.values() for host in some]
    for host in every:
        host.pid = host.answer()
    yield found
    for host in every:
        with contextlib.suppress(ProcessLookupError):
            os.kill(host.pid, signal.SIGKILL)
    process.kill()
    process.join()


@pytest.fixture
def two(hosts: dict[bool, list[Host]]) -> list[Host]:
    return [hosts[True].pop() for _ in range(2)]


@pytest.fixture
def three(hosts: dict[bool, list[Host]]) -> list[Host]:
    return [hosts[False].pop() for _ in range(3)]


@pytest.fixture
def one(hosts: dict[bool, list[Host]]) -> Host:
    return hosts[False].pop()


def meet(relay: WeightRelay, size: int, limit_s: float = SLOW_S, piece: int = PIECE) -> Meeting:
    address, port = relay.listen()
    return Meeting(
        address=address,
        port=port,
        size=size,
        device=CPU,
        piece=piece,
        meet_s=SLOW_S,
        limit_s=limit_s,
    )


def tensors_in(files: list[str], version: int) -> dict[str, torch.Tensor]:
    """What lies in files that nobody has verified here, but for their digest."""
    mappings = Mappings()
    digests = {n: d for file in files for n, d in mappings.read(file).digests.items()}
    digest = update_digest(version, digests)
    return read_update(Announced(version=version, files=files, digest=digest), mappings)


def test_updates_come_whole_and_then_as_changes(two: list[Host], tmp_path: Path) -> None:
    sender = WeightSender(bucket_bytes=3000, root=tmp_path, delta=True)
    weights = {"a": torch.randn(1000).bfloat16(), "b": torch.arange(5.0), "c": torch.ones(700)}
    relay = WeightRelay("127.0.0.1", True)
    meeting = meet(relay, 2, piece=1000)
    before: list[str] = []
    for version in (1, 2, 3):
        weights["a"][version] += 1
        update = sender.publish(weights.items(), version)
        two[0].begin("receive", "learner", meeting, 1)
        assert relay.send(meeting, update) is (version == 1)
        files = two[0].answer()
        assert not set(files) & set(before), "what engines may go back to is left alone"
        for name, tensor in tensors_in(files, version).items():
            assert torch.equal(tensor, weights[name]), name
        before = files
        sender.release(version)
    # One who has nothing joins: all take the whole version.
    meeting = meet(relay, 3)
    for rank, host in enumerate(two, 1):
        host.begin("receive", "learner", meeting, rank)
    assert relay.send(meeting, sender.publish(weights.items(), 4))
    assert all(set(tensors_in(host.answer(), 4)) == set(weights) for host in two)
    sender.close()


class Pages:
    """What files take in memory, those that have no name any more, too."""

    def __init__(self) -> None:
        self._open: dict[str, int] = {}

    def held(self, files: Sequence[str]) -> int:
        """Bytes of these and of all that were told of before."""
        for file in files:
            if file not in self._open:
                self._open[file] = os.open(file, os.O_RDONLY)
        return sum(os.fstat(handle).st_blocks * 512 for handle in self._open.values())

    def close(self) -> int:
        """How many files there were."""
        for handle in self._open.values():
            os.close(handle)
        return len(self._open)


def test_a_host_holds_two_layers_of_what_comes_layer_by_layer(one: Host, tmp_path: Path) -> None:
    sender = WeightSender(bucket_bytes=1 << 18, root=tmp_path, by_layer=True)
    sizes = [1, 9, 9, 9, 9, 2, 7, 3, 12, 1]  # of layers, in files
    relay, arrivals, pages = WeightRelay("127.0.0.1", False), Arrivals(), Pages()
    meeting = meet(relay, 2)
    here = arrivals.verified
    told, found, loading = 0, [], None
    for version in (1, 2):
        weights = [
            (f"model.layers.{layer}.{n}", torch.full((1 << 16,), float(version)))
            for layer, files in enumerate(sizes)
            for n in range(files)
        ]
        update = sender.publish(weights, version)
        for number in update.layers:
            # As this one comes the engines take the one before.
            layer = update.layer(number)
            one.begin("receive", "learner", meeting, 1)
            relay.send(meeting, layer)
            files = one.answer()
            told += len(files)
            found.append(pages.held(files))
            if loading is not None:
                asyncio.run(here(loading))
            loading = replace(layer, files=files)
            mapped = Path("/proc/self/maps").read_text()
            assert f"temper-{one.pid}-" in mapped or len(found) == 1
            assert not [
                m for m in mapped.splitlines() if m.endswith("(deleted)") and "temper-" in m
            ]
    each = -(-Path(files[0]).stat().st_size // 4096) * 4096
    numbers = sizes * 2
    assert found == [each * (a + b) for a, b in zip([0, *numbers], numbers, strict=False)]
    # Of a turn's last file of the same size the pages are used again.
    grown = [max(0, b - a) for a, b in zip([0, 0, *numbers], numbers, strict=False)]
    assert pages.close() == sum(grown) < told
    arrivals.close()
    sender.close()


def test_pieces_go_by_way_of_buffers_as_they_do_between_devices() -> None:
    store = listen("127.0.0.1")
    meeting = Meeting(address="127.0.0.1", port=store.port, size=2, device=CPU, piece=1000)
    data = torch.randint(0, 256, (5700,), dtype=torch.uint8)

    def member(rank: int) -> torch.Tensor:
        link = Link(meeting, rank, "127.0.0.1", None if rank else store)
        link._buffers.extend(torch.empty(1000, dtype=torch.uint8) for _ in range(IN_FLIGHT))
        mine = torch.zeros_like(data) if rank else data.clone()
        for _ in range(3):
            link.broadcast(mine)
        link.gather(rank)  # all have arrived
        link.close()
        assert not link._buffers
        return mine

    with ThreadPoolExecutor(2) as threads:
        assert all(torch.equal(each, data) for each in threads.map(member, (0, 1)))


def test_a_killed_receiver_holds_up_nobody(three: list[Host], tmp_path: Path) -> None:
    sender, relay = WeightSender(root=tmp_path), WeightRelay("127.0.0.1", False)
    weights = {"a": torch.randn(1000)}
    meeting = meet(relay, 4)
    for rank, host in enumerate(three, 1):
        host.begin("receive", "learner", meeting, rank)
    relay.send(meeting, sender.publish(weights.items(), 1))
    held = [host.answer() for host in three]
    for host, rank in ((three[0], 1), (three[2], 3)):
        host.begin("receive", "learner", meeting, rank)
    os.kill(three[1].pid, signal.SIGKILL)
    start = time.monotonic()
    update = sender.publish(weights.items(), 2)
    with pytest.raises(WeightUpdateError, match="member 0"):
        relay.send(meeting, update)
    for host in (three[0], three[2]):
        assert isinstance(host.answer(), GroupOver)
    assert time.monotonic() - start < SLOW_S / 2, "they were told, and did not wait"
    assert tensors_in(held[0], 1).keys() == {"a"}
    meeting = meet(relay, 3)
    for rank, host in enumerate((three[0], three[2]), 1):
        host.begin("receive", "learner", meeting, rank)
    relay.send(meeting, update)
    assert torch.equal(tensors_in(three[0].answer(), 2)["a"], weights["a"])
    assert torch.equal(tensors_in(three[2].answer(), 2)["a"], weights["a"])
    sender.close()


def test_a_receiver_that_is_stopped_costs_one_time_limit(one: Host, tmp_path: Path) -> None:
    sender, relay = WeightSender(root=tmp_path), WeightRelay("127.0.0.1", False)
    meeting = meet(relay, 2, limit_s=5.0)
    one.begin("receive", "learner", meeting, 1)
    relay.send(meeting, sender.publish([("a", torch.ones(3))], 1))
    os.kill(one.pid, signal.SIGSTOP)
    with pytest.raises(WeightUpdateError, match="member 0"):
        relay.send(meeting, sender.publish([("a", torch.ones(3))], 2))
    sender.close()


def test_wrong_bytes_are_refused_where_they_arrive(one: Host, tmp_path: Path) -> None:
    sender, relay = WeightSender(root=tmp_path), WeightRelay("127.0.0.1", False)
    update = sender.publish([("a", torch.ones(3))], 1)
    with Path(update.files[0]).open("r+b") as file:
        file.seek(-1, os.SEEK_END)
        file.write(b"\x07")
    meeting = meet(relay, 2)
    one.begin("receive", "learner", meeting, 1)
    relay.send(meeting, update)
    refusal = one.answer()
    assert isinstance(refusal, WeightUpdateError) and not isinstance(refusal, GroupOver)
    assert "version 1 of the weights did not arrive" in str(refusal)
    sender.close()


def test_nobody_to_meet_is_an_error() -> None:
    relay = WeightRelay("127.0.0.1", False)
    meeting = replace(meet(relay, 2, limit_s=LIMIT_S), meet_s=0.5)
    with pytest.raises(WeightUpdateError, match="not all 2 members met at 127"):
        relay.receive("learner", meeting, 1)
