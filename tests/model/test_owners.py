"""Every element has one owner: on small networks in full, on the whole K2 by its meta build.

`owners_job.py` holds the same arithmetic against what the sharding engine really does.
"""

import json
import socket
import subprocess
import sys
from collections import defaultdict
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
from torch.testing._internal.distributed.fake_pg import FakeStore

from model.config import ParallelConfig
from model.expert_parallel import ExpertParallel
from model.inventory import Role, Weight, inventory
from model.k2 import K2
from model.owners import check_experts, cut_elements, elements, held, owned, owned_elements
from model.pieces import Piece, matrices
from model.releases import kimi_k2_instruct
from model.tiny import tiny_config
from rl.plan_memory import BUCKET_ELEMENTS
from rl.recipe import load_recipe

CASES = [
    (shards, stage, ways)
    for shards, ways in ((1, 1), (2, 1), (2, 2), (6, 2), (8, 8), (7, 1))
    for stage in (1, 2, 3)
]


def _sharding(shards: int, stage: int, ways: int) -> ParallelConfig:
    return ParallelConfig(shards=shards, zero_stage=stage, expert_parallel=ways)


def _trained(weights: Sequence[Weight]) -> dict[str, int]:
    return {w.name: w.elements for w in weights if w.role is not Role.buffer}


def _assert_owned_once(weights: Sequence[Weight], parallel: ParallelConfig) -> None:
    """The ranges of all shards, in order, have neither gaps nor overlaps."""
    ranges: dict[str, list[tuple[int, int]]] = defaultdict(list)
    for rank in range(parallel.shards):
        for name, begin, end in owned(weights, parallel, rank):
            ranges[name].append((begin, end))
    assert ranges.keys() == _trained(weights).keys()
    for name, size in _trained(weights).items():
        reached = 0
        for begin, end in sorted(ranges[name]):
            assert begin == reached, name
            reached = end
        assert reached == size, name


@pytest.mark.parametrize(("shards", "stage", "ways"), CASES)
def test_every_element_has_one_owner(shards: int, stage: int, ways: int) -> None:
    weights, parallel = inventory(tiny_config(512)), _sharding(shards, stage, ways)
    _assert_owned_once(weights, parallel)
    most = sum(owned_elements(weights, parallel).values())
    for rank in range(shards):
        mine = elements(owned(weights, parallel, rank))
        assert mine <= most
        assert elements(held(weights, parallel, rank)) >= mine


@pytest.mark.parametrize(("shards", "stage", "ways"), CASES)
def test_cut_elements_are_those_of_the_optimisers_own_plan(
    shards: int, stage: int, ways: int
) -> None:
    weights, parallel = inventory(tiny_config(512)), _sharding(shards, stage, ways)
    shapes = {w.name: w.shape for w in weights if w.role in (Role.matrix, Role.expert)}
    pieces = [
        [
            Piece(parameter=name, shape=shapes[name], begin=begin, end=end, offset=0)
            for name, begin, end in owned(weights, parallel, rank)
            if name in shapes
        ]
        for rank in range(shards)
    ]
    cut = sum(m.size for m in matrices(pieces) if len(m.shares) > 1)
    assert cut_elements(weights, parallel) == cut
    assert (cut > 0) == (shards > 1)


def test_experts_that_cannot_be_spread_are_refused() -> None:
    weights = inventory(tiny_config(512))
    with pytest.raises(ValueError, match=r"expert_parallel=3 must divide the 16 experts"):
        check_experts(weights, _sharding(3, 1, 3))
    dense = [w for w in weights if w.role is not Role.expert]
    with pytest.raises(ValueError, match="the model has no experts"):
        check_experts(dense, _sharding(2, 1, 2))


@contextmanager
def _fake_job(rank: int, size: int) -> Iterator[None]:
    """One rank of a job that has no other ranks."""
    dist.init_process_group("fake", rank=rank, world_size=size, store=FakeStore())
    try:
        yield
    finally:
        dist.destroy_process_group()


@pytest.mark.parametrize("recipe", ["k2_full", "k2_full_1024"])
def test_the_whole_k2_is_built_and_owned_layer_by_layer(recipe: str) -> None:
    parallel = load_recipe(recipe, []).parallel
    config = kimi_k2_instruct()
    weights = inventory(config)
    _assert_owned_once(weights, parallel)
    whole = ParallelConfig(shards=parallel.shards, expert_parallel=parallel.expert_parallel)
    for rank in (0, 1, parallel.shards - 1):
        ranges = {name: (begin, end) for name, begin, end in held(weights, whole, rank)}
        with torch.device("meta"):
            network = K2(config)
        with _fake_job(rank, parallel.shards):
            first = rank // parallel.expert_parallel * parallel.expert_parallel
            group = dist.new_group(list(range(first, first + parallel.expert_parallel)))
            for layer in network.model.layers[config.first_k_dense_replace :]:
                layer.mlp.experts = ExpertParallel(layer.mlp.experts, group)
                mine = layer.mlp.experts.gate_up_proj
                assert mine.shape == (3, 4096, 7168) and mine.is_meta
        for name, parameter in network.named_parameters():
            begin, end = ranges[name]
            assert end - begin == parameter.numel(), name
            if ".experts." in name:
                experts = network.get_submodule(name.rpartition(".")[0])
                assert begin == experts.first * (parameter.numel() // len(parameter))
        assert ranges.keys() == {name for name, _ in network.named_parameters()}


@pytest.mark.parametrize(("stage", "ways"), [(2, 1), (3, 2)])
def test_the_engine_cuts_the_same(stage: int, ways: int, tmp_path: Path) -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    job = tmp_path / "job.json"
    job.write_text(json.dumps({"stage": stage, "ways": ways, "port": port}))
    script = Path(__file__).with_name("owners_job.py")
    ranks = [
        subprocess.Popen([sys.executable, str(script), str(job), str(rank)]) for rank in range(2)
    ]
    assert [rank.wait(timeout=240) for rank in ranks] == [0, 0]
    weights, parallel = inventory(tiny_config(512)), _sharding(2, stage, ways)
    for rank in range(2):
        found = json.loads((tmp_path / f"{rank}.json").read_text())
        expected = sorted(list(piece) for piece in owned(weights, parallel, rank))
        assert sorted(found["pieces"]) == expected
        assert found["bucket_elements"] == BUCKET_ELEMENTS
