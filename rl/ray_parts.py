"""Ray, and the parts of a run as its actors: calls, hosts, GPUs, and what their end looks like."""

import asyncio
import logging
import os
import socket
import time
from typing import Any

import ray
import torch
from ray.actor import ActorHandle
from ray.exceptions import (
    ActorUnavailableError,
    ActorUnschedulableError,
    NodeDiedError,
    ObjectLostError,
    OutOfMemoryError,
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

from rewards.score import Score
from rl.config import ClusterConfig
from rl.errors import BadInput, PartLost, RunFailed
from rl.gpus import Reserved
from rl.part import why_dead
from rl.reward_pool import Item, WorkerDied

RESTART_S = 120.0  # a new process imports sympy: 2 s, or many on a busy machine
RESERVE_S = 120.0  # for those who have the GPUs to leave
RESERVE_LOOK_S = 1.0
HEAR_S = 10.0  # for a port of Ray's head
DEAD = (
    RayActorError,
    ActorUnschedulableError,
    NodeDiedError,
    ObjectLostError,
    OutOfMemoryError,  # Ray's own kill, where a host runs out: no kind of the others
    WorkerCrashedError,
)


def connect(config: ClusterConfig) -> None:
    """Join `ray_address`, or start Ray on this machine.

    Raises:
        BadInput: the address does not answer, or the dashboard's port is taken.
        PartLost: Ray did not come up here in its time, as on a machine that is too busy.
    """
    if config.ray_address is not None:
        name = f"cluster.ray_address={config.ray_address}"
        try:
            _hear(config.ray_address)
            ray.init(address=config.ray_address, log_to_driver=False, logging_level=logging.ERROR)
        except (OSError, RuntimeError, ValueError) as error:
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
            object_store_memory=config.object_store_bytes,
            log_to_driver=False,
            logging_level=logging.ERROR,
        )
    except Exception as error:  # Ray has no class for it
        ray.shutdown()
        raise PartLost("Ray", f"it did not start: {error}") from error


def _hear(address: str) -> None:
    """Raise OSError if nobody listens at HOST:PORT, which Ray would try again for minutes."""
    host, _, port = address.rpartition(":")
    if host and port.isdigit() and "//" not in address:
        socket.create_connection((host.strip("[]"), int(port)), timeout=HEAR_S).close()


class Actor:
    """A process of the run (rl.part.Part), under the name by which people know it."""

    def __init__(self, name: str, part: type, *args: Any, **options: Any) -> None:
        """Create `part(*args)` in a process of its own, placed as Ray's `options` say."""
        self.name = name
        self.ranks: list[str] = []  # nodes of an engine's workers, if Ray has placed them
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


def beside_driver() -> dict[str, Any]:
    """Options of parts that need no device: together, and not spread over hosts by chance."""
    here = ray.get_runtime_context().get_node_id()
    return {"scheduling_strategy": NodeAffinitySchedulingStrategy(here, soft=True)}


async def hosts_of(engine: Any) -> list[str]:
    """The nodes that an engine's ranks live on, in their order."""
    return engine.ranks or [await engine.host()]


def gpu_count() -> int:
    """GPUs of the cluster."""
    return int(ray.cluster_resources().get("GPU", 0))


async def reserve(count: int, *, share: float = 1.0) -> Reserved | None:
    """Reserve so many GPUs, near each other; None where the cluster has no GPU at all.

    `share` is what each who uses a GPU takes of it.

    Raises:
        BadInput: they are not there, or others keep them.
    """
    there = gpu_count()
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
        address=ray.get_runtime_context().gcs_address,
        nodes=lambda: placement_group_table(group)["bundles_to_node_id"],
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


def head_address() -> tuple[str, int]:
    """Where the head of the cluster answers."""
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
