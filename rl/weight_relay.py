"""What runs on a host to send the weights that lie there to other hosts, or to receive theirs.

A process of its own: engines and shards that die take no part in the group that carries weights,
and a transfer that hangs holds up neither.
"""

import threading
from collections.abc import Iterator
from contextlib import contextmanager

from torch.distributed import TCPStore

from model.send_broadcast import Broadcaster
from model.send_weights import WeightUpdate
from rl.timeline import Span
from rl.weight_link import GroupOver, Link, LinkError, Meeting, device, listen
from rl.worker_spans import SpanLog
from rollout.errors import WeightUpdateError
from rollout.receive_broadcast import Inbox


class WeightRelay:
    """Sends what lies on this host, and takes what other hosts send; in threads, one per group."""

    def __init__(self, address: str, delta: bool) -> None:
        """Live at `address`; with `delta`, take what changed since the version before."""
        self._address, self._delta = address, delta
        self._spans = SpanLog()
        self._sender = Broadcaster()
        self._store: TCPStore | None = None
        self._inboxes: dict[str, Inbox] = {}
        self._links: dict[str, Link] = {}
        self._locks: dict[str, threading.Lock] = {}
        self._lock = threading.Lock()

    def device(self) -> str:
        """What it can carry weights on: "cuda" or "cpu"."""
        return device()

    def listen(self) -> tuple[str, int]:
        """Address and port where a new group meets; the one before is over."""
        with self._lock:
            self._store = listen(self._address)
            return self._address, self._store.port

    def send(self, meeting: Meeting, update: WeightUpdate) -> bool:
        """Bring an update of this host to the group; whether it was sent whole.

        Raises WeightUpdateError if it did not come to all; the group is over then.
        """
        with self._link("", meeting, 0) as link, self._spans.span("send weights") as details:
            whole = self._sender.send(update, link)
            details |= {"version": update.version, "whole": str(whole)}
            return whole

    def receive(self, source: str, meeting: Meeting, rank: int) -> list[str]:
        """The files of what `source` sends next, whole and verified.

        Raises WeightUpdateError if it did not come so; the group is over then.
        """
        with self._link(source, meeting, rank) as link, self._spans.span("receive weights"):
            if source not in self._inboxes:
                self._inboxes[source] = Inbox(delta=self._delta)
            return self._inboxes[source].receive(link)

    def take_spans(self, track: str) -> list[Span]:
        """What was done here since the last call."""
        return self._spans.take(track)

    def close(self) -> None:
        """Remove what has arrived."""
        for inbox in self._inboxes.values():
            inbox.close()

    @contextmanager
    def _link(self, source: str, meeting: Meeting, rank: int) -> Iterator[Link]:
        """The group with `source`, for one use at a time; left if anything goes wrong in it."""
        with self._lock:
            lock = self._locks.setdefault(source, threading.Lock())
        with lock:
            try:
                yield self._met(source, meeting, rank)
            except BaseException as error:
                if (link := self._links.pop(source, None)) is not None:
                    link.close()
                if isinstance(error, LinkError):
                    raise GroupOver(str(error)) from error
                if isinstance(error, OSError):
                    raise WeightUpdateError(str(error)) from error
                raise

    def _met(self, source: str, meeting: Meeting, rank: int) -> Link:
        link = self._links.get(source)
        if link is None or link.meeting != meeting:
            if link is not None:
                self._links.pop(source).close()
            link = self._links[source] = Link(
                meeting, rank, self._address, None if rank else self._store
            )
        return link
