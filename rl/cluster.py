"""The parts of one run, placed on a Ray cluster.

Heavy libraries are imported inside the actors, in the process that needs them: the driver never
loads vLLM, a reward worker never loads torch.
"""

import asyncio
import socket
from collections.abc import Callable, Collection
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import ray
from ray.actor import ActorHandle
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from model.config import Rank
from model.send_folder import remove_dead_folders
from model.send_weights import SHARED_MEMORY
from rewards.task import TaskKind
from rl.colocated import ColocatedLearner
from rl.config import Placement, TrainConfig
from rl.errors import PartLost, bad_input
from rl.gpus import Reserved, check_gpus
from rl.part import farewell, watch_head, within
from rl.ray_parts import (
    RESTART_S,
    Actor,
    RewardCalls,
    beside_driver,
    connect,
    gpu_count,
    head_address,
    hosts_of,
    reserve,
)
from rl.remote import RemoteLearner, together
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

MOST_CALLS = 100_000  # to one rollout worker at a time; Ray would let a health call wait at 1,000


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
        self._placed = asyncio.Event()  # the rollouts
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
        check_gpus(self._config, gpu_count())
        gpus = self._gpus = await reserve(size, share=0.5 if self._colocated else 1.0)
        placed = [gpus.shard(rank) if gpus else beside_driver() for rank in range(size)]
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
            hosts_of=hosts_of,
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
            worker.ranks = gpus.ranks(index, ways) if gpus else []
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
        self._head_watch = asyncio.create_task(watch_head(head_address(), self._rollouts.fail))
        self._placed.set()
        return self._rollouts

    async def failed(self) -> None:
        """Wait for what ends the run, if anything does, and raise it."""
        await self._placed.wait()
        assert self._rollouts is not None
        await self._rollouts.failed()

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
