"""Ray: starts or joins a cluster, places the parts, and speaks to them.

Heavy libraries are imported inside the actors, in the process that needs them: the driver never
loads vLLM, a reward worker never loads torch.
"""

import asyncio
import logging
import os
import socket
import time
from collections.abc import Callable, Collection
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import ray
from ray.actor import ActorHandle
from ray.exceptions import (
    ActorUnavailableError,
    NodeDiedError,
    ObjectLostError,
    RayActorError,
    RayTaskError,
    WorkerCrashedError,
)

from model.config import Rank
from model.send_weights import SHARED_MEMORY, remove_dead_folders
from rewards.score import Score
from rewards.task import TaskKind
from rl.config import ClusterConfig, TrainConfig
from rl.errors import BadInput, PartLost, RunFailed, bad_input
from rl.part import farewell, watch_head, why_dead, within
from rl.remote import RemoteLearner, together
from rl.reward_pool import Item, WorkerDied
from rl.reward_watch import RewardWatch
from rl.reward_worker import RewardWorker
from rl.rollout_seats import RemoteRollouts
from rl.supervision import Restarts
from rl.timeline import Span
from rl.watched_worker import WatchedRolloutWorker
from rl.worker_spans import SpanLog

if TYPE_CHECKING:
    from rl.learner_spec import LearnerSpec

RESTART_S = 120.0  # a new process imports sympy: 2 s, or many on a busy machine
MOST_CALLS = 100_000  # to one rollout worker at a time; Ray would let a health call wait at 1,000
DEAD = (RayActorError, NodeDiedError, ObjectLostError, WorkerCrashedError)


def connect(config: ClusterConfig) -> None:
    """Join `ray_address`, or start Ray on this machine.

    Raises:
        BadInput: the address does not answer, or the dashboard's port is taken.
        PartLost: Ray did not come up here in its time, as on a machine that is too busy.
    """
    if config.ray_address is not None:
        try:
            ray.init(address=config.ray_address, log_to_driver=False, logging_level=logging.ERROR)
        except (ConnectionError, RuntimeError, ValueError) as error:
            name = f"cluster.ray_address={config.ray_address}"
            raise BadInput(f"{name} does not answer: {error}") from error
        return
    port = config.dashboard_port
    if port is not None:
        with socket.socket() as probe:
            if probe.connect_ex(("127.0.0.1", port)) == 0:
                raise BadInput(f"cluster.dashboard_port={port} is in use: choose another, or null")
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    # Two cores carry five actors here: they take turns, so Ray is told of enough to place them all.
    try:
        ray.init(
            num_cpus=max(os.cpu_count() or 1, config.rollout_workers + 4),
            include_dashboard=port is not None,
            dashboard_port=port,
            object_store_memory=256 << 20,
            log_to_driver=False,
            logging_level=logging.ERROR,
        )
    except Exception as error:  # Ray has no class for it
        ray.shutdown()
        raise PartLost("Ray", f"it did not start: {error}") from error


class Actor:
    """A process of the run (rl.part.Part), under the name by which people know it."""

    def __init__(self, name: str, part: type, *args: Any, **options: Any) -> None:
        """Create `part(*args)` in a process of its own, placed as Ray's `options` say."""
        self.name = name
        remote: Any = ray.remote(part)
        self.handle: ActorHandle = remote.options(**options).remote(*args)

    async def call(self, method: str, *args: Any) -> Any:
        """Call a method; what it raised is raised here as it was, without Ray's wrapping.

        Raises:
            PartLost: the process has ended.
            RunFailed: it could not be made, and could not be made again.
        """
        try:
            return await getattr(self.handle, method).remote(*args)
        except RayTaskError as error:
            raise error.cause from error
        except DEAD as error:
            if isinstance(error, RayActorError) and error.actor_init_failed:
                raise RunFailed(f"{self.name} cannot start: {why_dead(error)}") from error
            raise PartLost(self.name, why_dead(error)) from error

    def kill(self) -> None:
        """End the process now, whatever it does."""
        ray.kill(self.handle)


def _head_address() -> tuple[str, int]:
    host, _, port = ray.get_runtime_context().gcs_address.rpartition(":")
    return host, int(port)


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

    def __init__(self) -> None:
        """Remember what is done here."""
        self._spans = SpanLog()

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
        with self._spans.span(method):
            return getattr(self._learner, method)(*args)

    def take_spans(self, track: str) -> list[Span]:
        """What was done here since the last call."""
        return self._spans.take(track)

    def close(self) -> None:
        """Remove what was published."""
        self._learner.close()


class Cluster:
    """The parts of one run, placed."""

    def __init__(self, config: TrainConfig, restarts: Restarts | None = None) -> None:
        """Connect to Ray and create the reward workers. `restarts` hears of every lost part."""
        connect(config.cluster)
        self._config = config
        self.restarts = restarts or Restarts(print, most=config.cluster.max_restarts)
        context = ray.get_runtime_context()
        self.restarts.logs = f"{context.get_temp_dir()}/{context.get_session_name()}/logs"
        self._judges = [
            Actor(
                f"reward worker {index}",
                RewardWorker,
                config.rewards,
                max_restarts=-1,
                scheduling_strategy="SPREAD",
            )
            for index in range(config.rewards.workers)
        ]
        self._learners: list[Actor] = []
        self._rollouts: RemoteRollouts | None = None
        self._reward_watch = RewardWatch(self._judges, self.restarts)
        self._head_watch: asyncio.Task[None] | None = None
        self.slow_rewards = self._reward_watch.slow

    @property
    def judges(self) -> list[ActorHandle]:
        """The reward workers."""
        return [judge.handle for judge in self._judges]

    async def check_rewards(self, kinds: Collection[TaskKind]) -> None:
        """Raise `RewardError` if a reward worker cannot score tasks of these kinds."""
        await asyncio.gather(*(judge.call("check", kinds) for judge in self._judges))

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
        placed = {"runtime_env": environment, "num_gpus": min(gpus, 1)}
        shards = self._learners = [
            Actor(f"learner shard {rank}", LearnerWorker, **placed) for rank in range(size)
        ]
        address, port = await shards[0].call("address")
        places = [Rank(rank=rank, size=size, address=address, port=port) for rank in range(size)]
        starts = [
            shard.call("start", spec, probe, place)
            for shard, place in zip(shards, places, strict=True)
        ]
        return RemoteLearner(shards, (await together(shards, starts))[0], ray.put)

    async def place_rollouts(
        self, checkpoint: Path, *, seed: int, again: Callable[[], Path] | None = None
    ) -> RemoteRollouts:
        """Create the rollout workers and wait until every engine is ready.

        Args:
            checkpoint: what the engines start from.
            seed: of the sampling; each engine gets its own, derived from it.
            again: what an engine that takes the place of a lost one starts from; by default
                `checkpoint`, if that stays where it is.
        """
        count, settings = self._config.cluster.rollout_workers, self._config.engine
        judges = [RewardCalls(judge) for judge in self.judges]

        async def start(index: int, number: int) -> Actor:
            engine = replace(settings, seed=seed + index + number * count)
            folder = again() if again is not None and number else checkpoint
            worker = Actor(
                f"rollout worker {index}", WatchedRolloutWorker, max_concurrency=MOST_CALLS
            )
            rewards, rollout = self._config.rewards, self._config.rollout
            starting = worker.call("start", engine, folder, judges, rewards, rollout)
            try:
                # Beyond the engine's own limit there is a process to start, and what it imports.
                await within(settings.start_timeout_s + RESTART_S, worker.name, starting)
            except BaseException:
                worker.kill()
                raise
            return worker

        with bad_input():
            workers = await asyncio.gather(*(start(index, 0) for index in range(count)))
        self._rollouts = RemoteRollouts(
            workers, start, self.restarts, timeout_s=self._config.cluster.engine_timeout_s
        )
        self._reward_watch.start(self._rollouts.fail)
        self._head_watch = asyncio.create_task(watch_head(_head_address(), self._rollouts.fail))
        return self._rollouts

    async def shutdown(self) -> None:
        """Let every part put its things away, then leave Ray (and stop it, if started here)."""
        self._reward_watch.stop()
        if self._head_watch is not None:
            self._head_watch.cancel()
        farewells = [farewell(judge, "close") for judge in self._judges]
        farewells += [farewell(shard, "close") for shard in self._learners]
        if self._rollouts is not None:  # only started engines have anything to put away
            await self._rollouts.close()
            farewells += [farewell(worker, "shutdown") for worker in self._rollouts.workers]
        if farewells:
            await asyncio.wait([asyncio.create_task(each) for each in farewells], timeout=20)
        ray.shutdown()
        if SHARED_MEMORY.is_dir():  # a shard that was killed has left its weights there
            remove_dead_folders(SHARED_MEMORY)
