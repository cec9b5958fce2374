"""Who reserves which GPU in Ray, which counts them without having one."""

import asyncio
import os
import time
from collections.abc import Iterator
from typing import Any

import pytest
import ray
import torch
from ray.util.placement_group import remove_placement_group

from rl.config import ClusterConfig, EngineConfig, ParallelConfig, Placement, TrainConfig
from rl.errors import BadInput
from rl.gpus import Reserved, check_gpus
from rl.ray_parts import RESERVE_LOOK_S, Actor, connect, reserve

COLOCATED = Placement.colocated


class Part:
    """Tells what Ray gave it."""

    def gpus(self) -> tuple[list[int], dict[str, str]]:
        settings = {name: v for name, v in os.environ.items() if name.startswith("VLLM_RAY_")}
        return [int(each) for each in ray.get_gpu_ids()], settings


@pytest.fixture(scope="module")
def four_gpus() -> Iterator[None]:
    ray.init(num_cpus=2, num_gpus=4, include_dashboard=False, log_to_driver=False)
    yield
    ray.shutdown()


def _config(placement: Placement, shards: int, engines: int, ways: int) -> TrainConfig:
    return TrainConfig(
        cluster=ClusterConfig(placement=placement, rollout_workers=engines),
        parallel=ParallelConfig(shards=shards),
        engine=EngineConfig(tensor_parallel_size=ways),
    )


def _free(count: float) -> bool:
    """Whether so many GPUs are reserved by nobody; Ray hears of it a little later."""
    deadline = time.monotonic() + 30
    while ray.available_resources().get("GPU", 0.0) != count and time.monotonic() < deadline:
        time.sleep(0.1)
    return ray.available_resources().get("GPU", 0.0) == count


def _ask(*options: dict[str, Any]) -> list[tuple[list[int], dict[str, str]]]:
    async def main() -> list[Any]:
        parts = [Actor(f"part {index}", Part, **each) for index, each in enumerate(options)]
        try:
            return await asyncio.gather(*(part.call("gpus") for part in parts))
        finally:
            for part in parts:
                part.kill()

    return asyncio.run(asyncio.wait_for(main(), 120))


def _reserve(count: int, **share: float) -> Reserved:
    reserved = asyncio.run(reserve(count, **share))
    assert reserved is not None
    return reserved


def test_shard_and_engine_share_one_gpu_and_nobody_else_comes(four_gpus: None) -> None:
    gpus = _reserve(2, share=0.5)
    assert _free(2.0)
    try:
        both = [gpus.shard(0), gpus.shard(1), gpus.engine(0, 1), gpus.engine(1, 1)]
        first, second, engine, other = (ids for ids, _ in _ask(*both))
        assert (first, second) == (engine, other)
        assert len(first) == len(second) == 1 and first != second
        with pytest.raises(TimeoutError):
            asyncio.run(asyncio.wait_for(_third(gpus), 3))
    finally:
        remove_placement_group(gpus.strategy(0).placement_group)


async def _third(gpus: Reserved) -> None:
    parts = [Actor("part", Part, **gpus.shard(0)) for _ in range(3)]
    try:
        await asyncio.gather(*(part.call("gpus") for part in parts))
    finally:
        for part in parts:
            part.kill()


def test_an_engine_on_several_gpus_tells_vllm_where_its_workers_go(four_gpus: None) -> None:
    gpus = _reserve(4, share=0.5)
    try:
        (none, first), (_, second) = _ask(gpus.engine(0, 2), gpus.engine(1, 2))
        assert not none
        places = [settings["VLLM_RAY_BUNDLE_INDICES"].split(",") for settings in (first, second)]
        assert sorted(places[0] + places[1]) == ["0", "1", "2", "3"]
        assert first["VLLM_RAY_PER_WORKER_GPUS"] == "0.5"
        # What vLLM does then: a worker on each, beside the learner's shard.
        workers = [gpus._at(gpu, 0.5) for gpu in range(4)]
        shards = [gpus.shard(rank) for rank in range(4)]
        found = [ids for ids, _ in _ask(*workers, *shards)]
        assert found[:4] == found[4:]
        assert sorted(gpu for ids in found[:4] for gpu in ids) == [0, 1, 2, 3]
    finally:
        remove_placement_group(gpus.strategy(0).placement_group)


def test_what_the_cluster_does_not_have_is_refused_by_name(four_gpus: None) -> None:
    check_gpus(_config(Placement.disaggregated, shards=2, engines=1, ways=2), 4)
    check_gpus(_config(COLOCATED, shards=4, engines=2, ways=2), 4)
    with pytest.raises(BadInput, match=r"need 5 GPUs, .* has 4; cluster\.placement=colocated"):
        check_gpus(_config(Placement.disaggregated, shards=1, engines=2, ways=2), 4)
    with pytest.raises(BadInput, match=r"need 8 GPUs, and the cluster has 4$"):
        check_gpus(_config(COLOCATED, shards=8, engines=4, ways=2), 4)
    with pytest.raises(BadInput, match="5 GPUs are needed; the cluster has 4"):
        asyncio.run(reserve(5))
    assert _free(4.0)


@pytest.mark.parametrize(("built", "counted"), [(False, 0), (True, None)])
def test_gpus_that_nothing_installed_computes_on_are_not_counted(
    monkeypatch: pytest.MonkeyPatch, built: bool, counted: int | None
) -> None:
    given: dict[str, Any] = {}
    monkeypatch.setattr("rl.ray_parts.ray.init", given.update)
    monkeypatch.setattr(torch.backends.cuda, "is_built", lambda: built)
    connect(ClusterConfig())
    assert given["num_gpus"] == counted


def test_a_run_that_waits_for_gpus_of_others_can_be_stopped(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """It ends when the thread that waits does."""
    asked: list[float] = []

    class Group:
        def wait(self, seconds: float) -> bool:
            asked.append(seconds)
            return len(asked) == 3

    monkeypatch.setattr("rl.ray_parts.gpu_count", lambda: 1)
    monkeypatch.setattr("rl.ray_parts.placement_group", lambda bundles, strategy: Group())
    monkeypatch.setattr(
        "rl.ray_parts.placement_group_table", lambda group: {"bundles_to_node_id": {0: "here"}}
    )
    assert _reserve(1).bundles == (0,)
    assert asked == [RESERVE_LOOK_S] * 3
