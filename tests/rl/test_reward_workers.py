"""Reward workers as real Ray actors: scores, errors, a process that is really killed."""

import asyncio
import os
import signal
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from rewards.config import RewardsConfig
from rewards.errors import RewardError
from rewards.task import Message, Task, TaskKind, Transcript
from rl.cluster import Cluster
from rl.config import TrainConfig
from rl.ray_parts import RewardCalls
from rl.reward_pool import RewardPool, quick_kinds

PLUGIN = """
import os
import time
from pathlib import Path

FOLDER = Path(__file__).parent

def steady(task, transcript):
    (FOLDER / f"{task.id}.pid").write_text(str(os.getpid()))
    while transcript.response == "wait" and not (FOLDER / "go").exists():
        time.sleep(0.02)
    return 0.75

def deadly(task, transcript):
    os.kill(os.getpid(), 9)
"""


def _task(name: str, kind: TaskKind = TaskKind.open) -> Task:
    question = Message(role="user", content="2 + 3 =")
    return Task(id=name, kind=kind, messages=(question,), reference="5", token_budget=8)


def _said(response: str) -> Transcript:
    return Transcript(messages=(), response=response, response_tokens=2, truncated=False)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("plugin")
    (folder / "mine.py").write_text(PLUGIN)
    return folder


@pytest.fixture(scope="module")
def runner() -> Iterator[asyncio.Runner]:
    with asyncio.Runner() as runner:
        yield runner


@pytest.fixture(scope="module")
def rewards(folder: Path) -> RewardsConfig:
    return RewardsConfig(
        mixture={
            "open": {f"{folder}/mine.py:steady": 1.0},
            "agent": {f"{folder}/mine.py:deadly": 1.0},
        },
        slow_s=0.3,
    )


@pytest.fixture(scope="module")
def cluster(rewards: RewardsConfig, runner: asyncio.Runner) -> Iterator[Cluster]:
    cluster = Cluster(TrainConfig(rewards=rewards))
    yield cluster
    runner.run(cluster.shutdown())


@pytest.fixture
def pool(cluster: Cluster, rewards: RewardsConfig) -> RewardPool:
    return RewardPool(
        [RewardCalls(judge) for judge in cluster.judges],
        concurrency=rewards.concurrency,
        quick=quick_kinds(rewards),
    )


def _pid(folder: Path, name: str) -> int:
    path = folder / f"{name}.pid"
    deadline = time.monotonic() + 60
    while not (path.exists() and path.read_text()):
        assert time.monotonic() < deadline, "the plug-in was not called"
        time.sleep(0.02)
    return int(path.read_text())


def test_episodes_of_several_kinds(pool: RewardPool, runner: asyncio.Runner) -> None:
    async def main() -> list[float]:
        answers = [(TaskKind.math, rf"\boxed{{{n}}}") for n in range(20)]
        answers.append((TaskKind.open, "hello"))
        scores = [pool.score(_task("a", kind), _said(text)) for kind, text in answers]
        return [score.total for score in await asyncio.gather(*scores)]

    totals = runner.run(main())
    assert totals == [0.0] * 5 + [1.0] + [0.0] * 14 + [0.75]


def test_our_own_mistake_is_an_error(pool: RewardPool, runner: asyncio.Runner) -> None:
    task = Task(id="bad", kind=TaskKind.math, messages=(), reference=" ", token_budget=8)
    with pytest.raises(RewardError, match="task bad: "):
        runner.run(pool.score(task, _said(r"\boxed{5}")))


def test_a_slow_reward_is_named_while_it_runs(
    pool: RewardPool, cluster: Cluster, runner: asyncio.Runner, folder: Path
) -> None:
    async def main() -> None:
        score = asyncio.create_task(pool.score(_task("slow"), _said("wait")))
        while not (found := await cluster.slow_rewards()):
            await asyncio.sleep(0.05)
        (slow,) = found
        assert (slow.task_id, slow.part, slow.running) == ("slow", "steady", True)
        (folder / "go").touch()
        assert (await score).total == 0.75
        assert await cluster.slow_rewards() == []
        (folder / "go").unlink()

    runner.run(asyncio.wait_for(main(), 60))


def test_an_answer_that_comes_late_names_its_slow_reward_all_the_same(
    pool: RewardPool,
    cluster: Cluster,
    runner: asyncio.Runner,
    folder: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("rl.reward_watch.SLOW_ANSWER_S", 0.0)  # no answer is there in time

    async def main() -> None:
        score = asyncio.create_task(pool.score(_task("late"), _said("wait")))
        while not (found := await cluster.slow_rewards()):
            await asyncio.sleep(0.05)
        assert [slow.task_id for slow in found] == ["late"]
        (folder / "go").touch()
        await score
        (folder / "go").unlink()

    runner.run(asyncio.wait_for(main(), 60))


def test_a_killed_worker_is_replaced_and_its_episodes_are_scored(
    pool: RewardPool, runner: asyncio.Runner, folder: Path
) -> None:
    async def main() -> None:
        waiting = [asyncio.create_task(pool.score(_task(f"k{n}"), _said("wait"))) for n in range(3)]
        killed = await asyncio.to_thread(_pid, folder, "k2")
        os.kill(killed, signal.SIGKILL)
        (folder / "go").touch()
        assert [(await each).total for each in waiting] == [0.75] * 3
        assert _pid(folder, "k2") != killed

    runner.run(asyncio.wait_for(main(), 120))


def test_an_episode_that_kills_its_worker_again_is_an_error(
    pool: RewardPool, runner: asyncio.Runner
) -> None:
    async def main() -> None:
        with pytest.raises(RewardError, match="scoring fatal ended two reward workers"):
            await pool.score(_task("fatal", TaskKind.agent), _said("x"))
        score = await pool.score(_task("after", TaskKind.math), _said(r"\boxed{5}"))
        assert score.total == 1.0

    runner.run(asyncio.wait_for(main(), 120))
