"""Engines and learner on the same devices, in simulated time: never both, whatever fails."""

import asyncio
import random
from collections.abc import Coroutine, Mapping
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from model.formats import CheckpointError
from model.send_weights import WeightUpdate
from rewards.score import Score
from rewards.task import Message, Task, TaskKind, Transcript
from rl.colocated import ColocatedLearner
from rl.config import (
    ClusterConfig,
    EngineConfig,
    ObjectiveConfig,
    ParallelConfig,
    Placement,
    RolloutConfig,
    TrainConfig,
)
from rl.errors import PartLost, RunFailed
from rl.learner_spec import Published
from rl.loop import Course, Loop, Step
from rl.remote import RemotePolicy
from rl.rollout_seats import RemoteRollouts
from rl.supervision import Restarts
from rl.turns import EnginesTurn
from rollout.episode import Completion, Episode, Group, StopReason
from rollout.errors import EngineError, WeightUpdateError
from rollout.versions import Versions

LEARNER = "learner"


class Devices:
    """Who is on them; notes when both sides are."""

    def __init__(self) -> None:
        self.users: set[str] = set()
        self.faults: list[str] = []
        self.turns: list[str] = []

    def enter(self, who: str) -> None:
        self.users.add(who)
        side = LEARNER if who.startswith(LEARNER) else "engines"
        if not self.turns or self.turns[-1] != side:
            self.turns.append(side)
        if len({each.startswith(LEARNER) for each in self.users}) > 1:
            self.faults.append(f"{sorted(self.users)} at the same time")

    def leave(self, who: str) -> None:
        self.users.discard(who)

    def used_by(self, who: str) -> None:
        if who not in self.users:
            self.faults.append(f"{who} computes, but {sorted(self.users)} have the devices")


class Luck:
    """What goes wrong, and how long things take; all by one seed."""

    def __init__(self, seed: int, trouble: float) -> None:
        self._random, self.trouble = random.Random(seed), trouble

    def strikes(self) -> bool:
        return self._random.random() < self.trouble

    def seconds(self, most: float) -> float:
        return self._random.random() * most

    def one_of(self, many: list[Any]) -> Any:
        return self._random.choice(many)


class Engine:
    """A rollout worker that computes on a device while it is awake, and keeps requests asleep."""

    def __init__(self, name: str, devices: Devices, luck: Luck) -> None:
        self.name, self.devices, self.luck = name, devices, luck
        self.version = -1
        self.drawing, self.cut = 0, 0  # samples: now, and when it fell asleep
        self.awake = asyncio.Event()
        self.awake.set()
        self.dead: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        devices.enter(name)  # a new process loads what it starts from

    async def call(self, method: str, *args: Any) -> Any:
        if self.dead.done():
            raise PartLost(self.name, "killed")
        doing = asyncio.ensure_future(getattr(self, method)(*args))
        try:
            await asyncio.wait([doing, self.dead], return_when=asyncio.FIRST_COMPLETED)
            if self.dead.done():
                raise PartLost(self.name, "killed")
            return doing.result()
        finally:
            doing.cancel()

    def kill(self) -> None:
        self.devices.leave(self.name)
        if not self.dead.done():
            self.dead.set_result(None)

    async def answer(self, within_s: float) -> None:
        pass

    async def busy_seconds(self) -> float:
        return 0.0

    async def sleep(self) -> None:
        await asyncio.sleep(self.luck.seconds(1))
        if self.luck.strikes():
            raise EngineError("the engine cannot sleep")
        self.cut += self.drawing
        self.awake.clear()
        self.devices.leave(self.name)

    async def receive(self, update: WeightUpdate, probe: object) -> list[list[float]]:
        if not self.dead.done():
            self.devices.enter(self.name)
        await asyncio.sleep(self.luck.seconds(1))
        if self.luck.strikes():
            raise self.luck.one_of([WeightUpdateError("refused"), EngineError("died")])
        self.version = update.version
        self.awake.set()
        return [[0.0]]

    async def sample(self, task: Task, samples: int, heat: float, *_: object) -> Group:
        draws = (self._draw(task, heat) for _ in range(samples))
        self.drawing += samples
        try:
            return Group(task=task, episodes=tuple(await asyncio.gather(*draws)))
        finally:
            self.drawing -= samples

    async def _draw(self, task: Task, heat: float) -> Episode:
        versions: list[int] = []
        while len(versions) < 3:
            await self.awake.wait()
            await asyncio.sleep(0.1 + self.luck.seconds(4))
            if self.awake.is_set():
                self.devices.used_by(self.name)
                versions.append(self.version)
        drawn = Completion(
            prompt_ids=np.array([1], np.int32),
            token_ids=np.array([5] * 3, np.int32),
            logprobs=np.array([-1.0] * 3, np.float32),
            versions=Versions.of(versions),
            stop_reason=StopReason.stop,
            temperature=heat,
        )
        said = Transcript(messages=task.messages, response="", response_tokens=3, truncated=False)
        return Episode(completion=drawn, transcript=said, score=Score(total=1.0))


class Shard:
    """A learner shard that computes on a device unless its state is elsewhere."""

    def __init__(self, rank: int, devices: Devices, luck: Luck) -> None:
        self.name, self.devices, self.luck = f"{LEARNER} {rank}", devices, luck
        self.fails: Exception | None = None
        self.done: list[str] = []
        devices.enter(self.name)

    async def call(self, method: str, name: str, *args: Any) -> Any:
        self.done.append(name)
        if name == "reload":
            self.devices.enter(self.name)
        elif name not in ("set_threads", "release"):
            self.devices.used_by(self.name)
        await asyncio.sleep(self.luck.seconds(2))
        if name == "offload":
            self.devices.leave(self.name)
        if name == "publish":
            update = WeightUpdate(version=args[0], files=[], digests={}, num_bytes=0)
            return Published(update=update, probe_logprobs=[[0.0]])
        if name == "save" and self.luck.strikes():
            raise CheckpointError("the disk is full")
        if name == "update" and self.fails is not None:
            raise self.fails
        return {"objective/loss": 0.0}

    def kill(self) -> None:
        self.devices.leave(self.name)


class Job:
    """A colocated run over fakes."""

    def __init__(self, engines: int, seed: int = 0, trouble: float = 0.0) -> None:
        self.devices, self.luck = Devices(), Luck(seed, trouble)
        self.shards = [Shard(rank, self.devices, self.luck) for rank in range(2)]
        self.learner = ColocatedLearner(self.shards, None)
        self.restarts = Restarts(lambda line: None, most=10**6)
        self.count, self.engines, self.saved = engines, dict[int, Engine](), 0
        self.measured: list[int] = []

    async def start(self) -> None:
        await self.learner.leave()
        turn = self.learner.engines_turn
        async with turn.joining():
            first = [self._engine(index, 0) for index in range(self.count)]
            self.rollouts = RemoteRollouts(
                first, self._again, self.restarts, timeout_s=400.0, turn=turn
            )
            self.learner.share_with(self.rollouts)
        self.policy = RemotePolicy(
            self.learner, self.rollouts, self.restarts, probe=[[1, 2]], tolerance=0.1
        )

    def _engine(self, index: int, number: int) -> Engine:
        self.engines[index] = Engine(f"engine {index}/{number}", self.devices, self.luck)
        return self.engines[index]

    async def _again(self, index: int, number: int) -> Engine:
        engine = self._engine(index, number)
        await asyncio.sleep(self.luck.seconds(20))
        if self.luck.strikes():
            engine.kill()
            raise EngineError("vLLM did not start")
        return engine

    async def kill_now_and_then(self) -> None:
        while True:
            await asyncio.sleep(1 + self.luck.seconds(40))
            self.luck.one_of(list(self.engines.values())).kill()

    async def run(self, max_staleness: int, steps: int) -> list[Step]:
        """The loop, a checkpoint every step, and a measurement beside it."""
        found: list[Step] = []

        async def on_step(step: Step) -> None:
            found.append(step)
            try:
                await self.learner.call("save", "folder")
                self.saved += 1
            except CheckpointError:
                pass

        async def measure(step: int) -> Mapping[str, float]:
            group = await self.rollouts.sample(_task(-1, step), samples=1, temperature=1.0)
            self.measured.append(len(group.episodes))
            return {}

        await self.start()
        await self.policy.publish(0)
        loop = Loop(
            _config(max_staleness, steps),
            rollouts=self.rollouts,
            policy=self.policy,
            course=Course(task_at=_task, measure=measure),
        )
        killing = asyncio.create_task(self.kill_now_and_then()) if self.luck.trouble else None
        try:
            await loop.run(on_step)
        finally:
            if killing is not None:
                killing.cancel()
            await self.rollouts.close()
        return found


def _task(position: int, step: int) -> Task:
    question = (Message(role="user", content="?"),)
    return Task(
        id=f"t/{position}", kind=TaskKind.math, messages=question, reference="1", token_budget=3
    )


def _config(max_staleness: int, steps: int) -> TrainConfig:
    rollout = RolloutConfig(groups_per_step=3, samples_per_group=2, max_staleness=max_staleness)
    return TrainConfig(
        steps=steps,
        rollout=rollout,
        objective=ObjectiveConfig(minibatches=1),
        cluster=ClusterConfig(placement=Placement.colocated),
    )


def _within(main: Coroutine[Any, Any, Any]) -> Coroutine[Any, Any, Any]:
    """Raises TimeoutError for what would take more than 10 hours, as a deadlock does."""
    return asyncio.wait_for(main, 36_000)


@settings(max_examples=40, deadline=None)
@given(
    seed=st.integers(0, 2**32),
    trouble=st.sampled_from([0.0, 0.05, 0.2]),
    engines=st.integers(1, 3),
    max_staleness=st.integers(0, 2),
)
def test_one_side_has_the_devices_whatever_fails(
    simulate: Any, seed: int, trouble: float, engines: int, max_staleness: int
) -> None:
    async def main() -> None:
        job = Job(engines, seed, trouble)
        steps = await job.run(max_staleness, steps=4)
        assert not job.devices.faults
        assert [step.number for step in steps] == [1, 2, 3, 4]
        trained = [group.task.id for step in steps for group in step.groups]
        assert len(trained) == len(set(trained)) == 12
        assert all(step.metrics["staleness/max"] <= max_staleness for step in steps)
        assert job.measured or max_staleness
        if not trouble:
            assert (job.saved, job.restarts.total) == (4, 0)
            assert job.devices.turns == [LEARNER] + ["engines", LEARNER] * 9 + ["engines"]

    simulate(_within(main()))


def test_requests_outlive_the_learners_turn(simulate: Any) -> None:
    async def main() -> None:
        job = Job(1)
        await job.start()
        await job.policy.publish(0)
        group = asyncio.create_task(job.rollouts.sample(_task(1, 0), samples=4, temperature=1.0))
        await asyncio.sleep(2)
        await job.policy.update([], [])
        await asyncio.sleep(100)
        assert not group.done() and not job.devices.faults
        await job.policy.publish(1)
        versions = {v for e in (await group).episodes for v in e.completion.versions}
        assert versions == {0, 1}
        await job.rollouts.close()

    simulate(_within(main()))


def test_an_engine_that_is_lost_in_the_learners_turn_starts_in_the_next_one(simulate: Any) -> None:
    async def main() -> None:
        job = Job(2)
        await job.start()
        await job.policy.publish(0)
        await job.policy.update([], [])
        job.engines[1].kill()
        await asyncio.sleep(1000)  # noticed by now
        assert job.restarts.total == 1 and job.engines[1].name == "engine 1/0"
        await job.policy.publish(1)
        while len(job.rollouts.workers) < 2:
            await asyncio.sleep(1)
        assert job.engines[1].name == "engine 1/1" and job.engines[1].version == 1
        assert not job.devices.faults
        await job.rollouts.close()

    simulate(_within(main()))


def test_the_learner_waits_for_an_engine_that_is_being_started(simulate: Any) -> None:
    async def main() -> None:
        job = Job(2)
        await job.start()
        await job.policy.publish(0)
        job.engines[0].kill()
        await job.rollouts.busy_seconds()  # notices
        await asyncio.sleep(0.01)
        assert job.engines[0].name == "engine 0/1" and len(job.rollouts.workers) == 1
        await job.policy.update([], [])
        assert len(job.rollouts.workers) == 2 and not job.engines[0].awake.is_set()
        await job.policy.publish(1)
        assert {engine.version for engine in job.engines.values()} == {1}
        assert not job.devices.faults
        await job.rollouts.close()

    simulate(_within(main()))


@pytest.mark.parametrize("error", [FloatingPointError("nan"), PartLost("learner shard 0", "oom")])
def test_an_update_that_fails_leaves_the_engines_asleep(simulate: Any, error: Exception) -> None:
    async def main() -> None:
        job = Job(2)
        job.shards[0].fails = error
        with pytest.raises(type(error)):
            await job.run(1, steps=2)
        assert not job.devices.faults
        assert not any(engine.awake.is_set() for engine in job.engines.values())

    simulate(_within(main()))


def test_weights_that_cannot_be_published_end_the_run_and_wake_nobody(simulate: Any) -> None:
    async def main() -> None:
        job = Job(1)
        await job.start()
        await job.policy.publish(0)
        await job.policy.update([], [])

        async def full(method: str, name: str, *args: Any) -> Any:
            if name == "publish":
                raise OSError(28, "No space left on device")
            return {}

        job.shards[1].call = full  # type: ignore[method-assign]
        with pytest.raises(RunFailed, match="cannot be published"):
            await job.policy.publish(1)
        assert not job.engines[0].awake.is_set() and not job.devices.faults
        await job.rollouts.close()

    simulate(_within(main()))


def test_a_checkpoint_in_the_learners_turn_does_not_end_it(simulate: Any) -> None:
    async def main() -> None:
        job = Job(1)
        await job.start()
        await job.policy.publish(0)
        await job.policy.update([], [])
        await job.learner.call("save", "folder")
        await job.policy.publish(1)
        assert job.shards[0].done == [
            *("offload", "reload", "publish", "offload"),
            *("reload", "update", "save", "release", "publish", "offload"),
        ]
        assert job.engines[0].version == 1
        await job.rollouts.close()

    simulate(_within(main()))


def test_no_checkpoint_cuts_the_samples_of_a_synchronous_step(simulate: Any) -> None:
    async def main() -> None:
        for max_staleness in (0, 1):
            job = Job(2)
            await job.run(max_staleness, steps=4)
            cut = sum(engine.cut for engine in job.engines.values())
            assert (job.saved, cut > 0) == (4, max_staleness > 0)

    simulate(_within(main()))


def test_a_run_that_is_stopped_in_a_checkpoint_does_not_wake_the_engines(simulate: Any) -> None:
    async def main() -> None:
        job = Job(1)
        await job.start()
        await job.policy.publish(0)
        saving = asyncio.create_task(job.learner.call("save", "folder"))
        while "save" not in job.shards[0].done:
            await asyncio.sleep(0.01)
        saving.cancel()
        await asyncio.wait([saving])
        assert saving.cancelled() and job.shards[0].done[-1] == "save"
        assert not job.engines[0].awake.is_set()
        await job.rollouts.close()

    simulate(_within(main()))


def test_engines_of_their_own_start_at_any_time() -> None:
    async def main() -> None:
        turn = EnginesTurn()
        assert turn.now
        async with turn.joining():
            pass

    asyncio.run(main())


def test_colocated_engines_and_shards_are_on_the_same_devices() -> None:
    cluster = ClusterConfig(placement=Placement.colocated, rollout_workers=2)
    engine = EngineConfig(tensor_parallel_size=2)
    parallel = ParallelConfig(shards=4)
    assert TrainConfig(cluster=cluster, engine=engine, parallel=parallel).parallel.shards == 4
    with pytest.raises(ValueError, match=r"parallel\.shards=1 must be the 4 devices of cluster\."):
        TrainConfig(cluster=cluster, engine=engine)
    kept = EngineConfig(tensor_parallel_size=2, recompute_kv=False)
    with pytest.raises(ValueError, match=r"engine\.recompute_kv=false: .*colocated drops keys"):
        TrainConfig(cluster=cluster, engine=kept, parallel=parallel)
