"""GPUs for learner shards and engines, reserved in Ray: one bundle of a placement group each.

disaggregated | shard 0 | shard 1 | engine 0: two GPUs | engine 1: two GPUs |
colocated     | shard 0 | shard 1 | shard 2  | shard 3 |  half of each GPU
              | engine 0: the same| engine 1: the same |  the other half
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from rl.config import Placement, TrainConfig
from rl.errors import BadInput


@dataclass(frozen=True, slots=True, kw_only=True)
class Reserved:
    """GPUs of the cluster, those of one node next to each other."""

    bundles: tuple[int, ...]  # the bundle of each GPU
    strategy: Callable[[int], Any]
    """Ray's scheduling strategy for what is to run in a bundle."""
    nodes: Callable[[], Mapping[int, str]]
    """The node of every bundle; one that is lost moves to another."""
    address: str  # of the cluster
    share: float = 1.0  # of a GPU, for each who uses it

    def shard(self, rank: int) -> dict[str, Any]:
        """Ray's options for a learner shard: one GPU."""
        return self._at(rank, self.share)

    def engine(self, index: int, ways: int) -> dict[str, Any]:
        """Ray's options for the owner of an engine on `ways` GPUs.

        If they are several, vLLM places an actor of its own on each, and the owner needs none.
        """
        first = index * ways
        if ways == 1:
            return self._at(first, self.share)
        mine = self.bundles[first : first + ways]
        environment = {
            "RAY_ADDRESS": self.address,  # vLLM's core would start a cluster of its own
            "VLLM_RAY_BUNDLE_INDICES": ",".join(map(str, mine)),
            "VLLM_RAY_PER_WORKER_GPUS": str(self.share),
        }
        return self._at(first, 0) | {"runtime_env": {"env_vars": environment}}

    def ranks(self, index: int, ways: int) -> list[str]:
        """The nodes of an engine's workers, as vLLM numbers them."""
        nodes, first = self.nodes(), index * ways
        return [nodes[bundle] for bundle in self.bundles[first : first + ways]]

    def _at(self, gpu: int, share: float) -> dict[str, Any]:
        place = self.strategy(self.bundles[gpu])
        return {"num_gpus": share, "num_cpus": 0, "scheduling_strategy": place}


def check_gpus(config: TrainConfig, there: int) -> None:
    """Raise `BadInput` if a cluster of `there` GPUs has some, but not as many as are needed."""
    shards = config.parallel.shards
    engines, ways = config.cluster.rollout_workers, config.engine.tensor_parallel_size
    together = config.cluster.placement is Placement.colocated
    needed = shards if together else shards + engines * ways
    if there == 0 or there >= needed:
        return
    least = max(shards, engines * ways)
    hint = "" if together or there < least else "; cluster.placement=colocated shares them"
    raise BadInput(
        f"parallel.shards={shards} and cluster.rollout_workers={engines} of "
        f"engine.tensor_parallel_size={ways} need {needed} GPUs, and the cluster has "
        f"{there}{hint}"
    )
