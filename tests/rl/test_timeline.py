"""The timeline as a viewer reads it: whole after a kill, bounded, no span over another."""

import itertools
import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from rl.timeline import Span, Timeline


def _span(start: float, end: float, track: str = "engine", name: str = "generate") -> Span:
    return Span(track=track, name=name, start=start, end=end, details={"task": "t/1", "tokens": 5})


def _read(path: Path) -> list[dict[str, Any]]:
    """As viewers do: the bracket at the end may be missing."""
    text = path.read_text()
    return json.loads(text if text.endswith("]\n") else text + "]")


def _spans(events: list[dict[str, Any]]) -> list[dict[str, Any]]:
    return [event for event in events if event["ph"] == "X"]


def test_a_span_is_drawn_in_microseconds_on_the_track_of_its_part(tmp_path: Path) -> None:
    path = tmp_path / "timeline.json"
    timeline = Timeline(path, say=pytest.fail, clock=lambda: 12.0)
    timeline.add([_span(10.0, 10.5), _span(11.0, 11.25, "learner", "update")])
    timeline.count({"tokens": 7.0})
    timeline.mark("step 1")
    timeline.close()
    events = json.loads(path.read_text())
    tracks = {e["pid"]: e["args"]["name"] for e in events if e["name"] == "process_name"}
    assert [
        (tracks[e["pid"]], e["name"], e["ts"], e["dur"], e["args"]) for e in _spans(events)
    ] == [
        ("engine", "generate", 10_000_000, 500_000, {"task": "t/1", "tokens": 5}),
        ("learner", "update", 11_000_000, 250_000, {"task": "t/1", "tokens": 5}),
    ]
    (counter,) = (e for e in events if e["ph"] == "C")
    assert (counter["name"], counter["ts"], counter["args"]) == (
        "tokens",
        12_000_000,
        {"value": 7.0},
    )
    assert [e["name"] for e in events if e["ph"] == "i"] == ["step 1"]
    assert timeline.take_cost() > 0 and timeline.take_cost() == 0


times = st.integers(0, 1000).map(lambda milliseconds: milliseconds / 1000)


@given(st.lists(st.tuples(times, times).map(sorted), max_size=40))
def test_spans_of_one_lane_never_overlap(
    tmp_path_factory: pytest.TempPathFactory, intervals: list[list[float]]
) -> None:
    path = tmp_path_factory.mktemp("timeline") / "timeline.json"
    timeline = Timeline(path, say=pytest.fail)
    timeline.add([_span(start, end) for start, end in intervals])
    timeline.close()
    spans = _spans(_read(path))
    assert len(spans) == len(intervals)
    lanes: dict[int, list[tuple[int, int]]] = {}
    for span in spans:
        lanes.setdefault(span["tid"], []).append((span["ts"], span["ts"] + span["dur"]))
    for lane in lanes.values():
        lane.sort()
        assert all(one[1] <= other[0] for one, other in itertools.pairwise(lane))


def test_things_done_one_after_the_other_share_a_lane(tmp_path: Path) -> None:
    path = tmp_path / "timeline.json"
    timeline = Timeline(path, say=pytest.fail)
    timeline.add([_span(n, n + 1.0) for n in range(10)])
    timeline.close()
    assert {span["tid"] for span in _spans(_read(path))} == {1}


def test_what_was_flushed_is_read_without_a_close(tmp_path: Path) -> None:
    path = tmp_path / "timeline.json"
    timeline = Timeline(path, say=pytest.fail)
    timeline.add([_span(1, 2)])
    timeline.mark("step 1")
    timeline.add([_span(2, 3)])  # lost by a kill now
    assert len(_spans(_read(path))) == 1


def test_many_spans_are_written_before_the_step_ends(tmp_path: Path) -> None:
    path = tmp_path / "timeline.json"
    timeline = Timeline(path, say=pytest.fail)
    timeline.add([_span(n, n + 1) for n in range(300)])
    assert len(_spans(_read(path))) == 300


def test_two_files_are_kept_and_each_names_all_tracks(tmp_path: Path) -> None:
    path = tmp_path / "timeline.json"
    timeline = Timeline(path, say=pytest.fail, most_bytes=5_000)
    for step in range(100):
        timeline.add([_span(step, step + 1), _span(step, step + 1, "learner")])
        timeline.mark(f"step {step}")
    timeline.close()
    assert sorted(p.name for p in tmp_path.iterdir()) == ["timeline.1.json", "timeline.json"]
    steps = []
    for file in (tmp_path / "timeline.1.json", path):
        assert file.stat().st_size < 6_500
        events = json.loads(file.read_text())
        names = {e["args"]["name"] for e in events if e["name"] == "process_name"}
        assert names == {"engine", "learner", "counters"}
        steps += [e["name"] for e in events if e["ph"] == "i"]
    assert steps == [f"step {n}" for n in range(100)][-len(steps) :] and len(steps) >= 10


def test_a_run_that_goes_on_keeps_the_timeline_of_before(tmp_path: Path) -> None:
    path = tmp_path / "timeline.json"
    for start in (1, 5):
        timeline = Timeline(path, say=pytest.fail)
        timeline.add([_span(start, start + 1)])
        timeline.close()
    assert [s["ts"] for s in _spans(_read(path))] == [5_000_000]
    assert [s["ts"] for s in _spans(_read(tmp_path / "timeline.1.json"))] == [1_000_000]


def test_a_disk_that_refuses_ends_the_timeline_and_is_told_of_once(tmp_path: Path) -> None:
    said: list[str] = []
    folder = tmp_path / "run"
    folder.mkdir()
    timeline = Timeline(folder / "timeline.json", say=said.append)
    (folder / "timeline.json").unlink()
    folder.rmdir()
    for step in range(3):
        timeline.add([_span(step, step + 1)])
        timeline.mark("step")
    timeline.close()
    assert len(said) == 1 and "no timeline from here on" in said[0] and "No such file" in said[0]
