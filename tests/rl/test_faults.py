"""Processes that really die or hang: Ray actors, most with a fake where the engine would be."""

import asyncio
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import psutil
import pytest
import ray
import torch
from safetensors.torch import load_file

from model.load import load_k2
from model.policy import Policy
from model.send_weights import WeightSender
from model.tiny import create_tiny
from rewards.config import RewardsConfig
from rewards.score import Score
from rewards.task import Message, Task, TaskKind, Transcript
from rl.batch import Batch, pack
from rl.cluster import Cluster
from rl.config import ClusterConfig, TrainConfig
from rl.errors import CrashLoop, PartLost, RunFailed
from rl.ray_parts import Actor
from rl.remote import RemoteLearner
from rl.reward_watch import RewardWatch
from rl.reward_worker import RewardWorker
from rl.rollout_seats import Offer, RemoteRollouts
from rl.sample import samples_of
from rl.supervision import Restarts
from rollout.config import Dtype, EngineConfig
from rollout.episode import Completion, Episode, Group, StopReason


class Engine:
    """A rollout worker without an engine: tells its process and the version it serves."""

    def __init__(self, folder: Path) -> None:
        self._folder, self._version = folder, -1

    async def sample(self, task: Task, *_: object) -> tuple[int, int]:
        (self._folder / f"{task.id}.{os.getpid()}").touch()
        if task.id == "fatal":
            os.kill(os.getpid(), signal.SIGKILL)
        while task.id == "wait" and not (self._folder / "go").exists():
            await asyncio.sleep(0.02)
        return os.getpid(), self._version

    async def hang(self) -> None:
        time.sleep(600)  # and with it everything else of this process

    async def receive(self, update: Any, probe: object) -> list[list[float]]:
        self._version = update.version
        return [[0.0]]

    async def answer(self, within_s: float) -> int:
        return os.getpid()

    async def busy_seconds(self) -> float:
        return 1.0


class Plane:
    """Both ends of the way that samples take: a rollout worker's and a learner shard's."""

    def sample(self, tokens: int) -> Group:
        done = Completion(
            prompt_ids=[1, 2],
            token_ids=[n % 1000 for n in range(tokens)],
            logprobs=[-0.25] * tokens,
            versions=[3] * (tokens - 1) + [4],
            stop_reason=StopReason.stop,
            temperature=1.0,
        )
        words = Transcript(messages=(), response="x", response_tokens=tokens, truncated=False)
        episode = Episode(completion=done, transcript=words, score=Score(total=1.0))
        return Group(task=_task("plane"), episodes=(episode, episode))

    def call(self, method: str, batch: Batch) -> dict[str, torch.Tensor]:
        return {name: getattr(batch, name).clone() for name in method.split()}


class Shard:
    """A learner shard that waits for another one, or dies."""

    def call(self, method: str, *args: object) -> object:
        if method == "pid":
            return os.getpid()
        if method == "die":
            os.kill(os.getpid(), signal.SIGKILL)
        time.sleep(600)  # in a collective
        return None


@pytest.fixture(scope="module")
def runner() -> Iterator[asyncio.Runner]:
    with asyncio.Runner() as runner:
        yield runner


@pytest.fixture(scope="module", autouse=True)
def cluster(runner: asyncio.Runner) -> Iterator[Cluster]:
    config = TrainConfig(
        engine=EngineConfig(
            dtype=Dtype.float32, max_model_len=256, max_num_seqs=8, kv_cache_bytes=1 << 26
        ),
        cluster=ClusterConfig(engine_timeout_s=8.0),
    )
    cluster = Cluster(config)
    yield cluster
    runner.run(cluster.shutdown())


@pytest.mark.parametrize("tokens", [3, 40_000])  # in the message, and in the object store
def test_samples_reach_a_shard_as_they_left_the_worker(runner: asyncio.Runner, tokens: int) -> None:
    async def main() -> None:
        plane = Actor("plane", Plane)
        group = await plane.call("sample", tokens)
        done = group.episodes[0].completion
        for array, dtype in ((done.token_ids, "int32"), (done.logprobs, "float32")):
            assert (array.dtype, len(array)) == (dtype, tokens)
            assert not array.flags.writeable and not array.flags.owndata
        assert done.versions == [3] * (tokens - 1) + [4]
        batch = pack(samples_of(group, [1.0, 0.0], oldest=4))
        learner = RemoteLearner([plane], None, ray.put)
        names = "ids loss_mask behaviour_logprobs versions"
        there = await learner.call(names, batch)
        for name in names.split():
            here = getattr(batch, name)
            assert there[name].dtype == here.dtype and torch.equal(there[name], here)
        plane.kill()

    runner.run(main())


def _task(name: str) -> Task:
    question = Message(role="user", content="?")
    return Task(id=name, kind=TaskKind.math, messages=(question,), reference="1", token_budget=8)


def _offer(version: int) -> Offer:
    update: Any = SimpleNamespace(version=version)  # read without torch, which takes seconds
    return Offer(update=update, probe=[[1, 2]], logprobs=[[0.0]], tolerance=0.1)


async def _serve(rollouts: RemoteRollouts, version: int) -> None:
    async def offer() -> Offer:
        return _offer(version)

    await rollouts.serve(offer)


async def _until(condition: Callable[[], bool], what: str) -> None:
    deadline = time.monotonic() + 120
    while not condition():
        assert time.monotonic() < deadline, what
        await asyncio.sleep(0.02)


def _gone(pid: int) -> bool:
    return not psutil.pid_exists(pid) or psutil.Process(pid).status() == psutil.STATUS_ZOMBIE


class Fleet:
    """Rollouts over real processes."""

    def __init__(self, folder: Path, said: list[str], *, timeout_s: float = 60.0) -> None:
        async def start(index: int, number: int) -> Actor:
            worker = Actor(f"rollout worker {index}", Engine, folder, max_concurrency=1000)
            await worker.call("busy_seconds")
            return worker

        self.start = start
        self.restarts = Restarts(said.append, most=1)
        self.timeout_s = timeout_s

    async def up(self, count: int) -> RemoteRollouts:
        workers = [await self.start(index, 0) for index in range(count)]
        return RemoteRollouts(workers, self.start, self.restarts, timeout_s=self.timeout_s)


async def _close(rollouts: RemoteRollouts) -> None:
    await rollouts.close()
    for worker in rollouts.workers:
        worker.kill()


def test_a_killed_rollout_worker_is_replaced_and_its_group_is_sampled_again(
    runner: asyncio.Runner, tmp_path: Path
) -> None:
    said: list[str] = []

    async def main() -> None:
        fleet = Fleet(tmp_path, said)
        rollouts = await fleet.up(1)
        await _serve(rollouts, 3)
        group = asyncio.create_task(rollouts.sample(_task("wait"), samples=2, temperature=1.0))
        await _until(lambda: bool(list(tmp_path.glob("wait.*"))), "the group is under way")
        first = int(next(tmp_path.glob("wait.*")).suffix[1:])
        os.kill(first, signal.SIGKILL)
        (tmp_path / "go").touch()
        answer: Any = await group
        assert answer[0] != first and answer[1] == 3  # the version that was published before
        assert fleet.restarts.counts == {"rollout worker 0": 1}
        assert f"process {first}: killed, or ended by itself" in said[0]
        await _close(rollouts)

    runner.run(asyncio.wait_for(main(), 300))


def test_a_worker_that_hangs_is_killed_and_replaced(
    runner: asyncio.Runner, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("rl.rollout_seats.PATIENCE_S", 0.5)
    said: list[str] = []

    async def main() -> None:
        rollouts = await Fleet(tmp_path, said, timeout_s=1.0).up(1)
        await _serve(rollouts, 1)
        (worker,) = rollouts.workers
        pid: int = await worker.call("answer", 1.0)
        hanging = asyncio.create_task(worker.call("hang"))
        answer: Any = await rollouts.sample(_task("t"), samples=2, temperature=1.0)
        assert answer[0] != pid and answer[1] == 1
        assert said[0] == "rollout worker 0 was lost: no answer for 1.5 s"
        await _until(lambda: _gone(pid), "the process that hung is gone")
        with pytest.raises(PartLost):
            await hanging
        await _close(rollouts)

    runner.run(asyncio.wait_for(main(), 300))


def test_a_group_that_kills_every_worker_ends_the_run(
    runner: asyncio.Runner, tmp_path: Path
) -> None:
    async def main() -> None:
        rollouts = await Fleet(tmp_path, []).up(1)
        await _serve(rollouts, 1)
        with pytest.raises(CrashLoop, match="rollout worker 0 was lost 2 times"):
            await rollouts.sample(_task("fatal"), samples=2, temperature=1.0)
        assert len(list(tmp_path.glob("fatal.*"))) == 2
        await _close(rollouts)

    runner.run(asyncio.wait_for(main(), 300))


def test_a_killed_shard_ends_the_others_that_wait_for_it(runner: asyncio.Runner) -> None:
    async def main() -> None:
        shards = [Actor(f"learner shard {rank}", Shard) for rank in range(2)]
        learner = RemoteLearner(shards, None, ray.put)
        pids = await learner.call_all("pid")
        waiting = asyncio.create_task(learner.call_all("update"))
        await asyncio.sleep(0.1)
        os.kill(pids[1], signal.SIGKILL)
        with pytest.raises(PartLost, match=f"learner shard 1 was lost: process {pids[1]}"):
            await waiting
        await _until(lambda: all(_gone(pid) for pid in pids), "both shards are gone")

    runner.run(asyncio.wait_for(main(), 300))


STARVED = """
import asyncio, logging, ray
from rl.errors import PartLost
from rl.ray_parts import Actor

class Shard:
    def work(self):
        import time
        time.sleep(60)

async def main():
    try:
        await Actor("learner shard 0", Shard).call("work")
    except PartLost as lost:
        print(lost)

ray.init(address="local", num_cpus=1, object_store_memory=80_000_000, include_dashboard=False,
         log_to_driver=False, logging_level=logging.ERROR)
asyncio.run(main())
ray.shutdown()
"""


def test_a_part_that_ray_kills_because_memory_runs_out_is_lost() -> None:
    """Ray's own killing, which ends a process before the kernel does."""
    limits = {"RAY_memory_monitor_refresh_ms": "100", "RAY_memory_usage_threshold": "0.01"}
    found = subprocess.run(
        [sys.executable, "-c", STARVED],
        env=os.environ | limits,
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert "learner shard 0 was lost: Memory usage " in found.stdout, found.stderr[-2000:]


def test_a_part_that_cannot_be_made_is_no_loss(runner: asyncio.Runner) -> None:
    class Unmade:
        def __init__(self) -> None:
            raise ValueError("no such plug-in")

        def ready(self) -> None:
            pass

    async def main() -> None:
        with pytest.raises(RunFailed, match=r"reward worker 7 cannot start: .*no such") as failed:
            await Actor("reward worker 7", Unmade).call("ready")
        assert not isinstance(failed.value, PartLost)

    runner.run(asyncio.wait_for(main(), 300))


def test_restarts_of_reward_workers_are_counted(runner: asyncio.Runner) -> None:
    async def main() -> None:
        restarts = Restarts(lambda line: None, most=3)
        judge = Actor("reward worker 0", RewardWorker, RewardsConfig(), max_restarts=-1)
        first: int = await judge.call("ready")
        watch = RewardWatch([judge], restarts)
        watch.start(lambda error: None)
        await asyncio.sleep(0.5)
        os.kill(first, signal.SIGKILL)
        while not restarts.total:
            await asyncio.sleep(0.05)
        assert restarts.counts == {"reward worker 0": 1}
        assert await judge.call("ready") != first
        watch.stop()
        judge.kill()

    runner.run(asyncio.wait_for(main(), 300))


def _logprobs(model: Path, ids: list[int]) -> list[list[float]]:
    """The learner's, of every token but the first."""
    mask = torch.ones(len(ids), dtype=torch.bool)
    mask[0] = False
    with torch.no_grad():
        found = Policy(load_k2(model))(torch.tensor(ids), mask, [len(ids)], torch.ones(1))
    return [found.logprobs.tolist()]


@pytest.mark.long
def test_a_real_engine_that_hangs_is_killed_and_the_next_one_has_the_present_weights(
    runner: asyncio.Runner, cluster: Cluster, tmp_path: Path
) -> None:
    """vLLM's core is stopped while a group is under way; the run's own weights are published."""
    old, new = tmp_path / "old", tmp_path / "new"
    for seed, model in enumerate((old, new)):
        create_tiny(model, ["one two three 1 + 2 = 3"] * 20, seed)
    sender = WeightSender(root=tmp_path)
    tensors = {
        k: v for file in sorted(new.glob("*.safetensors")) for k, v in load_file(file).items()
    }
    probe = list(range(5, 45))
    offer = Offer(
        update=sender.publish(tensors.items(), 6),
        probe=[probe],
        logprobs=_logprobs(new, probe),
        tolerance=1e-3,
    )

    async def main() -> None:
        rollouts = await cluster.place_rollouts(old, seed=1)

        async def publish() -> Offer:
            return offer

        (report,) = await rollouts.serve(publish)
        assert report.typical < 1e-3
        parts = psutil.Process().children(recursive=True)
        (core,) = [part for part in parts if part.name().startswith("VLLM")]
        core.suspend()
        task = replace(_task("real"), token_budget=64)
        group = await rollouts.sample(task, samples=4, temperature=1.0)
        assert [set(each.completion.versions) for each in group.episodes] == [{6}] * 4
        assert cluster.restarts.counts == {"rollout worker 0": 1}
        assert not core.is_running()

    runner.run(asyncio.wait_for(main(), 300))
    sender.close()
