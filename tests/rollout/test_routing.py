"""Experts as an engine records them: the bookkeeping with a fake runner, and those of a real engine
against the learner's own routers on the same tokens."""

import asyncio
import json
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor

from model.feed_forward import Router
from model.k2 import K2
from model.load import load_k2
from model.network_of import K2_TYPES
from model.send_weights import WeightSender
from rewards.config import RepetitionConfig
from rollout.config import Dtype, EngineConfig
from rollout.engine import Engine
from rollout.episode import Completion, StopReason
from rollout.partial import PartialRollout
from rollout.routing import REPLAYED, Recorder, dense_layers, joined_routing

RULE = RepetitionConfig(
    ngram=4, ngram_times=3, window=256, period=32, period_times=3, min_tokens=32
)
TIE = 1e-5  # of a biased score, of about 0.5: some hundred roundings of float32


class FakeRouter(torch.nn.Module):
    """Tells what a test says that a layer chose."""

    def set_capture_fn(self, tell: Any) -> None:
        self.tell = tell


class FakeLayer(torch.nn.Module):
    def __init__(self, layer_id: int) -> None:
        super().__init__()
        self.layer_id, self.router = layer_id, FakeRouter()


BLOCK = 4


class FakeRunner:
    """vLLM's CPU model runner with three layers, the first without experts, two choices each.

    A token chooses experts that name it: 10 * id and 10 * id + 1, and 100 more in the last layer.
    """

    def __init__(self, experts: int = 256) -> None:
        config = SimpleNamespace(
            get_num_experts=lambda: experts,
            get_total_num_hidden_layers=lambda: 3,
            get_num_experts_per_tok=lambda: 2,
        )
        self.vllm_config = SimpleNamespace(model_config=config)
        table = SimpleNamespace(np=np.zeros((4, 4), np.int32))
        self.table = SimpleNamespace(block_table=table, block_size=BLOCK)
        blocks = SimpleNamespace(block_tables=[self.table])
        self.input_batch = SimpleNamespace(
            block_table=blocks, req_ids=[], num_computed_tokens_cpu=np.zeros(4, np.int32)
        )
        self.kv_cache_config = SimpleNamespace(num_blocks=8)
        self.max_num_tokens = 16
        self.model = torch.nn.ModuleList([FakeLayer(1), FakeLayer(2)])
        self.ids: list[int] = []
        self.sampled: list[list[int]] = []
        self.deaf = False

    def execute_model(self, scheduled: Any) -> None:
        for layer in self.model[: 1 if self.deaf else 2]:
            chosen = [[10 * i + 100 * (layer.layer_id - 1) + k for k in (0, 1)] for i in self.ids]
            layer.router.tell(torch.tensor(chosen, dtype=torch.int32))

    def sample_tokens(self, grammar: None) -> Any:
        return SimpleNamespace(
            req_ids=list(self.input_batch.req_ids),
            sampled_token_ids=self.sampled,
            aux_output_connector_output=None,
        )

    def step(self, *requests: tuple[str, int, list[int], list[int], int | None]) -> dict[str, Any]:
        """Each: name, tokens computed before, ids, blocks, and what it is asked for (None: it does
        not sample)."""
        batch = self.input_batch
        batch.req_ids = [name for name, *_ in requests]
        self.ids = [i for _, _, ids, _, _ in requests for i in ids]
        for row, (_, computed, _, blocks, _) in enumerate(requests):
            batch.num_computed_tokens_cpu[row] = computed
            self.table.block_table.np[row, : len(blocks)] = blocks
        self.sampled = [[] if asked is None else [1] for *_, asked in requests]
        metadata = SimpleNamespace(requests={name: asked or 0 for name, *_, asked in requests})
        self.execute_model(
            SimpleNamespace(
                num_scheduled_tokens={name: len(ids) for name, _, ids, _, _ in requests},
                total_num_scheduled_tokens=len(self.ids),
                aux_output_connector_metadata=metadata,
            )
        )
        return self.sample_tokens(None).aux_output_connector_output


def ids_of(rows: Any) -> list[int]:
    """Whose choices the rows are."""
    assert rows.rows[:, 0].max() == 0  # no experts there
    assert (rows.rows[:, 2] == rows.rows[:, 1] + 100).all()
    assert (rows.rows[:, :, 1] == rows.rows[:, :, 0] + (0, 1, 1)).all()
    return (rows.rows[:, 1, 0] // 10).tolist()


def test_a_request_gets_the_experts_of_all_its_tokens_once() -> None:
    runner = FakeRunner()
    Recorder(runner)
    # A prompt of six in two chunks, between them another request's.
    assert runner.step(("a", 0, [1, 2, 3, 4, 5], [3, 0], None)) == {}
    told = runner.step(("b", 0, [7, 8], [5], 0), ("a", 5, [6], [3, 0], 0))
    assert {name: (rows.token_start, ids_of(rows)) for name, rows in told.items()} == {
        "b": (0, [7, 8]),
        "a": (0, [1, 2, 3, 4, 5, 6]),
    }
    # Decoding, in another order: one row each.
    told = runner.step(("a", 6, [9], [3, 0], 6), ("b", 2, [10], [5], 2))
    assert [(rows.token_start, ids_of(rows)) for rows in told.values()] == [(6, [9]), (2, [10])]


def test_a_shared_prefix_brings_the_experts_of_who_computed_it() -> None:
    runner = FakeRunner()
    Recorder(runner)
    runner.step(("a", 0, [1, 2, 3, 4, 5], [3, 1], 0))
    told = runner.step(("b", 4, [6, 7], [3, 2], 0))  # its first block is a's
    assert ids_of(told["b"]) == [1, 2, 3, 4, 6, 7]


def test_what_is_computed_again_is_not_returned_again() -> None:
    runner = FakeRunner()
    Recorder(runner)
    runner.step(("a", 0, [1, 2], [0], 0))
    told = runner.step(("a", 0, [11, 12, 3], [4], 2))  # after new weights: other experts
    assert (told["a"].token_start, ids_of(told["a"])) == (2, [3])


def test_a_request_that_goes_on_is_asked_for_what_is_new() -> None:
    runner = FakeRunner()
    Recorder(runner)
    told = runner.step(("a", 0, [1, 2, 3, 4, 5], [2, 6], 3))  # three were recorded elsewhere
    assert ids_of(told["a"]) == [4, 5]


def test_a_router_that_is_not_heard_is_an_error() -> None:
    runner = FakeRunner()
    Recorder(runner)
    runner.deaf = True
    with pytest.raises(RuntimeError, match="1 of 2 routers"):
        runner.step(("a", 0, [1], [0], 0))


@pytest.mark.parametrize(("experts", "dtype"), [(256, np.uint8), (257, np.uint16)])
def test_rows_are_as_narrow_as_the_number_of_experts_allows(experts: int, dtype: type) -> None:
    runner = FakeRunner(experts)
    Recorder(runner)
    assert runner.step(("a", 0, [1], [0], 0))["a"].rows.dtype == dtype


def test_pieces_join_to_one_row_for_each_token_but_the_last() -> None:
    first, second = (np.full((n, 2, 3), n, np.uint8) for n in (5, 2))
    assert joined_routing(None, None) is None
    assert joined_routing(None, first) is not None
    joined = joined_routing(joined_routing(None, first), second)
    assert joined is not None and joined[:, 0, 0].tolist() == [5] * 5 + [2] * 2
    assert joined_routing(first, None) is not None, "a piece without tokens has no rows"


def test_only_what_the_learner_can_replay_is_recorded(tmp_path: Path) -> None:
    assert REPLAYED == K2_TYPES
    config = tmp_path / "config.json"
    config.write_text(json.dumps({"model_type": "kimi_k2", "first_k_dense_replace": 1}))
    assert dense_layers(tmp_path) == 1
    text = {"text_config": {"first_k_dense_replace": 2, "model_type": "kimi_k2"}}
    config.write_text(json.dumps({"model_type": "kimi_k25", **text}))
    assert dense_layers(tmp_path) == 2
    config.write_text(json.dumps({"model_type": "qwen3"}))
    with pytest.raises(ValueError, match=r"routing_replay is for .*config.json is of .*qwen3"):
        dense_layers(tmp_path)


@pytest.fixture(scope="module")
def engine(checkpoints: tuple[Path, Path], runner: asyncio.Runner) -> Iterator[Engine]:
    config = EngineConfig(
        dtype=Dtype.float32,
        max_model_len=256,
        max_num_seqs=6,
        kv_cache_bytes=1 << 26,
        routing_replay=True,
    )
    engine = runner.run(Engine.start(config, checkpoints[0], repetition=RULE))
    yield engine
    runner.run(engine.shutdown())


class Watched:
    """The scores, biased and not, by which every router of a network chooses."""

    def __init__(self, network: K2) -> None:
        self.network = network
        self.scores: list[Tensor] = []
        for module in network.modules():
            if isinstance(module, Router):
                module.register_forward_pre_hook(self._look)

    def _look(self, router: Router, inputs: tuple[Tensor, ...]) -> None:
        scores = torch.nn.functional.linear(inputs[0], router.weight).sigmoid()
        self.scores.append(scores + router.e_score_correction_bias)

    def differs(self, ids: list[int], replay: Tensor) -> tuple[int, float]:
        """How many choices of the replay [T, layers, K] its routers would not make, and by how much
        the worst of them scores below what they would take."""
        self.scores.clear()
        with torch.no_grad():
            self.network(torch.tensor(ids), [len(ids)], replay.movedim(1, 0))
        assert self.network.differing is not None
        worst = 0.0
        for scores, chosen in zip(self.scores, replay.unbind(1), strict=True):
            recorded = chosen[:, 0] >= 0
            least = scores.topk(chosen.shape[1]).values[recorded].amin(-1, keepdim=True)
            gap = least - scores[recorded].gather(1, chosen[recorded].long())
            worst = max(worst, gap.max().item() if gap.numel() else 0.0)
        return int(self.network.differing), worst


def check_routing(networks: list[Watched], drawn: list[Completion]) -> list[int]:
    """Every recorded choice is the learner's own under the weights that the token was computed
    with, but for ties; returns the number of choices of each version."""
    counts = [0] * len(networks)
    for each in drawn:
        assert each.routing is not None and len(each.token_ids)
        prompt, ids = len(each.prompt_ids), [*each.prompt_ids.tolist(), *each.token_ids.tolist()]
        assert each.routing.shape == (len(ids) - 1, 2, 2)
        computed = np.array([each.versions[0]] * (prompt - 1) + list(each.versions))
        for version, network in enumerate(networks):
            replay = torch.full((len(ids), 2, 2), -1, dtype=torch.int16)
            mine = torch.from_numpy(computed == version)
            rows = torch.from_numpy(each.routing.astype(np.int16))
            replay[:-1][mine] = rows[mine]
            differing, worst = network.differs(ids, replay)
            choices = int(mine.sum()) * 4
            counts[version] += choices
            assert worst < TIE
            assert differing <= choices / 1000
    return counts


def test_an_engine_records_the_learners_own_choices(
    engine: Engine, runner: asyncio.Runner, checkpoints: tuple[Path, Path], sequences, tmp_path
) -> None:
    """More requests than the engine runs at a time, of all lengths; some are stopped because they
    go in circles, some parked, and new weights come while they run."""
    networks = [Watched(load_k2(folder)) for folder in checkpoints]
    sender = WeightSender(bucket_bytes=1 << 22, root=tmp_path)
    rollout = PartialRollout(engine, places=4, segment_tokens=24)
    new = load_file(checkpoints[1] / "model.safetensors")

    async def draw() -> list[Completion]:
        draws = [
            asyncio.create_task(engine.draw(ids[:100], max_tokens=90, temperature=1.0))
            for ids in sequences
        ]
        draws += [
            asyncio.create_task(engine.draw([i, 6], max_tokens=150, temperature=0.01))
            for i in range(4)
        ]
        draws += [
            asyncio.create_task(rollout.draw([5, 6, i], max_tokens=60, temperature=1.0))
            for i in range(7)
        ]
        while engine.stats().generated_tokens < 200:
            await asyncio.sleep(0.01)
        await engine.receive(sender.publish(iter(new.items()), 1))
        rollout.new_version()
        return await asyncio.gather(*draws)

    try:
        drawn = runner.run(draw())
    finally:
        sender.close()
    assert any(len(set(each.versions)) == 2 for each in drawn)
    assert any(each.stop_reason is StopReason.repetition for each in drawn)
    assert any(each.parked for each in drawn)
    counts = check_routing(networks, drawn)
    assert min(counts) > 1000
    # A completion routed by the weights that did not sample it would differ almost everywhere.
    old = next(each for each in drawn if set(each.versions) == {0} and len(each.token_ids) > 10)
    assert old.routing is not None
    ids = [*old.prompt_ids.tolist(), *old.token_ids.tolist()]
    replay = torch.from_numpy(old.routing.astype(np.int16))
    differing, _ = networks[1].differs(ids[:-1], replay)
    assert differing > replay.numel() / 4


def test_a_compiled_engine_on_cpu_is_refused(checkpoints: tuple[Path, Path]) -> None:
    """Its graphs tell nobody what they choose."""
    config = EngineConfig(routing_replay=True, eager=False)
    with pytest.raises(ValueError, match="CPU needs"):
        asyncio.run(Engine.start(config, checkpoints[0]))
