"""What a run says when it waits long, by a clock that the test sets."""

import threading

import pytest

from rl import waiting
from rl.waiting import Waits


class Clock:
    """Stands still until it is set."""

    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now


def _wait(waits: Waits, clock: Clock, seconds: float) -> None:
    """One wait, looked at every second."""
    with waits.waiting_for("the groups", "of step 3"):
        for _ in range(int(seconds)):
            clock.now += 1
            waits.tell()


def test_the_first_wait_is_told_of_after_twenty_seconds_and_whenever_it_has_doubled() -> None:
    said: list[str] = []
    clock = Clock()
    _wait(Waits(said.append, clock=clock), clock, 170)
    assert said == [
        f"waiting for the groups of step 3: {seconds} s so far, the first of its kind"
        for seconds in (20, 40, 80, 160)
    ]


def test_a_wait_is_compared_with_three_times_the_median_of_its_kind() -> None:
    said: list[str] = []
    clock = Clock()
    waits = Waits(said.append, clock=clock)
    for seconds in (10, 12, 19):
        _wait(waits, clock, seconds)
    assert said == []
    _wait(waits, clock, 73)
    assert said == [
        f"waiting for the groups of step 3: {seconds} s so far, usually 12 s"
        for seconds in (36, 72)
    ]


def test_usual_follows_the_last_twenty() -> None:
    said: list[str] = []
    clock = Clock()
    waits = Waits(said.append, clock=clock)
    for seconds in [1] * 30 + [15] * 20:
        _wait(waits, clock, seconds)
    _wait(waits, clock, 45)
    assert said == ["waiting for the groups of step 3: 45 s so far, usually 15 s"]


def test_kinds_are_told_apart_and_a_failed_wait_teaches_nothing() -> None:
    said: list[str] = []
    clock = Clock()
    waits = Waits(said.append, clock=clock)
    with pytest.raises(RuntimeError), waits.waiting_for("the update"):
        clock.now += 1
        raise RuntimeError
    with (
        waits.waiting_for("the update"),
        waits.waiting_for("the checkpoint", detail=lambda: "3 of 8 files"),
    ):
        clock.now += 25
        waits.tell()
    assert said == [
        "waiting for the update: 25 s so far, the first of its kind",
        "waiting for the checkpoint: 25 s so far, the first of its kind; 3 of 8 files",
    ]


def test_a_blocked_thread_is_told_of_and_no_thread_is_left(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(waiting, "FIRST_S", 0.0)
    monkeypatch.setattr(waiting, "LOOK_S", 0.001)
    told = threading.Event()
    before = set(threading.enumerate())
    with Waits(lambda line: told.set()) as waits:
        with waits.waiting_for("the engines to start"):
            assert told.wait(30)
        assert set(threading.enumerate()) != before
    assert set(threading.enumerate()) == before
