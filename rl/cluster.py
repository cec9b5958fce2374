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
import torch
from ray.actor import ActorHandle
from ray.exceptions import (
    ActorUnavailableError,
    ActorUnschedulableError,
    NodeDiedError,
    ObjectLostError,
    RayActorError,
    RayTaskError,
    WorkerCrashedError,
)
from ray.util.placement_group import (
    placement_group,
    placement_group_table,
    remove_placement_group,
)
from ray.util.scheduling_strategies import (
    NodeAffinitySchedulingStrategy,
    PlacementGroupSchedulingStrategy,
)

from model.config import Rank
from model.send_weights import SHARED_MEMORY, remove_dead_folders
from rewards.score import Score
from rewards.task import TaskKind
from rl.colocated import ColocatedLearner
from rl.config import ClusterConfig, Placement, TrainConfig
from rl.errors import BadInput, PartLost, RunFailed, bad_input
from rl.gpus import Reserved, check_gpus
from rl.part import farewell, watch_head, why_dead, within
from rl.remote import RemoteLearner, together
from rl.reward_pool import Item, WorkerDied
from rl.reward_watch import RewardWatch
from rl.reward_worker import RewardWorker
from rl.rollout_seats import RemoteRollouts
from rl.supervision import Restarts
from rl.timeline import Span
from rl.turns import EnginesTurn
from rl.watched_worker import WatchedRolloutWorker
from rl.weight_relay import WeightRelay
from rl.weight_transport import WeightTransport
from rl.worker_spans import SpanLog

if TYPE_CHECKING:
    from model.snapshot import Writing
    from rl.learner_spec import LearnerSpec

RESTART_S = 120.0  # a new process imports sympy: 2 s, or many on a busy machine
RESERVE_S = 120.0  # for those who have the GPUs to leave
RESERVE_LOOK_S = 1.0
MOST_CALLS = 100_000  # to one rollout worker at a time; Ray would let a health call wait at 1,000
DEAD = (
    RayActorError,
    ActorUnschedulableError,
    NodeDiedError,
    ObjectLostError,
    WorkerCrashedError,
)


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
            address="local",  # else it would join one that somebody has started on this machine
            num_cpus=max(os.cpu_count() or 1, config.rollout_workers + 4),
            # Ray counts GPUs also where nothing that is installed computes on them.
            num_gpus=None if torch.backends.cuda.is_built() else 0,
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
        self._host: str | None = None
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

    async def host(self) -> str:
        """The node of Ray that it lives on: what is in one's shared memory, another may not see."""
        if self._host is None:
            self._host = await self.call("__ray_call__", _node_here)
        return self._host


def _node_here(part: object) -> str:
    return ray.get_runtime_context().get_node_id()


def _beside_driver() -> dict[str, Any]:
    """Options of parts that need no device: together, and not spread over hosts by chance."""
    here = ray.get_runtime_context().get_node_id()
    return {"scheduling_strategy": NodeAffinitySchedulingStrategy(here, soft=True)}


async def _host_of(part: Any) -> str:
    return await part.host()


def _gpus() -> int:
    return int(ray.cluster_resources().get("GPU", 0))


async def reserve(count: int, *, share: float = 1.0) -> Reserved | None:
    """Reserve so many GPUs, near each other; None where the cluster has no GPU at all.

    `share` is what each who uses a GPU takes of it.

    Raises:
        BadInput: they are not there, or others keep them.
    """
    there = _gpus()
    if there == 0:
        return None
    group = placement_group([{"GPU": 1}] * count, strategy="PACK")
    if there < count or not await _given(group):
        remove_placement_group(group)
        raise BadInput(f"{count} GPUs are needed; the cluster has {there}, or others use them")
    nodes = placement_group_table(group)["bundles_to_node_id"]
    return Reserved(
        bundles=tuple(sorted(range(count), key=lambda bundle: (nodes[bundle], bundle))),
        strategy=lambda bundle: PlacementGroupSchedulingStrategy(
            placement_group=group,
            placement_group_bundle_index=bundle,
            placement_group_capture_child_tasks=True,
        ),
        share=share,
    )


async def _given(group: Any) -> bool:
    """Whether a placement group gets its GPUs in time.

    Asked again and again: a run that is stopped meanwhile could not end before the thread does.
    """
    deadline = time.monotonic() + RESERVE_S
    while not await asyncio.to_thread(group.wait, RESERVE_LOOK_S):
        if time.monotonic() > deadline:
            return False
    return True


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

    def written(self) -> "Writing":
        """How far this shard is with the files of a checkpoint; asked too often for a span."""
        return self._learner.written()

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
        self._colocated = config.cluster.placement is Placement.colocated
        self._gpus: Reserved | None = None  # the learner's
        self._transport: WeightTransport | None = None
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
        check_gpus(self._config, _gpus())
        gpus = self._gpus = await reserve(size, share=0.5 if self._colocated else 1.0)
        placed = [gpus.shard(rank) if gpus else _beside_driver() for rank in range(size)]
        shards = self._learners = [
            Actor(f"learner shard {rank}", LearnerWorker, runtime_env=environment, **options)
            for rank, options in enumerate(placed)
        ]
        address, port = await shards[0].call("address")
        places = [Rank(rank=rank, size=size, address=address, port=port) for rank in range(size)]
        starts = [
            shard.call("start", spec, probe, place)
            for shard, place in zip(shards, places, strict=True)
        ]
        notes = await together(shards, starts)
        self._transport = WeightTransport(
            self._config.weights.transport,
            [await shard.host() for shard in shards],
            start=self._start_relay,
            host_of=_host_of,
            restarts=self.restarts,
        )
        kind = ColocatedLearner if self._colocated else RemoteLearner
        return kind(shards, notes[0], ray.put, self._transport)

    async def _start_relay(self, host: str) -> Actor:
        """What sends or receives weights on a node. Raises PartLost if the node is gone."""
        nodes = {node["NodeID"]: node for node in ray.nodes() if node["Alive"]}
        if host not in nodes:
            raise PartLost(f"host {host[:8]}", "the cluster does not have it any more")
        address = nodes[host]["NodeManagerAddress"]
        assert self._transport is not None  # it asks
        relay = Actor(
            f"weights relay on {address}",
            WeightRelay,
            address,
            self._config.weights.delta,
            max_concurrency=self._transport.most_calls,  # a thread each
            scheduling_strategy=NodeAffinitySchedulingStrategy(host, soft=False),
        )
        try:
            await within(RESTART_S, relay.name, relay.call("device"))
        except BaseException:
            relay.kill()
            raise
        return relay

    async def place_rollouts(
        self,
        checkpoint: Path,
        *,
        seed: int,
        again: Callable[[], Path] | None = None,
        learner: "asyncio.Task[RemoteLearner] | None" = None,
    ) -> RemoteRollouts:
        """Create the rollout workers and wait until every engine is ready.

        Args:
            checkpoint: what the engines start from.
            seed: of the sampling; each engine gets its own, derived from it.
            again: what an engine that takes the place of a lost one starts from; by default
                `checkpoint`, if that stays where it is.
            learner: while it is being placed; colocated engines start when it has left the devices.
        """
        count, settings = self._config.cluster.rollout_workers, self._config.engine
        ways, shared = settings.tensor_parallel_size, await self._sharing(learner)
        turn = shared.engines_turn if shared else EnginesTurn()
        gpus = self._gpus if shared else await reserve(count * ways)
        judges = [RewardCalls(judge) for judge in self.judges]

        async def start(index: int, number: int) -> Actor:
            engine = replace(settings, seed=seed + index + number * count)
            folder = again() if again is not None and number else checkpoint
            worker = Actor(
                f"rollout worker {index}",
                WatchedRolloutWorker,
                max_concurrency=MOST_CALLS,
                **(gpus.engine(index, ways) if gpus else {"scheduling_strategy": "SPREAD"}),
            )
            rewards, rollout = self._config.rewards, self._config.rollout
            parts = (engine, folder, judges, rewards, rollout, shared is not None)
            starting = worker.call("start", *parts)
            try:
                # Beyond the engine's own limit there is a process to start, and what it imports.
                await within(settings.start_timeout_s + RESTART_S, worker.name, starting)
            except BaseException:
                worker.kill()
                raise
            return worker

        timeout_s = self._config.cluster.engine_timeout_s
        with bad_input():
            async with turn.joining():
                workers = await asyncio.gather(*(start(index, 0) for index in range(count)))
                self._rollouts = RemoteRollouts(
                    workers, start, self.restarts, timeout_s=timeout_s, turn=turn
                )
                if shared:
                    shared.share_with(self._rollouts)
        self._reward_watch.start(self._rollouts.fail)
        self._head_watch = asyncio.create_task(watch_head(_head_address(), self._rollouts.fail))
        return self._rollouts

    async def _sharing(
        self, learner: "asyncio.Task[RemoteLearner] | None"
    ) -> ColocatedLearner | None:
        """The learner that shares its devices with the engines, once it has left them to these."""
        if learner is None or not self._colocated:
            return None
        await asyncio.wait([learner])
        if learner.cancelled() or learner.exception() is not None:
            raise asyncio.CancelledError  # who places it hears why
        placed = learner.result()
        assert isinstance(placed, ColocatedLearner)
        await placed.leave()
        return placed

    async def shutdown(self) -> None:
        """Let every part put its things away, then leave Ray (and stop it, if started here)."""
        self._reward_watch.stop()
        if self._head_watch is not None:
            self._head_watch.cancel()
        if self._rollouts is not None:
            await self._rollouts.close()
        if self._transport is not None:
            await self._transport.close()
        farewells = [farewell(judge, "close") for judge in self._judges]
        farewells += [farewell(shard, "close") for shard in self._learners]
        relays = self._transport.relays.values() if self._transport is not None else ()
        farewells += [farewell(relay, "close") for relay in relays]
        if self._rollouts is not None:  # only started engines have anything to put away
            farewells += [farewell(worker, "shutdown") for worker in self._rollouts.workers]
        if farewells:
            await asyncio.wait([asyncio.create_task(each) for each in farewells], timeout=20)
        ray.shutdown()
        if SHARED_MEMORY.is_dir():  # a shard that was killed has left its weights there
            remove_dead_folders(SHARED_MEMORY)
