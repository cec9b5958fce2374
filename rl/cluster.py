"""Ray: starts or joins a cluster, places the parts, and speaks to them.

Heavy libraries are imported inside the actors, in the process that needs them: the driver never
loads vLLM, a reward worker never loads torch.
"""

import asyncio
import contextlib
import logging
import os
import socket
import time
from collections.abc import Awaitable, Collection, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import ray
from ray.actor import ActorHandle
from ray.exceptions import ActorUnavailableError, RayActorError, RayTaskError

from model.config import Rank
from model.send_weights import merged
from rewards.comparison import Pair, PairOutcome
from rewards.score import Score
from rewards.task import Task, TaskKind
from rewards.watch import SlowReward
from rl.config import ClusterConfig, TrainConfig
from rl.errors import BadInput, RunFailed, bad_input
from rl.reward_pool import Item, WorkerDied
from rl.reward_worker import RewardWorker
from rl.rollout_worker import RolloutWorker
from rollout.episode import Group
from rollout.probe import compare_probe

if TYPE_CHECKING:
    from rl.batch import Batch
    from rl.learner_spec import LearnerSpec, Published

RESTART_S = 120.0  # a new process imports sympy: 2 s, or many on a busy machine
SLOW_ANSWER_S = 5.0  # a reward worker that is being restarted does not answer


def connect(config: ClusterConfig) -> None:
    """Join `ray_address`, or start Ray on this machine.

    Raises:
        BadInput: the address does not answer, or the dashboard's port is taken.
    """
    if config.ray_address is not None:
        try:
            ray.init(address=config.ray_address, log_to_driver=False, logging_level=logging.ERROR)
        except (ConnectionError, RuntimeError, ValueError) as error:
            raise BadInput(
                f"cluster.ray_address={config.ray_address} does not answer: {error}"
            ) from error
        return
    port = config.dashboard_port
    if port is not None:
        with socket.socket() as probe:
            if probe.connect_ex(("127.0.0.1", port)) == 0:
                raise BadInput(f"cluster.dashboard_port={port} is in use: choose another, or null")
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    # Two cores carry five actors here: they take turns, so Ray is told of enough to place them all.
    ray.init(
        num_cpus=max(os.cpu_count() or 1, config.rollout_workers + 4),
        include_dashboard=port is not None,
        dashboard_port=port,
        object_store_memory=256 << 20,
        log_to_driver=False,
        logging_level=logging.ERROR,
    )


def _actor(part: type, *args: Any, **options: Any) -> ActorHandle:
    """Create `part(*args)` in a process of its own, placed as Ray's `options` say."""
    remote: Any = ray.remote(part)
    return remote.options(**options).remote(*args)


async def ask(reference: Awaitable[Any]) -> Any:
    """Wait for an actor's answer; what it raised is raised here as it was, without Ray's wrapping.

    Raises:
        RunFailed: the actor is dead.
    """
    try:
        return await reference
    except RayTaskError as error:
        raise error.cause from error
    except RayActorError as error:
        raise RunFailed(f"a part of the run died: {str(error).splitlines()[0]}") from error


class RewardCalls:
    """Calls to one reward worker, which Ray replaces when its process ends."""

    def __init__(self, worker: ActorHandle) -> None:
        """Call `worker`."""
        self._worker = worker
        self._down = False

    async def __call__(self, items: list[Item]) -> list[Score]:
        """One score for each episode (rl.reward_pool.ScoreItems)."""
        try:
            if self._down:
                await self._wait()
            return await self._worker.score.remote(items)
        except RayTaskError as error:
            raise error.cause from error
        except RayActorError as error:
            self._down = True
            raise WorkerDied(str(error).splitlines()[0]) from error

    async def _wait(self) -> None:
        """Return when the process that takes the place of a dead one is there."""
        deadline = time.monotonic() + RESTART_S
        while True:
            try:
                await self._worker.ready.remote()
                self._down = False
                return
            except ActorUnavailableError:
                if time.monotonic() > deadline:
                    raise
                await asyncio.sleep(0.2)


class LearnerWorker:
    """Owns one shard of the learner."""

    def address(self) -> tuple[str, int]:
        """This host, and a port that is free on it now: where the shards of a job meet."""
        with socket.socket() as free:
            free.bind(("", 0))
            return ray.util.get_node_ip_address(), free.getsockname()[1]

    def start(self, spec: "LearnerSpec", probe: list[list[int]], place: Rank) -> str | None:
        """Meet the other shards and load the checkpoint; what a person should know, if anything."""
        from rl.learner import Learner

        self._learner = Learner(spec, probe, place)
        return self._learner.note

    def call(self, method: str, *args: Any) -> Any:
        """Call a method of the learner by name."""
        return getattr(self._learner, method)(*args)

    def close(self) -> None:
        """Remove what was published."""
        self._learner.close()


class RemoteLearner:
    """All learner shards: every call goes to all of them at once."""

    def __init__(self, shards: Sequence[ActorHandle], note: str | None) -> None:
        """Use these shards, already started, which had something to say."""
        self.shards, self.note = list(shards), note

    async def call_all(self, method: str, *args: Any) -> list[Any]:
        """Call a method of every shard; their answers, by rank. The first error is raised."""
        arguments = [ray.put(argument) for argument in args]
        return await asyncio.gather(
            *(ask(shard.call.remote(method, *arguments)) for shard in self.shards)
        )

    async def call(self, method: str, *args: Any) -> Any:
        """The same; the answer of rank 0, where all answers are alike."""
        return (await self.call_all(method, *args))[0]


class RemoteRollouts:
    """All rollout workers; a group goes to the worker with the fewest samples under way."""

    def __init__(self, workers: Sequence[ActorHandle]) -> None:
        """Use these workers, already started."""
        self.workers = list(workers)
        self._under_way = [0] * len(workers)

    async def sample(
        self, task: Task, *, samples: int, temperature: float, rank: bool = True
    ) -> Group:
        """One group, from prompt to score."""
        with self._least_busy(samples) as worker:
            try:
                return await ask(worker.sample.remote(task, samples, temperature, rank))
            except ValueError as error:
                raise BadInput(f"task {task.id}: {error}") from error

    async def compare(self, pairs: Sequence[Pair]) -> list[PairOutcome]:
        """The critic's outcome of each pair, in order; spread over the workers."""
        return list(await asyncio.gather(*(self._compare(pair) for pair in pairs)))

    async def _compare(self, pair: Pair) -> PairOutcome:
        with self._least_busy(2) as worker:
            return await ask(worker.compare.remote(pair))

    @contextlib.contextmanager
    def _least_busy(self, samples: int) -> Iterator[ActorHandle]:
        """The worker with the fewest samples under way, with so many more while this lasts."""
        chosen = min(range(len(self.workers)), key=self._under_way.__getitem__)
        self._under_way[chosen] += samples
        try:
            yield self.workers[chosen]
        finally:
            self._under_way[chosen] -= samples

    async def busy_seconds(self) -> float:
        """Seconds with work, averaged over engines."""
        busy: list[float] = await asyncio.gather(
            *(ask(w.busy_seconds.remote()) for w in self.workers)
        )
        return sum(busy) / len(busy)


class RemotePolicy:
    """The learner worker and the way of its weights to every engine."""

    def __init__(
        self,
        learner: RemoteLearner,
        rollouts: RemoteRollouts,
        *,
        probe: list[list[int]],
        tolerance: float,
    ) -> None:
        """Publish from `learner` to `rollouts`, comparing both on `probe` [sequences][tokens]."""
        self._learner = learner
        self._rollouts = rollouts
        self._probe = probe
        self._tolerance = tolerance

    async def update(
        self, minibatches: "Sequence[Batch]", ptx: "Sequence[Batch]"
    ) -> dict[str, float]:
        """One iteration of the optimiser."""
        return await self._learner.call("update", minibatches, ptx)

    async def publish(self, version: int) -> dict[str, float]:
        """Bring the weights to every engine, then compare log-probs of the probe.

        Raises:
            StaleWeightsError: an engine's log-probs are not those of the weights sent.
        """
        started = time.perf_counter()
        published: list[Published] = await self._learner.call_all("publish", version)
        update = merged([part.update for part in published])
        answers: list[list[list[float]]] = await asyncio.gather(
            *(ask(w.receive.remote(update, self._probe)) for w in self._rollouts.workers)
        )
        reports = [
            compare_probe(
                answer,
                published[0].probe_logprobs,
                tolerance=self._tolerance,
                version=version,
                engine=f"rollout worker {index}",
            )
            for index, answer in enumerate(answers)
        ]
        await self._learner.call_all("release", version)
        return {
            "time/sync": time.perf_counter() - started,
            "probe/abs_logprob": max(r.mean for r in reports),
            "probe/max_abs_logprob": max(r.largest for r in reports),
        }


class Cluster:
    """The parts of one run, placed."""

    def __init__(self, config: TrainConfig) -> None:
        """Connect to Ray and create the reward workers."""
        connect(config.cluster)
        self._config = config
        self.judges = [
            _actor(RewardWorker, config.rewards, max_restarts=-1, scheduling_strategy="SPREAD")
            for _ in range(config.rewards.workers)
        ]
        self._learners: list[ActorHandle] = []
        self._rollouts: list[ActorHandle] = []
        self._asked: dict[int, asyncio.Task[Any]] = {}  # slow rewards, by judge: not answered yet

    async def check_rewards(self, kinds: Collection[TaskKind]) -> None:
        """Raise `RewardError` if a reward worker cannot score tasks of these kinds."""
        await asyncio.gather(*(ask(judge.check.remote(kinds)) for judge in self.judges))

    async def place_learner(self, spec: "LearnerSpec", probe: list[list[int]]) -> RemoteLearner:
        """Create the learner's shards and load their checkpoint."""
        sft, size = self._config.sft, self._config.parallel.shards
        threads = max(self._config.policy.threads, sft.threads if sft else 1)
        environment = {
            "env_vars": {
                "OMP_NUM_THREADS": str(threads),
                "OMP_WAIT_POLICY": "passive",
                # glibc returns every large activation to the system and faults it in again:
                # keeping them makes a step on CPU a third faster.
                "MALLOC_MMAP_THRESHOLD_": str(32 << 20),
                "MALLOC_TRIM_THRESHOLD_": str(4 << 30),
            }
        }
        gpus = int(ray.cluster_resources().get("GPU", 0))
        if 0 < gpus < size:
            raise BadInput(f"parallel.shards={size}, but the cluster has {gpus} GPUs")
        shards = [
            _actor(LearnerWorker, runtime_env=environment, num_gpus=min(gpus, 1))
            for _ in range(size)
        ]
        self._learners = shards
        address, port = await ask(shards[0].address.remote())
        notes = await asyncio.gather(
            *(
                ask(
                    shard.start.remote(
                        spec, probe, Rank(rank=rank, size=size, address=address, port=port)
                    )
                )
                for rank, shard in enumerate(shards)
            )
        )
        return RemoteLearner(shards, notes[0])

    async def place_rollouts(self, checkpoint: Path, *, seed: int) -> RemoteRollouts:
        """Create the rollout workers and wait until every engine is ready.

        Args:
            checkpoint: what the engines start from.
            seed: of the sampling; each engine gets its own, derived from it.
        """
        configs = [
            replace(self._config.engine, seed=seed + index)
            for index in range(self._config.cluster.rollout_workers)
        ]
        workers = [_actor(RolloutWorker) for _ in configs]
        judges = [RewardCalls(judge) for judge in self.judges]
        with bad_input():
            await asyncio.gather(
                *(
                    ask(worker.start.remote(engine, checkpoint, judges, self._config.rewards))
                    for worker, engine in zip(workers, configs, strict=True)
                )
            )
        self._rollouts = workers  # only started engines have anything to put away
        return RemoteRollouts(workers)

    async def slow_rewards(self) -> list[SlowReward]:
        """Rewards that are unusually slow, each named once.

        A judge that does not answer in time, as when a plug-in lets no other thread run, is not
        asked again before it has: an answer that nobody hears would be lost.
        """
        for place, judge in enumerate(self.judges):
            if place not in self._asked:
                self._asked[place] = asyncio.create_task(_quietly(judge.slow.remote()))
        done, _ = await asyncio.wait(self._asked.values(), timeout=SLOW_ANSWER_S)
        answered = [place for place, asked in self._asked.items() if asked in done]
        return [slow for place in answered for slow in self._asked.pop(place).result() or []]

    async def shutdown(self) -> None:
        """Let every part put its things away, then leave Ray (and stop it, if started here)."""
        farewells: list[Any] = [w.shutdown.remote() for w in self._rollouts]
        farewells += [w.close.remote() for w in self.judges]
        farewells += [shard.close.remote() for shard in self._learners]
        if farewells:
            await asyncio.wait([asyncio.create_task(_quietly(f)) for f in farewells], timeout=20)
        ray.shutdown()


async def _quietly(reference: Any) -> Any:
    """The answer; None of a part that is dead: it has nothing to tell or to put away."""
    try:
        return await reference
    except (RayActorError, RayTaskError):
        return None
