"""`timeline.json`: what every part of a run did and when, for ui.perfetto.dev or chrome://tracing.

An array of Chrome's trace events, one a line: "X" a span, "C" a counter, "i" an instant, "M" a name
(https://docs.google.com/document/d/1CvAClvFfyA5R-PhYUmn5OOQtYMH4h6I0nSsKchNAySU). Both viewers read
an array whose closing bracket is missing, so a killed run leaves a whole file.
"""

import bisect
import json
import os
import sys
import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

MOST_BYTES = 32 << 20  # of one file; the one before it stays
PENDING = 256  # events held back before they are written
ENCODE = json.JSONEncoder(separators=(",", ":")).encode

Detail = str | int | float


@dataclass(frozen=True, slots=True, kw_only=True)
class Span:
    """Something that a part of the run did."""

    track: str  # the part: "rollout worker 0"
    name: str
    start: float  # seconds since the epoch, by the clock of its host
    end: float
    details: Mapping[str, Detail] = field(default_factory=dict)


@dataclass(slots=True)
class _Track:
    """One part, drawn in as many lanes as it did things at the same time."""

    number: int
    lanes: int = 0
    free: list[tuple[int, int]] = field(default_factory=list)
    """When each lane's last span ended, in microseconds, and its number; sorted."""


class Timeline:
    """Appends to a file of bounded size; the full one is kept beside it as `NAME.1.json`.

    A disk that refuses ends the timeline, not the run.
    """

    def __init__(
        self,
        path: Path,
        *,
        say: Callable[[str], None],
        most_bytes: int = MOST_BYTES,
        clock: Callable[[], float] = time.time,
    ) -> None:
        """Begin `path`; one that is there is moved to the file beside it."""
        self._path = path
        self._say = say
        self._most_bytes = most_bytes
        self._clock = clock
        self._tracks: dict[str, _Track] = {}
        self._names: list[str] = []  # the events that name tracks: every file needs them
        self._pending: list[str] = []
        self._size = 0
        self._open = True
        self._cost_s = 0.0
        self._guarded(self._begin)

    def add(self, spans: Iterable[Span]) -> None:
        """Record spans, in any order; they are seen once they are flushed."""
        started = time.thread_time()
        for span in spans:
            start = round(span.start * 1e6)
            end = max(round(span.end * 1e6), start)
            track = self._track(span.track)
            lane = self._lane(span.track, track, start)
            bisect.insort(track.free, (end, lane))
            place = {"ts": start, "dur": end - start, "pid": track.number, "tid": lane}
            self._event({"name": span.name, "ph": "X", **place, "args": dict(span.details)})
        if len(self._pending) >= PENDING:
            self._guarded(self._write)
        self._cost_s += time.thread_time() - started

    def count(self, values: Mapping[str, float]) -> None:
        """Record counters by name, each of which is drawn as a curve."""
        started = time.thread_time()
        now, pid = round(self._clock() * 1e6), self._track("counters").number
        for name, value in values.items():
            self._event({"name": name, "ph": "C", "ts": now, "pid": pid, "args": {"value": value}})
        self._cost_s += time.thread_time() - started

    def mark(self, name: str) -> None:
        """Record an instant, drawn across all tracks, and flush."""
        started = time.thread_time()
        now, pid = round(self._clock() * 1e6), self._track("counters").number
        self._event({"name": name, "ph": "i", "s": "g", "ts": now, "pid": pid, "tid": 0})
        self._guarded(self._write)
        self._cost_s += time.thread_time() - started

    def take_cost(self) -> float:
        """CPU seconds that recording took since the last call."""
        cost, self._cost_s = self._cost_s, 0.0
        return cost

    def close(self) -> None:
        """Write what is left, and the closing bracket."""
        self._guarded(self._write)
        self._guarded(self._end)
        self._open = False

    def _event(self, event: dict[str, object]) -> None:
        if self._open:
            self._pending.append(ENCODE(event))

    def _track(self, name: str) -> _Track:
        if name not in self._tracks:
            self._tracks[name] = _Track(len(self._tracks) + 1)
            self._name("process_name", self._tracks[name].number, 0, name)
        return self._tracks[name]

    def _lane(self, name: str, track: _Track, start: int) -> int:
        """Of the lanes that are free at `start`, the one that was busy last; else a new one.

        Viewers draw spans of one lane only if they do not overlap.
        """
        place = bisect.bisect(track.free, (start, sys.maxsize))
        if place:
            return track.free.pop(place - 1)[1]
        track.lanes += 1
        lane = track.lanes
        self._name("thread_name", track.number, lane, name if lane == 1 else f"{name} ({lane})")
        return lane

    def _name(self, kind: str, pid: int, tid: int, name: str) -> None:
        event = {"name": kind, "ph": "M", "pid": pid, "tid": tid, "args": {"name": name}}
        self._event(event)
        self._names.append(ENCODE(event))

    def _guarded(self, work: Callable[[], None]) -> None:
        """Do it unless the disk has refused before; if it refuses now, say so once."""
        if not self._open:
            return
        try:
            work()
        except OSError as error:
            self._open = False
            self._pending.clear()
            self._say(f"no timeline from here on: {self._path}: {error.strerror or error}")

    def _begin(self) -> None:
        if self._path.exists():
            os.replace(self._path, self._path.with_suffix(".1.json"))
        first = json.dumps({"name": "begin", "ph": "M", "pid": 0, "args": {}})
        self._append("[\n" + ",\n".join([first, *self._names]), "w")

    def _write(self) -> None:
        if not self._pending:
            return
        if self._size > self._most_bytes:
            self._end()
            self._begin()
        self._append("".join(",\n" + line for line in self._pending), "a")
        self._pending.clear()

    def _end(self) -> None:
        self._append("\n]\n", "a")

    def _append(self, text: str, mode: str) -> None:
        """Append in one call, so that no event is cut in two by a kill."""
        with self._path.open(mode + "b", buffering=0) as file:
            file.write(text.encode())
            self._size = file.tell()
