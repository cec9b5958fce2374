"""Supervision with workers in this process: what is done again, and when it is enough."""

import asyncio
import io
from collections.abc import Callable, Coroutine
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any, ClassVar

import pytest
from rich.console import Console

from model.send_weights import WeightUpdate
from rewards.task import Message, Task, TaskKind
from rl.batch import pack
from rl.checkpoint import RunState
from rl.config import ClusterConfig, TrainConfig, WandbMode
from rl.errors import BadInput, CrashLoop, PartLost, RunFailed
from rl.evaluate import PassRate
from rl.learner_spec import OtherShardFailed
from rl.metrics import MetricsLog, read_metrics
from rl.part import watch_head
from rl.progress import Display
from rl.recipe import from_run, to_yaml
from rl.remote import RemoteLearner, RemotePolicy
from rl.reward_watch import RewardWatch
from rl.rollout_seats import Offer, RemoteRollouts
from rl.run_folder import RunFolder
from rl.sample import supervised_sample
from rl.self_critique import CritiqueState
from rl.supervision import Restarts
from rl.train import _reinforce, run_parts
from rollout.errors import EngineError, StaleWeightsError
from rollout.starts import Start


class Worker:
    """Answers a group with its name, the version it serves, and the task's."""

    def __init__(self, name: str) -> None:
        self.name = name
        self.version: int | None = None
        self.dead: Exception | None = None
        self.hangs: set[str] = set()
        self.wrong = False
        self.killed = False
        self.calls: list[str] = []
        self.starts: dict[str, Start] = {}  # of groups, by task
        self.gate = asyncio.Event()
        self.gate.set()
        self.busy = 0.0

    async def call(self, method: str, *args: Any) -> Any:
        self.calls.append(method)
        if method in self.hangs:
            await asyncio.Event().wait()
        if method == "sample":
            self.starts[args[0].id] = args[4]
            await self.gate.wait()
        if self.dead is not None:
            raise self.dead
        match method:
            case "receive":
                self.version = args[0].version
                return [[0.5 if self.wrong else 0.0]]
            case "busy_seconds":
                return self.busy
            case "sample":
                if args[0].id == "bad":
                    raise ValueError("prompt too long")
                return (self.name, self.version, args[0].id)

    def kill(self) -> None:
        self.killed = True

    def die(self, why: str = "killed") -> None:
        self.dead = PartLost(self.name, why)
        self.gate.set()


class Fleet:
    """Rollouts over fakes, and what was said of them."""

    def __init__(self, count: int, *, most: int = 3, timeout_s: float = 60.0) -> None:
        self.said: list[str] = []
        self.restarts = Restarts(self.said.append, most=most, logs="/logs")
        self.started: list[Worker] = []
        self.prepare: Callable[[Worker], None] = lambda worker: None
        self.workers = [Worker(f"worker {index}/0") for index in range(count)]
        self.rollouts = RemoteRollouts(
            self.workers, self._start, self.restarts, timeout_s=timeout_s
        )

    async def _start(self, index: int, number: int) -> Worker:
        worker = Worker(f"worker {index}/{number}")
        self.started.append(worker)
        self.prepare(worker)
        await asyncio.sleep(0)
        if "start" in worker.hangs:
            raise EngineError("vLLM did not start")
        return worker

    async def serve(self, version: int) -> int:
        async def offer() -> Offer:
            return _offer(version)

        return len(await self.rollouts.serve(offer))

    async def sample(self, name: str = "t") -> Any:
        return await self.rollouts.sample(_task(name), samples=2, temperature=1.0)


def _offer(version: int) -> Offer:
    update = WeightUpdate(version=version, files=[], digests={}, num_bytes=0)
    return Offer(update=update, probe=[[1, 2]], logprobs=[[0.0]], tolerance=0.1)


def _task(name: str) -> Task:
    question = Message(role="user", content="?")
    return Task(id=name, kind=TaskKind.math, messages=(question,), reference="1", token_budget=8)


def _run(main: Callable[[], Coroutine[None, None, None]]) -> None:
    asyncio.run(asyncio.wait_for(main(), 30))


def _together(fleet: Fleet, count: int) -> list["asyncio.Task[Any]"]:
    starts = [Start(seed=place, place=place, together=count) for place in range(count)]
    return [
        asyncio.create_task(
            fleet.rollouts.sample(_task(f"t{start.place}"), samples=2, temperature=1.0, start=start)
        )
        for start in starts
    ]


def test_groups_that_start_together_go_to_workers_by_their_places() -> None:
    async def main() -> None:
        fleet = Fleet(2)
        await fleet.serve(4)
        busy = [asyncio.create_task(fleet.sample("busy")) for _ in range(3)]
        await asyncio.gather(*busy, *_together(fleet, 5))
        first, second = (
            {name: (s.seed, s.place, s.together) for name, s in worker.starts.items() if s}
            for worker in fleet.workers
        )
        assert first == {"t0": (0, 0, 3), "t2": (2, 1, 3), "t4": (4, 2, 3)}
        assert second == {"t1": (1, 0, 2), "t3": (3, 1, 2)}
        await fleet.rollouts.close()

    _run(main)


def test_what_a_lost_worker_was_to_start_together_starts_alone_on_another() -> None:
    async def main() -> None:
        fleet = Fleet(2)
        await fleet.serve(4)
        for worker in fleet.workers:
            worker.gate.clear()
        groups = _together(fleet, 4)
        await asyncio.sleep(0.01)
        fleet.workers[0].die()
        fleet.workers[1].gate.set()
        assert [name for _, _, name in await asyncio.gather(*groups)] == ["t0", "t1", "t2", "t3"]
        again = {
            name: s for w in (fleet.workers[1], *fleet.started) for name, s in w.starts.items()
        }
        assert again["t0"] == Start(seed=0) and again["t2"] == Start(seed=2)
        assert again["t1"].together == 2
        await fleet.rollouts.close()

    _run(main)


def test_groups_that_start_together_wait_for_the_worker_of_their_place() -> None:
    async def main() -> None:
        fleet = Fleet(2)
        await fleet.serve(4)
        fleet.workers[0].die()
        await fleet.rollouts.busy_seconds()
        done = await asyncio.gather(*_together(fleet, 4))
        assert [name for name, _, _ in done] == ["worker 0/1", "worker 1/0"] * 2
        await fleet.rollouts.close()

    _run(main)


def test_groups_of_a_lost_worker_are_sampled_again_on_another() -> None:
    async def main() -> None:
        fleet = Fleet(2)
        await fleet.serve(4)
        for worker in fleet.workers:
            worker.gate.clear()
        groups = [asyncio.create_task(fleet.sample(f"t{n}")) for n in range(4)]
        await asyncio.sleep(0.01)
        fleet.workers[0].die()
        fleet.workers[1].gate.set()
        done = await asyncio.gather(*groups)
        assert sorted(name for _, _, name in done) == ["t0", "t1", "t2", "t3"]
        assert all(version == 4 for _, version, _ in done)
        assert fleet.workers[0].killed and not fleet.workers[1].killed
        assert fleet.restarts.counts == {"rollout worker 0": 1}
        assert fleet.said[0] == "rollout worker 0 was lost: killed"
        await fleet.rollouts.close()

    _run(main)


def test_the_only_worker_is_waited_for_and_serves_the_current_version() -> None:
    async def main() -> None:
        fleet = Fleet(1)
        await fleet.serve(7)
        fleet.workers[0].die()
        assert await fleet.sample() == ("worker 0/1", 7, "t")
        assert fleet.started[0].calls == ["receive", "sample"]  # weights first
        assert fleet.said[1].startswith("rollout worker 0 is back after ")
        assert fleet.restarts.total == 1
        await fleet.rollouts.close()

    _run(main)


def test_a_new_version_passes_over_a_lost_worker_which_joins_with_it() -> None:
    async def main() -> None:
        fleet = Fleet(2)
        await fleet.serve(1)
        fleet.workers[1].dead = EngineError("the engine's core process died")
        assert await fleet.serve(2) == 1  # one report: the other died of it
        while len(fleet.rollouts.workers) < 2:
            await asyncio.sleep(0.001)
        assert [fleet.workers[0].version, fleet.started[0].version] == [2, 2]
        await fleet.rollouts.close()

    _run(main)


def test_a_worker_that_joins_while_a_version_is_published_waits_for_that_version() -> None:
    async def main() -> None:
        fleet = Fleet(2)
        await fleet.serve(1)
        fleet.workers[0].die()
        publishing = asyncio.Event()

        async def offer() -> Offer:
            assert await fleet.sample() == ("worker 1/0", 1, "t")  # the lost one is noticed
            publishing.set()
            for _ in range(20):  # the new worker is up long before the weights are
                await asyncio.sleep(0)
            assert fleet.started[0].version is None
            return _offer(2)

        await fleet.rollouts.serve(offer)
        while len(fleet.rollouts.workers) < 2:
            await asyncio.sleep(0.001)
        assert fleet.started[0].version == 2
        await fleet.rollouts.close()

    _run(main)


@pytest.mark.parametrize("hung", ["answer", "receive", "busy_seconds"])
def test_a_worker_that_answers_nothing_is_replaced(
    hung: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def main() -> None:
        fleet = Fleet(1, timeout_s=0.05)
        await fleet.serve(1)
        fleet.workers[0].hangs = {hung, "sample"}
        group = asyncio.create_task(fleet.sample())
        await asyncio.sleep(0.001)
        if hung == "receive":
            await fleet.serve(2)
        elif hung == "busy_seconds":
            await fleet.rollouts.busy_seconds()
        while not fleet.started:
            await asyncio.sleep(0.01)
        fleet.workers[0].die()  # as the kill does: its calls end
        assert fleet.workers[0].killed
        group.cancel()
        assert (await fleet.sample())[0] == "worker 0/1"
        assert "no answer for" in fleet.said[0]
        await fleet.rollouts.close()

    monkeypatch.setattr("rl.rollout_seats.PATIENCE_S", 0.05)
    _run(main)


def test_a_group_that_takes_long_is_no_hang() -> None:
    async def main() -> None:
        fleet = Fleet(1, timeout_s=0.04)
        fleet.workers[0].gate.clear()
        group = asyncio.create_task(fleet.sample())
        await asyncio.sleep(0.3)
        fleet.workers[0].gate.set()
        assert (await group)[0] == "worker 0/0"
        assert fleet.workers[0].calls.count("answer") >= 3
        assert fleet.restarts.total == 0
        await fleet.rollouts.close()

    _run(main)


def test_a_crash_loop_ends_the_run_with_its_last_reasons() -> None:
    async def main() -> None:
        fleet = Fleet(2, most=2)
        number = iter(range(9))

        def doomed(worker: Worker) -> None:
            worker.die(f"out of memory, number {next(number)}")

        fleet.prepare = doomed
        await fleet.serve(1)
        fleet.workers[0].die("killed")
        with pytest.raises(CrashLoop, match="rollout worker 0 was lost 3 times") as ended:
            while True:
                await fleet.sample()
                await asyncio.sleep(0)
        for part in ("killed", "number 0", "number 1", "max_restarts=2", "/logs", "resume=true"):
            assert part in str(ended.value)
        with pytest.raises(CrashLoop):
            await fleet.serve(2)
        assert all(worker.killed for worker in fleet.started)
        await fleet.rollouts.close()

    _run(main)


def test_an_engine_that_does_not_start_or_computes_wrongly_is_tried_again_not_for_ever() -> None:
    async def main() -> None:
        fleet = Fleet(1, most=9)

        def spoil(worker: Worker) -> None:
            worker.wrong = len(fleet.started) == 1
            worker.hangs = {"start"} if len(fleet.started) == 2 else set()

        fleet.prepare = spoil
        await fleet.serve(1)
        fleet.workers[0].die()
        assert (await fleet.sample())[0] == "worker 0/3"
        assert fleet.restarts.total == 3
        assert fleet.started[0].killed
        await fleet.rollouts.close()

    _run(main)


def test_steps_that_are_trained_between_make_no_crash_loop() -> None:
    restarts = Restarts(lambda line: None, most=1)
    for step in (1, 2, 3, 3, 2):  # trained again or not
        restarts.lost("rollout worker 3", "killed")
        restarts.progress(step)
    restarts.lost("learner shard 0", "killed")
    restarts.lost("rollout worker 3", "killed")
    with pytest.raises(CrashLoop):
        restarts.lost("rollout worker 3", "killed")
    assert restarts.counts == {"rollout worker 3": 7, "learner shard 0": 1}


def test_steps_that_are_trained_again_are_no_progress_of_a_run_that_is_sent_back() -> None:
    restarts = Restarts(lambda line: None, most=2)
    for furthest in (14, 15, 16):  # from checkpoint 10 each time, a step further than before
        for _ in range(2):
            restarts.run_lost("learner shard 0", "out of memory")
        for step in range(11, furthest + 1):
            restarts.progress(step)
    for _ in range(2):
        restarts.run_lost("learner shard 0", "out of memory")
        for step in range(11, 17):
            restarts.progress(step)
    with pytest.raises(CrashLoop, match="the run was lost 3 times and came no further between"):
        restarts.run_lost("learner shard 0", "out of memory")


def test_a_run_that_another_shard_sends_back_each_time_is_a_crash_loop_too() -> None:
    restarts = Restarts(lambda line: None, most=2)
    restarts.driver_lost("ended by SIGKILL")
    restarts.run_lost("learner shard 7", "out of memory")
    with pytest.raises(CrashLoop, match="the run was lost 3 times") as ended:
        restarts.run_lost("learner shard 3", "killed")
    for reason in ("driver: ended by SIGKILL", "shard 7: out of memory", "shard 3: killed"):
        assert reason in str(ended.value)


def test_counts_of_an_earlier_process_go_on(tmp_path: Path) -> None:
    file, said = tmp_path / "restarts.jsonl", list[str]()

    def process(*drivers: str) -> Restarts:
        restarts = Restarts(said.append, most=3)
        restarts.keep_in(file)
        for why in drivers:
            restarts.driver_lost(why)
        return restarts

    first = process()
    for _ in range(2):
        first.lost("rollout worker 0", "killed")
    assert first.total == 2
    first.keep_in(file)  # as the run does that starts again in the same process
    assert first.total == 2
    with file.open("a") as lines:
        lines.write('{"part": "rollout worker 0", "wh')  # and is killed
    second = process("process 7 ended by SIGKILL")
    second.lost("rollout worker 1", "killed")
    assert second.total == 4
    third = process("process 7 ended by SIGKILL", "process 8 ended by SIGKILL")
    assert third.counts == {"rollout worker 0": 2, "rollout worker 1": 1, "driver": 2}
    with pytest.raises(CrashLoop, match="the run was lost 4 times"):
        process(*(f"process {pid} ended by SIGKILL" for pid in (7, 8, 9, 10)))
    # A run that begins anew takes what it has lost into its new folder.
    third.keep_in(tmp_path / "new.jsonl")
    fourth = Restarts(said.append, most=3)
    fourth.keep_in(tmp_path / "new.jsonl")
    assert fourth.counts == third.counts
    first.keep_in(tmp_path / "no such folder" / "restarts.jsonl")
    assert first.total == 2 and said[-1].endswith("cannot be written: No such file or directory")


def test_wrong_weights_at_a_publication_stop_the_run() -> None:
    async def main() -> None:
        fleet = Fleet(1)
        fleet.workers[0].wrong = True
        with pytest.raises(StaleWeightsError, match="rollout worker 0"):
            await fleet.serve(1)
        await fleet.rollouts.close()

    _run(main)


def test_a_users_mistake_is_not_tried_again() -> None:
    async def main() -> None:
        fleet = Fleet(1)
        with pytest.raises(BadInput, match="task bad: prompt too long"):
            await fleet.sample("bad")
        assert fleet.restarts.total == 0
        await fleet.rollouts.close()

    _run(main)


def test_a_failure_reaches_those_who_wait_for_an_answer() -> None:
    async def main() -> None:
        fleet = Fleet(2)
        fleet.workers[0].gate.clear()
        fleet.workers[1].gate.clear()
        groups = [asyncio.create_task(fleet.sample(f"t{n}")) for n in range(4)]
        await asyncio.sleep(0.01)
        fleet.rollouts.fail(PartLost("Ray's head", "nobody listens"))
        for group in groups:
            with pytest.raises(PartLost, match="Ray's head was lost"):
                await group
        assert not fleet.started  # nothing is started for a run that has failed
        await fleet.rollouts.close()

    _run(main)


def test_a_failure_is_heard_where_nobody_waits() -> None:
    async def main() -> None:
        fleet = Fleet(1)
        hearing = asyncio.create_task(fleet.rollouts.failed())
        await asyncio.sleep(0.01)
        assert not hearing.done()
        fleet.rollouts.fail(PartLost("Ray's head", "nobody listens"))
        with pytest.raises(PartLost, match="Ray's head was lost"):
            await hearing
        await fleet.rollouts.close()

    _run(main)


def test_a_head_that_nobody_answers_for_is_lost(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("rl.part.HEAD_LOOK_S", 0.05)

    async def main() -> None:
        server = await asyncio.start_server(lambda reader, writer: writer.close(), "127.0.0.1", 0)
        address = server.sockets[0].getsockname()
        failures: list[Exception] = []
        watching = asyncio.create_task(watch_head(address, failures.append))
        await asyncio.sleep(0.4)
        assert not watching.done() and not failures
        server.close()
        await watching
        (failure,) = failures
        assert isinstance(failure, PartLost) and str(address[1]) in str(failure)

    _run(main)


def test_seconds_of_lost_engines_still_count() -> None:
    async def main() -> None:
        fleet = Fleet(2)
        fleet.workers[0].busy, fleet.workers[1].busy = 10.0, 20.0
        assert await fleet.rollouts.busy_seconds() == 15.0
        fleet.workers[0].die()
        await fleet.rollouts.busy_seconds()
        while len(fleet.rollouts.workers) < 2:
            await asyncio.sleep(0.001)
        fleet.started[0].busy = 4.0
        assert await fleet.rollouts.busy_seconds() == 17.0
        await fleet.rollouts.close()

    _run(main)


def test_seconds_of_an_engine_that_is_lost_while_it_is_asked_count_once() -> None:
    async def main() -> None:
        fleet = Fleet(1)
        await fleet.serve(1)
        worker, answer = fleet.workers[0], asyncio.Event()
        worker.busy = 100.0
        found = [await fleet.rollouts.busy_seconds()]
        call = worker.call

        async def of_a_dead_core(method: str, *args: Any) -> Any:
            if method == "busy_seconds":
                await answer.wait()
                return 110.0
            if method == "sample":
                raise EngineError("the core died")
            return await call(method, *args)

        worker.call = of_a_dead_core  # type: ignore[method-assign]
        asked = asyncio.create_task(fleet.rollouts.busy_seconds())
        await asyncio.sleep(0)
        group = asyncio.create_task(fleet.sample())
        await asyncio.sleep(0.01)
        answer.set()
        found.append(await asked)
        await group
        fleet.started[0].busy = 3.0
        found.append(await fleet.rollouts.busy_seconds())
        assert found == sorted(found)
        await fleet.rollouts.close()

    _run(main)


class Shard:
    """A learner shard that answers, complains, is lost, or waits for the others in vain."""

    def __init__(self, does: object) -> None:
        self.does = does
        self.killed = asyncio.Event()
        self.calls: list[tuple[Any, ...]] = []

    async def call(self, method: str, *args: Any) -> Any:
        self.calls.append(args)
        await asyncio.sleep(0.01 if isinstance(self.does, PartLost) else 0)
        if isinstance(self.does, Exception):
            raise self.does
        if self.does == "waits":
            await self.killed.wait()
            raise PartLost("learner shard 2", "killed by us")
        return self.does

    def kill(self) -> None:
        self.killed.set()


def test_a_lost_shard_ends_the_others_whoever_complains_first() -> None:
    async def main() -> None:
        lost = PartLost("learner shard 1", "killed")
        shards = [Shard(RuntimeError("connection closed by peer")), Shard(lost), Shard(3)]
        with pytest.raises(PartLost, match="learner shard 1"):
            await RemoteLearner(shards, None).call_all("update")
        assert all(shard.killed.is_set() for shard in shards)

    _run(main)


def test_what_shards_raise_together_is_raised() -> None:
    async def main() -> None:
        shards = [Shard(OSError("full")), Shard(OSError("full"))]
        with pytest.raises(OSError, match="full"):
            await RemoteLearner(shards, None).call_all("save")
        assert not any(shard.killed.is_set() for shard in shards)
        assert await RemoteLearner([Shard(5), Shard(6)], None).call_all("x") == [5, 6]

    _run(main)


def test_a_shard_is_given_its_share_of_batches_alone_and_all_of_the_rest() -> None:
    async def main() -> None:
        shards = [Shard(0), Shard(1), Shard(2)]
        three, one = (
            pack([supervised_sample([n], [n] * n) for n in lengths]) for lengths in ([1, 2, 3], [4])
        )
        put: list[Any] = []

        def share(argument: Any) -> Any:
            put.append(argument)
            return argument

        await RemoteLearner(shards, None, share).call_all("update", [three, one], one, [], 7)
        for shard, place in zip(shards, (2, 1, 0), strict=True):  # the longest to the first
            ((_, (mine, other), alone, ptx, number),) = shard.calls
            assert mine.samples == (three.samples[place],)
            assert (mine.total_sequences, mine.total_loss_tokens) == (3, 6)
            assert (ptx, number) == ([], 7)
            if place == 2:
                assert other.samples == alone.samples == one.samples
            else:
                assert other is alone is None
        assert len(put) == 3 + 3 + 2  # what all get is put once

    _run(main)


def test_the_shard_that_knows_why_is_heard() -> None:
    async def main() -> None:
        other = OtherShardFailed("1 other learner shards could not write")
        full = OSError(28, "No space left on device")
        learner = RemoteLearner([Shard(other), Shard(full), Shard(other)], None)
        with pytest.raises(OSError, match="No space left"):
            await learner.call_all("save")
        with pytest.raises(RunFailed, match=r"(?s)version 3.*No space left.*/dev/shm.*resume=true"):
            await learner.publish(3)

    _run(main)


class Publisher:
    """One shard that publishes and keeps count of what is still there."""

    def __init__(self) -> None:
        self.there: list[int] = []

    async def call(self, method: str, name: str, *args: Any) -> Any:
        if name == "publish":
            self.there.append(args[0])
            return _Published(args[0])
        if name == "release":
            self.there.remove(args[0])
        return {"objective/loss": 1.0}

    def kill(self) -> None:
        pass


class _Published:
    def __init__(self, version: int) -> None:
        self.update = _offer(version).update
        self.probe_logprobs = [[0.0]]


def test_a_version_stays_published_until_the_next_takes_its_place() -> None:
    async def main() -> None:
        fleet, publisher = Fleet(1), Publisher()
        learner = RemoteLearner([publisher], None)
        for version in (-3, 0, 1):  # a policy of its own each, as tests of a supervised start have
            policy = RemotePolicy(
                learner, fleet.rollouts, fleet.restarts, probe=[[1, 2]], tolerance=0.1
            )
            metrics = await policy.publish(version)
            assert publisher.there == [version]
            assert metrics["probe/abs_logprob"] == 0.0
        fleet.workers[0].die()
        metrics = await policy.publish(2)
        assert "probe/abs_logprob" not in metrics and publisher.there == [2]
        assert (await fleet.sample())[:2] == ("worker 0/1", 2)
        await fleet.rollouts.close()

    _run(main)


def test_reward_workers_that_the_cluster_replaces_are_counted(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("rl.reward_watch.LOOK_S", 0.001)

    class Judge:
        answers = iter([1, 1, PartLost("reward worker 0", "killed"), 2, 2, 3, 3, 4, 4, 4])

        async def call(self, method: str, *args: Any) -> Any:
            answer = next(self.answers)
            if isinstance(answer, Exception):
                raise answer
            return answer

        def kill(self) -> None:
            pass

    async def main() -> None:
        restarts = Restarts(lambda line: None, most=2)
        failure: asyncio.Future[Exception] = asyncio.get_running_loop().create_future()
        watch = RewardWatch([Judge()], restarts)
        watch.start(failure.set_result)
        assert isinstance(await failure, CrashLoop)
        assert restarts.counts == {"reward worker 0": 3}
        watch.stop()

    _run(main)


class FakeCluster:
    """Remembers that it was put away; fails when it is told to."""

    down = 0
    failure: ClassVar[list[Exception]] = []  # of the next cluster that looks

    def __init__(self, config: TrainConfig, restarts: Restarts) -> None:
        pass

    async def failed(self) -> None:
        while not FakeCluster.failure:
            await asyncio.sleep(0.001)
        raise FakeCluster.failure.pop()

    async def shutdown(self) -> None:
        FakeCluster.down += 1


class FakeTraining:
    """A run whose checkpoints lie in a folder; remembers how it was begun."""

    begun: ClassVar[list[bool]] = []
    closed = 0

    def __init__(
        self, config: TrainConfig, display: Display, restarts: Restarts | None = None
    ) -> None:
        self.begun.append(config.resume)
        self.config = config
        self.folder = RunFolder(Path(config.run_dir or ""))
        self.restarts = restarts or Restarts(display.say, most=config.cluster.max_restarts)

    async def place(self, cluster: FakeCluster) -> None:
        self.folder.checkpoints.mkdir(parents=True, exist_ok=True)

    async def close(self) -> None:
        FakeTraining.closed += 1


@pytest.fixture
def run(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Callable[[Any], Any]:
    monkeypatch.setattr("rl.train.Training", FakeTraining)
    monkeypatch.setattr("rl.train.Cluster", FakeCluster)
    FakeTraining.begun, FakeTraining.closed, FakeCluster.down = [], 0, 0
    FakeCluster.failure.clear()
    config = TrainConfig(run_dir=str(tmp_path), cluster=ClusterConfig(max_restarts=2))
    return lambda work: run_parts(config, Display(Console(file=io.StringIO())), work)


class Measured:
    """A run at step 0; remembers what is measured and saved."""

    def __init__(self, root: Path, eval_before: dict[str, PassRate]) -> None:
        self.config = TrainConfig(sft=None)
        self.folder = RunFolder(root)
        self.folder.config.write_text(to_yaml(self.config))
        self.display = Display(Console(file=io.StringIO()))
        self.restarts = Restarts(print, most=1)
        self.resumed_from = Path("step_0")
        self.state = RunState(step=0, rollout_tokens=0, train_seconds=0.0, eval_before=eval_before)
        self.done: list[object] = []
        self.critique: Any = None
        self.saved: RunState | None = None

    async def engines(self) -> None:
        pass

    async def serve(self) -> None:
        pass

    async def evaluate_before(self) -> dict[str, PassRate]:
        self.done.append("measured")
        return {"all": RATE}

    async def save(self) -> None:
        self.done.append(self.state.eval_before)
        self.saved = self.state

    async def reinforce(self, before: dict[str, PassRate]) -> dict[str, PassRate]:
        return before


RATE = PassRate(value=0.3, low=0.2, high=0.4, tasks=50)


def test_a_run_that_goes_on_from_its_first_checkpoint_knows_what_was_measured_before(
    tmp_path: Path,
) -> None:
    fresh: Any = Measured(tmp_path, {})
    assert asyncio.run(_reinforce(fresh)) == {"all": RATE}
    assert fresh.done == ["measured", {"all": RATE}]
    again: Any = Measured(tmp_path, fresh.state.eval_before)
    assert asyncio.run(_reinforce(again)) == {"all": RATE}
    assert not again.done


def test_a_run_goes_on_from_its_first_checkpoint_with_the_gate_as_it_was(tmp_path: Path) -> None:
    run: Any = Measured(tmp_path, {})
    judged = CritiqueState(against_start=((1.0, 0.5),))

    async def evaluate_before() -> dict[str, PassRate]:
        run.critique = SimpleNamespace(state=judged)  # what the measurement before RL fills
        return {"all": RATE}

    run.evaluate_before = evaluate_before
    asyncio.run(_reinforce(run))
    assert run.saved.critique is judged


def test_a_run_does_not_go_on_with_another_model(tmp_path: Path) -> None:
    run: Any = Measured(tmp_path, {"all": RATE})
    run.config.policy.path = "models/other"
    with pytest.raises(BadInput, match=r"policy\.path=models/other: .* from its own checkpoint"):
        asyncio.run(_reinforce(run))
    assert from_run(tmp_path, []).policy.path is None
    run.folder.config.write_text(to_yaml(run.config))  # it began with that one
    asyncio.run(_reinforce(run))
    run.config.policy.path = None  # not said again
    asyncio.run(_reinforce(run))
    assert from_run(tmp_path, []).policy.path == "models/other"
    run.state = replace(run.state, step=run.config.steps)
    run.display = Display(Console(file=(said := io.StringIO()), width=200))
    asyncio.run(_reinforce(run))
    assert f"the run has {run.config.steps} steps already" in said.getvalue()


@pytest.mark.parametrize("saved", [True, False])
def test_a_lost_learner_starts_the_run_again_where_it_can(
    run: Callable[[Any], Any], tmp_path: Path, saved: bool
) -> None:
    async def work(training: FakeTraining) -> int:
        if saved:
            (training.folder.checkpoints / "step_4").mkdir(exist_ok=True)
        if len(FakeTraining.begun) == 1:
            raise PartLost("learner shard 1", "killed")
        training.restarts.run_back()
        return training.restarts.total

    training, total = run(work)
    assert total == 1 and training.restarts.counts == {"learner shard 1": 1}
    assert FakeTraining.begun == [False, saved]
    assert FakeTraining.closed == FakeCluster.down == 2


def test_a_lost_head_is_heard_of_while_only_the_learner_works(run: Callable[[Any], Any]) -> None:
    cancelled: list[int] = []

    async def work(training: FakeTraining) -> str:
        if len(FakeTraining.begun) > 1:
            return "done"
        FakeCluster.failure.append(PartLost("Ray's head", "nobody listens"))
        try:
            await asyncio.sleep(3600)  # an update: nobody waits for an engine
        finally:
            cancelled.append(FakeCluster.down)
        return "never"

    training, result = run(work)
    assert result == "done" and cancelled == [0]  # what is put away is not in use any more
    assert training.restarts.counts == {"Ray's head": 1}
    assert FakeTraining.closed == FakeCluster.down == 2


def test_what_a_failure_finds_done_is_kept(run: Callable[[Any], Any]) -> None:
    async def work(training: FakeTraining) -> str:
        return "done"

    FakeCluster.failure.append(PartLost("Ray's head", "nobody listens"))
    assert run(work)[1] == "done"


@pytest.mark.parametrize(
    ("saved", "advice"),
    [(True, "from the last checkpoint with resume=true"), (False, "before the first checkpoint")],
)
def test_who_stops_a_run_is_told_how_to_go_on(
    run: Callable[[Any], Any], saved: bool, advice: str
) -> None:
    async def work(training: FakeTraining) -> None:
        if saved:
            (training.folder.checkpoints / "step_4").mkdir()
        raise asyncio.CancelledError

    with pytest.raises(RunFailed, match=f"stopped.* {advice}"):
        run(work)


def test_a_learner_that_is_lost_again_and_again_ends_the_run(run: Callable[[Any], Any]) -> None:
    async def work(training: FakeTraining) -> None:
        raise PartLost("learner shard 0", "out of memory")

    with pytest.raises(CrashLoop, match="the run was lost 3 times"):
        run(work)
    assert len(FakeTraining.begun) == FakeCluster.down == 3


def test_a_learner_that_is_lost_at_the_same_step_every_time_ends_the_run(
    run: Callable[[Any], Any],
) -> None:
    """Between two checkpoints: what is trained before it each time is nothing new."""

    class Shard(Publisher):
        step = 10

        async def call(self, method: str, *args: Any) -> Any:
            if args[0] != "update":
                return await super().call(method, *args)
            self.step += 1
            if self.step == 15:
                raise PartLost("learner shard 0", "out of memory")
            return {}

    async def work(training: FakeTraining) -> None:
        (training.folder.checkpoints / "step_10").mkdir(exist_ok=True)
        assert len(FakeTraining.begun) < 10, "restarts for ever"
        fleet, shard = Fleet(1), Shard()
        policy = RemotePolicy(
            RemoteLearner([shard], None),
            fleet.rollouts,
            training.restarts,
            probe=[[1, 2]],
            tolerance=0.1,
        )
        while True:
            await policy.publish(shard.step)
            await policy.update([], [])

    with pytest.raises(CrashLoop, match="the run was lost 3 times and came no further between"):
        run(work)
    assert FakeTraining.begun == [False, True, True]


def test_metrics_that_a_full_disk_refused_are_written_later(tmp_path: Path) -> None:
    log = MetricsLog(tmp_path, name="x", mode=WandbMode.disabled, resume_step=0)
    path = tmp_path / "metrics.jsonl"
    log.write(1, {"a": 1.0})
    path.rename(tmp_path / "kept")
    path.symlink_to("/dev/full")
    with pytest.raises(OSError, match="No space"):
        log.write(2, {"a": 2.0})
    path.unlink()
    (tmp_path / "kept").rename(path)
    log.write(3, {"a": 3.0})
    assert [row["step"] for row in read_metrics(path)] == [1, 2, 3]
    log.close()
