"""The way of a published version from the hosts of the learner's shards to those of the engines.

Engines map what lies on their host. What lies on another host comes over once for all engines of a
host, between two relays (`rl.weight_relay`): processes that nothing else depends on. A group of
relays is one host of shards and all hosts that lack what it published. If one of them is lost the
group is over; the others meet anew at once, and the one that takes its place after them.
"""

import asyncio
import time
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

from model.send_weights import WeightUpdate, merged
from rl.config import Transport
from rl.errors import PartLost
from rl.part import Part, within
from rl.supervision import Restarts
from rl.weight_link import CPU, CUDA, LIMIT_S, MEET_S, GroupOver, Meeting, piece_bytes
from rollout.errors import WeightUpdateError

ATTEMPTS = 4  # to bring one version to a host
BYTES_PER_S = 20 << 20  # less counts as hung, as in `rollout.receive_update`
ANSWER_S = 60.0  # for what takes no time
SPARE_CALLS = 8  # to a relay that is busy with all groups

StartRelay = Callable[[str], Awaitable[Part]]
"""Starts a relay on a host. Raises PartLost if the host is not there."""
HostsOf = Callable[[Part], Awaitable[Sequence[str]]]
Key = tuple[str, str]
"""What a relay does, "from" or "to", and its host."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Arrived:
    """The files of an update on a host; they may go with the relay that took them."""

    files: list[str]
    relay: Part | None


Arrivals = dict[str, asyncio.Future[Arrived]]
"""What comes of an update, by the host that it comes to."""


@dataclass(frozen=True, slots=True, kw_only=True)
class _Group:
    """Relays that meet, or have met."""

    meeting: Meeting
    sender: Part
    receivers: dict[str, Part]  # by host, in the order of their ranks


class WeightTransport:
    """Brings versions to hosts; every wait has an end."""

    def __init__(
        self,
        kind: Transport,
        sources: Sequence[str],
        *,
        start: StartRelay,
        hosts_of: HostsOf,
        restarts: Restarts,
    ) -> None:
        """Use one way for all.

        Args:
            kind: which way.
            sources: the host of every shard, by rank.
            start: makes a relay on a host.
            hosts_of: tells where an engine's ranks live, its owner beside the first.
            restarts: counts the relays that are lost.
        """
        self._kind, self._sources, self._hosts_of = kind, list(sources), hosts_of
        self._start, self._restarts = start, restarts
        self._relays: dict[Key, Part] = {}
        self._lost_at: dict[Key, float] = {}
        self._groups: dict[str, _Group] = {}  # by sending host
        self._locks: dict[Key, asyncio.Lock] = {}  # two do not start the same relay, or send by it
        self._without_nccl: set[str] = set()  # sending hosts
        self._tasks: set[asyncio.Task[None]] = set()

    @property
    def relays(self) -> dict[str, Part]:
        """Those that are there, by name."""
        return {_name(key): relay for key, relay in self._relays.items()}

    @property
    def most_calls(self) -> int:
        """To one relay at a time: every sending host has a group with it, and all may meet."""
        return self._most_groups + SPARE_CALLS

    @property
    def _most_groups(self) -> int:
        return len(set(self._sources))

    async def close(self) -> None:
        """Carry nothing any more, and start no relay."""
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    async def begin(self, updates: Sequence[WeightUpdate], parts: Sequence[Part]) -> "Delivery":
        """A version on its way.

        Args:
            updates: what each shard has published, by rank.
            parts: the rollout workers that are there; others may ask for it later.
        """
        by_host: dict[str, list[WeightUpdate]] = {}
        for host, update in zip(self._sources, updates, strict=True):
            by_host.setdefault(host, []).append(update)
        asked = (self.hosts_of(part) for part in parts)
        answers = await asyncio.gather(*asked, return_exceptions=True)
        there = {h for hosts in answers if not isinstance(hosts, BaseException) for h in hosts}
        return Delivery(self, {host: merged(some) for host, some in by_host.items()}, there)

    async def hosts_of(self, part: Part) -> Sequence[str]:
        """The hosts of an engine's ranks. Raises PartLost."""
        return await within(ANSWER_S, "rollout worker", self._hosts_of(part))

    def apart(self, source: str, host: str) -> bool:
        """Whether what lies on `source` has to be sent to engines on `host`."""
        if self._kind is Transport.auto:
            return source != host
        return self._kind is Transport.broadcast

    def keeps(self, host: str, arrived: Arrived) -> bool:
        """Whether the relay that took it is still there: the next one removes what it left."""
        return self._relays.get(("to", host)) is arrived.relay

    def carry(self, source: str, update: WeightUpdate, arrivals: Arrivals) -> None:
        """Begin to bring what lies on `source` to all hosts of `arrivals`, which tell the rest."""
        task = asyncio.create_task(self._carry(source, update, arrivals))
        self._tasks.add(task)
        task.add_done_callback(self._ended)

    def _ended(self, task: asyncio.Task[None]) -> None:
        self._tasks.discard(task)
        if not task.cancelled():
            task.exception()  # told by the arrivals

    async def _carry(self, source: str, update: WeightUpdate, arrivals: Arrivals) -> None:
        why, refused = "", set[str]()
        sending = self._locks.setdefault(("send", source), asyncio.Lock())
        try:
            for _ in range(ATTEMPTS):
                left = [host for host, arrival in arrivals.items() if not arrival.done()]
                # What has to be started first, maybe on a host that is gone, does not hold up
                # those that can take it now; nor does who refuses, which ends a group for all.
                there = [host for host in left if ("to", host) in self._relays]
                ready = [host for host in there if host not in refused]
                if not left:
                    break
                async with sending:
                    hosts = ready or left
                    why = await self._attempt(source, update, hosts, arrivals, refused) or why
        except BaseException as error:
            _fail(arrivals, error)
            raise
        for host in arrivals:
            lost = PartLost(f"the way of weights to host {host[:8]}", why)
            _fail({host: arrivals[host]}, lost)

    async def _attempt(
        self,
        source: str,
        update: WeightUpdate,
        hosts: Sequence[str],
        arrivals: Arrivals,
        refused: set[str],
    ) -> str:
        """Send once; returns what went wrong, if anything, and adds who `refused` what came.

        Raises CrashLoop.
        """
        try:
            group = await self._group(source, hosts)
        except PartLost as lost:
            return str(lost)
        limit = MEET_S + 2 * LIMIT_S + update.num_bytes / BYTES_PER_S
        receiving = [
            self._receive(limit, host, source, group.meeting, rank)
            for rank, host in enumerate(group.receivers, 1)
        ]
        sent, *arrived = await asyncio.gather(
            self._ask(limit, ("from", source), "send", group.meeting, update),
            *receiving,
            return_exceptions=True,
        )
        for host, found in zip(group.receivers, arrived, strict=True):
            if not isinstance(found, BaseException):
                arrivals[host].set_result(found)
            elif not isinstance(found, PartLost | GroupOver):
                refused.add(host)
        errors = [each for each in (sent, *arrived) if isinstance(each, BaseException)]
        if errors:
            self._groups.pop(source, None)
            if group.meeting.device == CUDA and not any(isinstance(e, PartLost) for e in errors):
                self._without_nccl.add(source)  # all live: it may be NCCL that cannot
        for error in errors:
            if not isinstance(error, PartLost | WeightUpdateError):
                raise error
        return "; ".join(map(str, errors))

    async def _receive(self, limit: float, host: str, *told: Any) -> Arrived:
        relay = self._relays.get(("to", host))
        return Arrived(files=await self._ask(limit, ("to", host), "receive", *told), relay=relay)

    async def _group(self, source: str, hosts: Sequence[str]) -> _Group:
        """Relays on `source` and on those of `hosts` where one can be started.

        Raises:
            PartLost: there is none on `source`, or on any of `hosts`.
        """
        sender = await self._relay(("from", source))
        starts = (self._relay(("to", host)) for host in hosts)
        relays = await asyncio.gather(*starts, return_exceptions=True)
        receivers = {
            host: relay
            for host, relay in zip(hosts, relays, strict=True)
            if not isinstance(relay, BaseException)
        }
        for error in relays:
            if isinstance(error, BaseException) and not (receivers and isinstance(error, PartLost)):
                raise error
        known = self._groups.get(source)
        if known is not None and (known.sender, known.receivers) == (sender, receivers):
            return known
        keys = [("from", source), *(("to", host) for host in receivers)]
        kinds = await asyncio.gather(*(self._ask(ANSWER_S, key, "device") for key in keys))
        address, port = await self._ask(ANSWER_S, ("from", source), "listen")
        device = CUDA if set(kinds) == {CUDA} and source not in self._without_nccl else CPU
        meeting = Meeting(
            address=address,
            port=port,
            size=len(keys),
            device=device,
            piece=piece_bytes(self._most_groups),
        )
        group = _Group(meeting=meeting, sender=sender, receivers=receivers)
        self._groups[source] = group
        return group

    async def _relay(self, key: Key) -> Part:
        """A relay, started if there is none. Raises PartLost."""
        async with self._locks.setdefault(key, asyncio.Lock()):
            if key not in self._relays:
                self._relays[key] = await self._start(key[1])
                if (since := self._lost_at.pop(key, None)) is not None:
                    self._restarts.back(_name(key), time.monotonic() - since)
            return self._relays[key]

    async def _ask(self, limit: float, key: Key, method: str, *args: Any) -> Any:
        """The answer of a relay that is there.

        Raises:
            PartLost: it is gone now.
            CrashLoop: it was lost too often.
        """
        relay = self._relays.get(key)
        if relay is None:
            raise PartLost(_name(key), "it is gone")
        try:
            return await within(limit, _name(key), relay.call(method, *args))
        except PartLost as error:
            if self._relays.get(key) is relay:
                del self._relays[key]
                relay.kill()
                self._lost_at[key] = time.monotonic()
                self._restarts.lost(_name(key), error.why)
            raise


class Delivery:
    """One version: it comes to the hosts of engines when the first of them asks."""

    def __init__(
        self, transport: WeightTransport, updates: dict[str, WeightUpdate], hosts: set[str]
    ) -> None:
        """Bring `updates`, by the host where they lie, to `hosts` together, to others later."""
        self._transport, self._updates, self._hosts = transport, updates, hosts
        self._arrivals: dict[str, Arrivals] = {source: {} for source in updates}

    async def at(self, part: Part) -> WeightUpdate:
        """The whole update as it lies on the hosts of an engine.

        Raises:
            PartLost: the engine is gone, or a host of its cannot be reached.
            CrashLoop: a relay was lost too often.
        """
        ranks = await self._transport.hosts_of(part)
        hosts = list(dict.fromkeys(ranks))
        found = dict(zip(hosts, await asyncio.gather(*map(self._on, hosts)), strict=True))
        own = found[ranks[0]]
        if len(hosts) == 1:
            return own
        return replace(own, changes=None, by_rank=[found[host].files for host in ranks])

    async def _on(self, host: str) -> WeightUpdate:
        while True:
            found = await asyncio.gather(*(self._from(source, host) for source in self._updates))
            # A relay that is lost while one comes may take others with it that are here.
            if not any(self._gone(source, host) for source in self._updates):
                return merged(found)

    async def _from(self, source: str, host: str) -> WeightUpdate:
        update = self._updates[source]
        if not self._transport.apart(source, host):
            return update
        arrivals = self._arrivals[source]
        if host not in arrivals or self._gone(source, host):
            self._send(source, host)
        arrived = await asyncio.shield(arrivals[host])
        return replace(update, files=arrived.files, changes=None)

    def _gone(self, source: str, host: str) -> bool:
        """Whether what was to come, or had come, is not there any more."""
        arrival = self._arrivals[source].get(host)
        if arrival is None or not arrival.done():
            return False
        if arrival.cancelled() or arrival.exception() is not None:
            return True
        return not self._transport.keeps(host, arrival.result())

    def _send(self, source: str, host: str) -> None:
        """Begin to bring the update to `host`, and with it to all that nobody has asked for yet."""
        known = self._arrivals[source]
        wanted = {h for h in self._hosts if h not in known and self._transport.apart(source, h)}
        loop = asyncio.get_running_loop()
        new: Arrivals = {each: loop.create_future() for each in sorted(wanted | {host})}
        known |= new
        self._transport.carry(source, self._updates[source], new)


def _fail(arrivals: Arrivals, error: BaseException) -> None:
    for arrival in arrivals.values():
        if not arrival.done():
            if isinstance(error, asyncio.CancelledError):
                arrival.cancel()
                continue
            arrival.set_exception(error)
            arrival.exception()  # nobody may be left who asks


def _name(key: Key) -> str:
    role, host = key
    return f"weights relay {role} host {host[:8]}"
