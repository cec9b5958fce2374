"""A loop of fakes, watched: what the timeline shows, what is told of, what it leaves behind."""

import asyncio
import json
import re
import socket
import threading
import urllib.request
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest

from rewards.score import Score
from rewards.task import Message, Task, TaskKind, Transcript
from rl import waiting
from rl.batch import Batch
from rl.config import ObjectiveConfig, RolloutConfig, TrainConfig, WatchConfig
from rl.errors import BadInput
from rl.loop import Course, Loop, Step
from rl.prometheus import Progress
from rl.run_folder import RunFolder
from rl.timeline import Span
from rl.watching import Watch
from rollout.episode import Completion, Episode, Group, StopReason
from rollout.starts import Start

STUCK = (
    r"waiting for the groups of step 5: \d+ s so far, the first of its kind; "
    r"2 being sampled, longest t/8, for \d+ s"
)


def _task(position: int, step: int = 0) -> Task:
    return Task(
        id=f"t/{position}",
        kind=TaskKind.math,
        messages=(Message(role="user", content="?"),),
        reference="1",
        token_budget=4,
        tags=("sums",),
    )


class FakeRollouts:
    """Three tokens an episode, of versions 0 and 1."""

    async def sample(
        self,
        task: Task,
        *,
        samples: int,
        temperature: float,
        rank: bool = True,
        start: Start | None = None,
    ) -> Group:
        await asyncio.sleep(0.001)
        episode = Episode(
            completion=Completion(
                prompt_ids=[1],
                token_ids=[5, 6, 7],
                logprobs=[-1.0] * 3,
                versions=[0, 0, 1],
                stop_reason=StopReason.stop,
                temperature=temperature,
            ),
            transcript=Transcript(
                messages=task.messages, response="", response_tokens=3, truncated=False
            ),
            score=Score(total=0.5),
        )
        return Group(task=task, episodes=(episode,) * samples)

    async def busy_seconds(self) -> float:
        return 0.0


class FakePolicy:
    """Learns nothing."""

    async def update(self, minibatches: Sequence[Batch], ptx: Sequence[Batch]) -> dict[str, float]:
        await asyncio.sleep(0.001)
        return {}

    async def publish(self, version: int) -> dict[str, float]:
        return {}


def _train(watch: Watch, folder: RunFolder) -> list[Mapping[str, float]]:
    """Three steps of two groups of two; what watching added to the metrics."""
    config = TrainConfig(
        steps=3,
        rollout=RolloutConfig(groups_per_step=2, samples_per_group=2),
        objective=ObjectiveConfig(minibatches=1),
    )
    added: list[Mapping[str, float]] = []

    async def on_step(step: Step) -> None:
        progress = Progress(steps=step.number, tokens=12 * step.number, metrics=step.metrics)
        added.append(watch.step(progress))
        if step.number < config.steps:
            watch.expect_groups(step.number)

    async def measure(step: int) -> Mapping[str, float]:
        return {"critic/agreement": 1.0}

    watch.start(folder)
    loop = Loop(
        config,
        rollouts=watch.rollouts(FakeRollouts()),
        policy=watch.policy(FakePolicy()),
        course=Course(task_at=_task, measure=watch.measuring(measure)),
    )
    watch.expect_groups(0)
    asyncio.run(asyncio.wait_for(loop.run(on_step), 30))
    return added


def _events(folder: RunFolder) -> list[dict[str, Any]]:
    return json.loads(folder.timeline.read_text())


def test_every_part_of_a_step_is_on_the_timeline(tmp_path: Path) -> None:
    watch = Watch(WatchConfig(), "run", pytest.fail)
    folder = RunFolder(tmp_path)
    added = _train(watch, folder)
    watch.close()
    events = _events(folder)
    tracks = {e["pid"]: e["args"]["name"] for e in events if e["name"] == "process_name"}
    seen = Counter((tracks[e["pid"]], e["name"]) for e in events if e["ph"] == "X")
    assert seen[("groups", "sums")] == 6
    for step in (1, 2, 3):
        assert seen[("learner waits", f"waits for the groups of step {step}")] == 1
        assert seen[("learner", f"the update of step {step}")] == 1
        assert seen[("weights", f"the transfer of weights of version {step}")] == 1
    assert any(track == "measurement" for track, _ in seen)
    details = [e["args"] for e in events if e["ph"] == "X" and e["name"] == "sums"]
    assert {d["task"] for d in details} == {f"t/{n}" for n in range(6)}
    assert details[0] | {"task": ""} == {
        "task": "", "episodes": 2, "tokens": 6, "longest": 3, "versions": "0-1", "reward": 0.5,
    }  # fmt: skip
    counted = Counter(e["name"] for e in events if e["ph"] == "C")
    assert counted["time/stall"] == counted["rollout/tokens_per_s"] == counted["buffer/size"] == 3
    assert all(row["time/timeline"] > 0 for row in added)


def test_a_run_may_be_watched_by_nobody(tmp_path: Path) -> None:
    before = set(threading.enumerate())
    watch = Watch(WatchConfig(timeline=False), "run", pytest.fail)
    assert _train(watch, RunFolder(tmp_path)) == [{}, {}, {}]
    watch.close()
    assert list(tmp_path.iterdir()) == []
    assert set(threading.enumerate()) == before


def test_metrics_of_the_loop_are_served(tmp_path: Path) -> None:
    with socket.socket() as free:
        free.bind(("", 0))
        port = free.getsockname()[1]
        free.listen()
        with pytest.raises(BadInput, match=rf"metrics_port={port}"):
            Watch(WatchConfig(metrics_port=port), "run", pytest.fail)
    watch = Watch(WatchConfig(metrics_port=port), "run", pytest.fail)
    _train(watch, RunFolder(tmp_path))
    page = urllib.request.urlopen(f"http://127.0.0.1:{port}/metrics", timeout=10).read().decode()
    watch.close()
    assert 'temper_trained_steps_total{run="run"} 3.0' in page
    assert 'temper_reward_mean{run="run"} 0.5' in page
    with pytest.raises(OSError):
        urllib.request.urlopen(f"http://127.0.0.1:{port}/metrics", timeout=10)


def test_a_run_that_goes_on_serves_its_totals_from_the_start(tmp_path: Path) -> None:
    """A counter that falls to 0 and comes back would be counted twice by Prometheus."""
    with socket.socket() as free:
        free.bind(("", 0))
        port = free.getsockname()[1]
    watch = Watch(WatchConfig(metrics_port=port, timeline=False), "run", pytest.fail)
    watch.start(RunFolder(tmp_path), Progress(steps=40, tokens=1200, restarts=2))
    page = urllib.request.urlopen(f"http://127.0.0.1:{port}/metrics", timeout=10).read().decode()
    watch.close()
    for total in ('trained_steps_total{run="run"} 40.0', 'restarts_total{run="run"} 2.0'):
        assert f"temper_{total}" in page


def test_nobody_waits_for_spans_of_a_busy_part(tmp_path: Path) -> None:
    folder = RunFolder(tmp_path)
    watch = Watch(WatchConfig(), "run", pytest.fail)
    asked = 0

    async def main() -> None:
        free = asyncio.Event()

        async def spans() -> list[Span]:
            nonlocal asked
            asked += 1
            await free.wait()
            return [Span(track="rollout worker 0", name=f"generate {asked}", start=1, end=2)]

        for _ in range(3):
            watch.collect(spans)
            await asyncio.sleep(0)
        assert asked == 1, "one question at a time"
        free.set()
        await asyncio.sleep(0.01)
        watch.collect(spans)
        await asyncio.sleep(0.01)
        free.clear()
        watch.collect(spans)
        await asyncio.sleep(0)
        watch.close()

    watch.start(folder)
    asyncio.run(main())
    names = [e["name"] for e in _events(folder) if e["ph"] == "X"]
    assert names == ["generate 1", "generate 2"]


def test_without_a_timeline_nobody_is_asked_for_spans(tmp_path: Path) -> None:
    watch = Watch(WatchConfig(timeline=False), "run", pytest.fail)
    watch.start(RunFolder(tmp_path))
    watch.collect(lambda: pytest.fail("asked"))
    watch.close()


def test_a_learner_that_waits_for_groups_names_the_oldest(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(waiting, "FIRST_S", 0.0)
    monkeypatch.setattr(waiting, "LOOK_S", 0.001)
    said: list[str] = []
    told = threading.Event()

    def say(line: str) -> None:
        said.append(line)
        if "; 2 being sampled" in line:
            told.set()

    class Stuck(FakeRollouts):
        async def sample(
            self,
            task: Task,
            *,
            samples: int,
            temperature: float,
            rank: bool = True,
            start: Start | None = None,
        ) -> Group:
            assert await asyncio.to_thread(told.wait, 30)
            return await super().sample(task, samples=samples, temperature=temperature)

    async def main() -> None:
        rollouts = watch.rollouts(Stuck())
        watch.expect_groups(4)
        await asyncio.gather(
            *(rollouts.sample(_task(n), samples=1, temperature=1.0) for n in (8, 9))
        )

    watch = Watch(WatchConfig(), "run", say)
    watch.start(RunFolder(tmp_path))
    asyncio.run(asyncio.wait_for(main(), 60))
    watch.close()
    assert any(re.fullmatch(STUCK, line) for line in said)


def test_a_group_that_fails_is_on_the_timeline_too(tmp_path: Path) -> None:
    class Broken(FakeRollouts):
        async def sample(
            self,
            task: Task,
            *,
            samples: int,
            temperature: float,
            rank: bool = True,
            start: Start | None = None,
        ) -> Group:
            raise RuntimeError("the engine is dead")

    folder = RunFolder(tmp_path)
    watch = Watch(WatchConfig(), "run", pytest.fail)
    watch.start(folder)
    with pytest.raises(RuntimeError, match="the engine is dead"):
        asyncio.run(watch.rollouts(Broken()).sample(_task(3), samples=1, temperature=1.0))
    watch.close()
    (span,) = [e for e in _events(folder) if e["ph"] == "X"]
    assert span["args"] == {"task": "t/3", "failed": 1}
