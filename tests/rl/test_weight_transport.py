"""Which way published weights take to which host, and what happens when hosts or relays go."""

import asyncio
from collections.abc import AsyncGenerator, Awaitable, Callable, Coroutine, Sequence
from contextlib import aclosing
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any

import pytest

from model.send_weights import WeightUpdate, merged
from rl.config import Transport
from rl.errors import CrashLoop, PartLost
from rl.part import Part
from rl.rollout_seats import Offer, RemoteRollouts
from rl.supervision import Restarts
from rl.weight_layers import Layer, by_layer
from rl.weight_link import (
    CPU,
    CUDA,
    DEVICE_BYTES,
    IN_FLIGHT,
    PIECE,
    GroupOver,
    Meeting,
    piece_bytes,
)
from rl.weight_transport import SPARE_CALLS, WeightTransport
from rollout.errors import EngineError, WeightUpdateError

Simulate = Callable[[Coroutine[Any, Any, Any]], Any]


class Engine:
    """A rollout worker: all that matters is where it lives, and the ranks of its engine."""

    def __init__(self, *hosts: str) -> None:
        self.host, self.hosts = hosts[0], list(hosts)

    async def call(self, method: str, *args: Any) -> Any:
        raise AssertionError(method)

    def kill(self) -> None:
        pass


@dataclass(eq=False)
class Relay:
    """A relay that meets others in the network's dict instead of through sockets."""

    network: "Network"
    host: str
    held: list[int] = field(default_factory=list)
    dies_at: int | None = None  # the version
    hangs_at: int | None = None
    dies_of: str | None = None  # what this host sends, and slowly
    full: bool = False  # shared memory
    killed: bool = False
    port: int = 0  # where it listens

    def __post_init__(self) -> None:
        self.threads = asyncio.Semaphore(self.network.transport.most_calls)

    async def call(self, method: str, *args: Any) -> Any:
        async with self.threads:
            return await self._answer(method, *args)

    async def _answer(self, method: str, *args: Any) -> Any:
        await asyncio.sleep(0.001)
        if self.host in self.network.gone or self.killed:
            raise PartLost(self.host, "killed")
        match method:
            case "device":
                return self.network.device
            case "listen":
                self.network.ports += 1
                self.port = self.network.ports
                return self.host, self.port
            case "send":
                if args[0].port != self.port:
                    raise GroupOver("nobody listens there any more")
                return await self._meet(args[0], args[1])
            case "receive":
                if args[0] == self.dies_of:
                    await asyncio.sleep(1.0)
                    self.kill()
                version = await self._meet(args[1], None)
                self.held.append(version)
                return [f"{self.host}/from {args[0]}/{version}"]

    def kill(self) -> None:
        self.killed = True

    async def _meet(self, meeting: Meeting, update: WeightUpdate | None) -> int:
        """The version, once all members are there; an error for all if one of them dies."""
        room = self.network.rooms.setdefault(meeting.port, Room())
        room.broken |= self.full or meeting.device == CUDA
        self.network.pieces.append(meeting.piece)
        if self.full:
            raise WeightUpdateError("no space left")
        room.members += 1
        if update is not None:
            room.version = update.version
        if room.members == meeting.size:
            room.members, room.full = 0, room.full + 1
            self.network.groups.append((meeting.port, meeting.size))
        turn = room.full + bool(room.members)
        while room.full < turn:
            if room.broken or await self._trouble(room):
                room.broken = True
                raise GroupOver("a member is gone")
            await asyncio.sleep(0.001)
        if await self._trouble(room):
            room.broken = True
        await asyncio.sleep(self.network.transfer_s)
        if self.killed:
            raise PartLost(self.host, "killed")
        if room.broken:
            raise GroupOver("a member is gone")
        return room.version

    async def _trouble(self, room: "Room") -> bool:
        if self.dies_at is not None and room.version == self.dies_at:
            self.killed = True
        if self.hangs_at is not None and room.version == self.hangs_at:
            await asyncio.sleep(1e6)
        return self.killed


@dataclass
class Room:
    """Where one group meets."""

    members: int = 0
    full: int = 0
    version: int = 0
    broken: bool = False


class Network:
    """Hosts, and what was sent between them."""

    def __init__(self, *sources: str, kind: Transport = Transport.auto, most: int = 3) -> None:
        self.rooms: dict[int, Room] = {}
        self.groups: list[tuple[int, int]] = []  # port and size of every transfer
        self.pieces: list[int] = []  # of every member's
        self.ports = 0
        self.device, self.transfer_s = CPU, 0.002
        self.gone: set[str] = set()
        self.relays: list[Relay] = []
        self.said: list[str] = []
        self.restarts = Restarts(self.said.append, most=most)
        self.sources = sources
        self.prepare: Callable[[Relay], None] = lambda relay: None
        self.transport = WeightTransport(
            kind,
            sources,
            start=self._start,
            hosts_of=self._hosts_of,
            restarts=self.restarts,
        )

    async def _start(self, host: str) -> Part:
        await asyncio.sleep(0.01)
        if host in self.gone:
            raise PartLost(host, "the cluster does not have it any more")
        relay = Relay(self, host)
        self.prepare(relay)
        self.relays.append(relay)
        return relay

    async def _hosts_of(self, part: Any) -> list[str]:
        return part.hosts

    async def begin(self, version: int, engines: list[Engine]) -> Callable[[Part], Awaitable[Any]]:
        updates = [_update(shard, version) for shard in range(len(self.sources))]
        delivery = await self.transport.begin(updates, engines)
        return delivery.at


def _update(shard: int, version: int) -> WeightUpdate:
    return WeightUpdate(
        version=version,
        files=[f"shard {shard}/{version}"],
        digests={f"tensor {shard}": "d"},
        num_bytes=10,
    )


async def _files(at: Callable[[Part], Awaitable[WeightUpdate]], engines: list[Engine]) -> Any:
    """Where the update lies for each engine, or what was raised."""
    found = await asyncio.gather(*(at(engine) for engine in engines), return_exceptions=True)
    return [each if isinstance(each, BaseException) else each.files for each in found]


def test_engines_map_what_lies_on_their_host_and_get_the_rest_from_relays(
    simulate: Simulate,
) -> None:
    async def main() -> None:
        network = Network("a", "b")
        engines = [Engine(host) for host in ("a", "b", "c", "c")]
        for version in (1, 2):
            at = await network.begin(version, engines)
            there = [f"c/from a/{version}", f"c/from b/{version}"]
            assert await _files(at, engines) == [
                [f"shard 0/{version}", f"a/from b/{version}"],
                [f"b/from a/{version}", f"shard 1/{version}"],
                there,
                there,
            ]
        # Two groups, of one sending host and the two others each; they meet once.
        assert sorted(network.groups) == [(1, 3), (1, 3), (2, 3), (2, 3)]
        update = await at(engines[2])
        assert update.digests == {"tensor 0": "d", "tensor 1": "d"}

    simulate(main())


def test_all_groups_of_a_relay_share_the_room_on_its_device(simulate: Simulate) -> None:
    async def main() -> None:
        network = Network(*[f"host {n}" for n in range(32)], "host 0")
        await _files(await network.begin(1, [Engine("host 0")]), [Engine("host 0")])
        assert network.pieces == [DEVICE_BYTES // (32 * IN_FLIGHT)] * 31 * 2

    simulate(main())
    assert piece_bytes(1) == piece_bytes(2) == PIECE
    for groups in range(1, 1000):
        assert groups * IN_FLIGHT * piece_bytes(groups) <= DEVICE_BYTES


def test_on_one_host_nothing_is_sent_unless_it_is_asked_for(simulate: Simulate) -> None:
    async def main() -> None:
        for kind, files in (
            (Transport.auto, ["shard 0/1", "shard 1/1"]),
            (Transport.shared_memory, ["shard 0/1", "shard 1/1"]),
            (Transport.broadcast, ["a/from a/1"]),
        ):
            network = Network("a", "a", kind=kind)
            assert await _files(await network.begin(1, [Engine("a")]), [Engine("a")]) == [files]
            assert len(network.groups) == (kind is Transport.broadcast)

    simulate(main())


def test_a_host_that_comes_later_gets_the_version_alone(simulate: Simulate) -> None:
    async def main() -> None:
        network, engines = Network("a"), [Engine("b")]
        at = await network.begin(5, engines)
        await _files(at, engines)
        assert await _files(at, [Engine("c"), Engine("c")]) == [["c/from a/5"]] * 2
        assert [size for _, size in network.groups] == [2, 2]
        at = await network.begin(6, [*engines, Engine("c")])
        await _files(at, engines)
        assert [size for _, size in network.groups] == [2, 2, 3]

    simulate(main())


def test_a_killed_relay_is_replaced_after_the_others_have_the_version(
    simulate: Simulate,
) -> None:
    async def main() -> None:
        network = Network("a")
        engines = [Engine(host) for host in "bcd"]
        await _files(await network.begin(1, engines), engines)
        victim = next(relay for relay in network.relays if relay.host == "c")
        victim.dies_at = 2
        at = await network.begin(2, engines)
        done: list[str] = []

        async def one(engine: Engine) -> Any:
            files = (await at(engine)).files
            done.append(engine.host)
            return files

        found = await asyncio.gather(*map(one, engines))
        assert found == [["b/from a/2"], ["c/from a/2"], ["d/from a/2"]]
        assert done[-1] == "c"
        assert [size for _, size in network.groups] == [4, 4, 3, 2]
        assert network.restarts.counts == {"weights relay to host c": 1}
        assert "weights relay to host c is back" in network.said[-1]
        await _files(await network.begin(3, engines), engines)
        assert network.groups[-1][1] == 4

    simulate(main())


def test_a_sending_relay_that_hangs_is_replaced(simulate: Simulate) -> None:
    async def main() -> None:
        network, engines = Network("a"), [Engine("b"), Engine("c")]
        await _files(await network.begin(1, engines), engines)
        (sender,) = (relay for relay in network.relays if relay.host == "a")
        sender.hangs_at = 2
        at = await network.begin(2, engines)
        assert await _files(at, engines) == [["b/from a/2"], ["c/from a/2"]]
        assert sender.killed
        assert network.restarts.counts["weights relay from host a"] == 1

    simulate(main())


def test_engines_on_a_host_that_is_gone_are_told_and_the_others_go_on(simulate: Simulate) -> None:
    async def main() -> None:
        network, engines = Network("a"), [Engine("b"), Engine("c"), Engine("a")]
        await _files(await network.begin(1, engines), engines)
        network.gone.add("c")
        at = await network.begin(2, engines)
        first, second, third = await _files(at, engines)
        assert (first, third) == (["b/from a/2"], ["shard 0/2"])
        assert isinstance(second, PartLost) and "does not have it any more" in str(second)
        # The next engine that asks there makes another attempt.
        network.gone.clear()
        assert await _files(at, [engines[1]]) == [["c/from a/2"]]

    simulate(main())


def test_what_went_with_a_lost_relay_is_sent_again(simulate: Simulate) -> None:
    async def main() -> None:
        network, engine = Network("a", "b"), Engine("c")

        def first_dies(relay: Relay) -> None:
            if relay.host == "c" and all(other.host != "c" for other in network.relays):
                relay.dies_of = "b"  # that of "a" has come by then

        network.prepare = first_dies
        at = await network.begin(1, [engine])
        assert await _files(at, [engine]) == [["c/from a/1", "c/from b/1"]]
        lost, there = (relay for relay in network.relays if relay.host == "c")
        assert (lost.held, there.held) == ([1], [1, 1])
        assert network.restarts.counts == {"weights relay to host c": 1}

    simulate(main())


def test_a_host_without_room_does_not_keep_the_version_from_others(simulate: Simulate) -> None:
    async def main() -> None:
        network = Network("a")
        engines = [Engine(host) for host in "bcd"]

        def full(relay: Relay) -> None:
            relay.full = relay.host == "c"

        network.prepare = full
        first, second, third = await _files(await network.begin(1, engines), engines)
        assert (first, third) == (["b/from a/1"], ["d/from a/1"])
        assert isinstance(second, PartLost) and "no space left" in second.why

    simulate(main())


def test_two_groups_of_one_sender_do_not_disturb_each_other(simulate: Simulate) -> None:
    async def main() -> None:
        network = Network("a")
        at = await network.begin(1, [Engine("b")])
        engines = [Engine("b"), Engine("c")]
        assert await _files(at, engines) == [["b/from a/1"], ["c/from a/1"]]
        assert (network.ports, len(network.groups)) == (2, 2), "no attempt was in vain"

    simulate(main())


def test_a_relay_answers_while_every_sending_host_sends_to_it(simulate: Simulate) -> None:
    async def main() -> None:
        network = Network(*(f"s{number}" for number in range(70)))
        network.transfer_s = 80.0  # longer than a relay may take to say what it is
        engines = [Engine("b"), Engine("c")]
        found = await _files(await network.begin(1, engines), engines)
        assert [len(files) for files in found] == [70, 70]
        assert not network.restarts.counts
        assert network.transport.most_calls == 70 + SPARE_CALLS

    simulate(main())


def test_hosts_that_nccl_does_not_connect_meet_over_gloo(simulate: Simulate) -> None:
    async def main() -> None:
        network, engine = Network("a"), Engine("b")
        network.device = CUDA  # whose groups break
        for version in (1, 2):
            at = await network.begin(version, [engine])
            assert await _files(at, [engine]) == [[f"b/from a/{version}"]]
        assert network.ports == 2

    simulate(main())


def test_nothing_is_carried_after_the_end(simulate: Simulate) -> None:
    async def main() -> None:
        network, engine = Network("a"), Engine("b")

        def hangs(relay: Relay) -> None:
            relay.hangs_at = 1

        network.prepare = hangs
        at = await network.begin(1, [engine])
        asking = asyncio.create_task(_files(at, [engine]))
        await asyncio.sleep(1.0)
        asking.cancel()
        await network.transport.close()
        await asyncio.sleep(1e5)
        assert len(network.relays) == 2 and not network.restarts.counts

    simulate(main())


def test_a_relay_that_dies_at_every_attempt_is_a_crash_loop(simulate: Simulate) -> None:
    async def main() -> None:
        network = Network("a", most=1)

        def doomed(relay: Relay) -> None:
            relay.dies_at = 1 if relay.host == "b" else None

        network.prepare = doomed
        (found,) = await _files(await network.begin(1, [Engine("b")]), [Engine("b")])
        assert isinstance(found, CrashLoop)

    simulate(main())


class Worker(Engine):
    """A rollout worker that remembers what it was told to take."""

    def __init__(self, host: str) -> None:
        super().__init__(host)
        self.took: list[list[str]] = []

    async def call(self, method: str, *args: Any) -> Any:
        await asyncio.sleep(0)
        if method == "receive":
            self.took.append(args[0].files)
            return [[0.0]]

    def kill(self) -> None:
        self.took.append(["killed"])


def test_a_worker_whose_host_cannot_be_reached_is_started_elsewhere(simulate: Simulate) -> None:
    async def main() -> None:
        network, near, far, again = Network("a"), Worker("a"), Worker("b"), Worker("a")

        async def start(index: int, number: int) -> Part:
            return again

        rollouts = RemoteRollouts([near, far], start, network.restarts, timeout_s=1e9)

        async def serve(version: int) -> int:
            async def offer() -> Offer:
                return Offer(
                    update=_update(0, version),
                    at=await network.begin(version, [near, far]),
                    probe=[[1, 2]],
                    logprobs=[[0.0]],
                    tolerance=0.1,
                )

            return len(await rollouts.serve(offer))

        assert await serve(1) == 2
        network.gone.add("b")
        assert await serve(2) == 1
        while again not in rollouts.workers:
            await asyncio.sleep(0.1)
        assert near.took == [["shard 0/1"], ["shard 0/2"]]
        assert far.took == [["b/from a/1"], ["killed"]]
        assert again.took == [["shard 0/2"]]
        assert network.restarts.counts["rollout worker 1"] == 1
        await rollouts.close()

    simulate(main())


def test_a_version_that_is_refused_everywhere_does_not_come(simulate: Simulate) -> None:
    async def main() -> None:
        network, engine = Network("a"), Engine("b")

        async def refuse(meeting: Meeting, update: object) -> int:
            raise WeightUpdateError("wrong bytes")

        def refusing(relay: Relay) -> None:
            relay._meet = refuse  # type: ignore[method-assign]

        network.prepare = refusing
        at = await network.begin(1, [engine])
        with pytest.raises(PartLost, match="the way of weights to host b was lost: wrong bytes"):
            await at(engine)

    simulate(main())


def test_ranks_on_several_hosts_hear_of_the_files_on_theirs(simulate: Simulate) -> None:
    async def main() -> None:
        network, engine = Network("a", "b"), Engine("a", "a", "b", "c")
        update = await (await network.begin(1, [engine]))(engine)
        near, other, far = (
            ["shard 0/1", "a/from b/1"],
            ["b/from a/1", "shard 1/1"],
            ["c/from a/1", "c/from b/1"],
        )
        assert update.by_rank == [near, near, other, far]
        assert update.files == near
        assert sorted(network.groups) == [(1, 3), (2, 3)]
        alone = Engine("b", "b")
        update = await (await network.begin(2, [alone]))(alone)
        assert (update.files, update.by_rank) == (["b/from a/2", "shard 1/2"], [])
        network.gone.add("c")
        with pytest.raises(PartLost, match="does not have it any more"):
            await (await network.begin(3, [engine]))(engine)

    simulate(main())


class LayerWorker(Engine):
    """A rollout worker that takes a second for each layer, and fails at one."""

    def __init__(self, *hosts: str, fails_at: int | None = None) -> None:
        super().__init__(*hosts)
        self.took: list[tuple[list[str], bool]] = []
        self.fails_at, self.killed = fails_at, False

    async def call(self, method: str, layer: WeightUpdate, first: bool, probe: Any) -> Any:
        assert method == "load_layer"
        self.took.append((layer.files, first))
        await asyncio.sleep(1.0)
        if len(self.took) == self.fails_at:
            raise EngineError("half-way")
        return probe and [[0.0]]

    def kill(self) -> None:
        self.killed = True


def test_layers_are_loaded_in_step_while_the_next_one_comes(simulate: Simulate) -> None:
    async def main() -> None:
        network, count = Network("a", "b"), 5
        near, far, bad = LayerWorker("a"), LayerWorker("b", "c"), LayerWorker("c", fails_at=3)
        again, clock = LayerWorker("c"), asyncio.get_running_loop().time
        network.transfer_s = 0.9
        seen: list[tuple[int, int]] = []

        async def start(index: int, number: int) -> Part:
            return again

        def part(shard: int, layer: int) -> WeightUpdate:
            return replace(_update(shard, 7), files=[f"shard {shard}/layer {layer}"])

        # The second shard has nothing of the first layer.
        layers = [{n: part(shard, n) for n in range(shard, count)} for shard in (0, 1)]
        updates = [replace(_update(shard, 7), layers=layers[shard]) for shard in (0, 1)]

        async def watched(parts: Sequence[Part]) -> AsyncGenerator[Layer, None]:
            async with aclosing(by_layer(network.transport, updates, parts)) as coming:
                async for layer in coming:
                    seen.append((len(near.took), len(network.groups)))
                    yield layer

        rollouts = RemoteRollouts([near, far, bad], start, network.restarts, timeout_s=1e9)

        async def offer() -> Offer:
            return Offer(
                update=merged(updates),
                layers=watched,
                probe=[[1, 2]],
                logprobs=[[0.0]],
                tolerance=0.1,
            )

        began = clock()
        assert len(await rollouts.serve(offer)) == 2
        assert clock() - began < 1.0 + count + 0.5  # of 1.0 and 0.9 the larger one counts
        # No layer is under way but the one that comes next.
        assert seen == [(n, 2 * (n + 1)) for n in range(count)]
        assert [first for _, first in near.took] == [True] + [False] * (count - 1)
        assert near.took[0][0] == ["shard 0/layer 0", "a/from b/7"]
        assert len(far.took) == count and len(bad.took) == 3
        while again not in rollouts.workers:
            await asyncio.sleep(0.1)
        assert bad.killed and len(again.took) == count and again.took[0][1]
        assert network.restarts.counts == {"rollout worker 2": 1}
        await rollouts.close()

    simulate(main())


def test_who_cannot_be_reached_with_a_layer_is_lost_and_the_others_go_on(
    simulate: Simulate,
) -> None:
    async def main() -> None:
        network, near, far = Network("a"), LayerWorker("a"), LayerWorker("b")
        layers = {n: replace(_update(0, 7), files=[f"layer {n}"]) for n in range(3)}
        update = replace(_update(0, 7), layers=layers)
        network.gone.add("b")
        parts, placed = [near, far], []
        async for layer in by_layer(network.transport, [update], parts):
            placed.append(layer.placed)
            if layer.first:
                parts.remove(far)
        assert [each[near].files for each in placed] == [["layer 0"], ["layer 1"], ["layer 2"]]
        # The second was on its way already when it was known that the first had not come.
        assert [type(each.get(far)) for each in placed] == [PartLost, PartLost, type(None)]

    simulate(main())


def test_when_all_are_lost_no_layer_is_sent_any_more(simulate: Simulate) -> None:
    async def main() -> None:
        network, bad, again = Network("a"), LayerWorker("b", fails_at=2), LayerWorker("b")
        layers = {n: replace(_update(0, 7), files=[f"layer {n}"]) for n in range(9)}
        update = replace(_update(0, 7), layers=layers)

        async def start(index: int, number: int) -> Part:
            await asyncio.sleep(100)
            return again

        rollouts = RemoteRollouts([bad], start, network.restarts, timeout_s=1e9)

        async def offer() -> Offer:
            return Offer(
                update=update,
                layers=partial(by_layer, network.transport, [update]),
                probe=[[1, 2]],
                logprobs=[[0.0]],
                tolerance=0.1,
            )

        assert await rollouts.serve(offer) == []
        assert len(network.groups) == 3  # the third came while the second was loaded
        while again not in rollouts.workers:
            await asyncio.sleep(1)
        assert len(again.took) == 9 and len(network.groups) == 12
        await rollouts.close()

    simulate(main())
