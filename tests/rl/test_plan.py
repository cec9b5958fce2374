"""`temper plan`: numbers of released models, what does not fit, and the tiny one measured."""

import gc
import json
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from kernels import logprob
from kernels.newton_schulz import CPU_CHUNK
from model.activations import HEAD_TILE, HEAD_TILE_CPU
from model.config import MuonClipConfig, Offload, ParallelConfig, Precision
from model.inventory import Role, Weight, inventory
from model.k2 import K2
from model.k2_config import K2Config
from model.live_bytes import LiveBytes
from model.muonclip import BATCH_ELEMENTS, MuonClip, parameter_groups
from model.policy import Policy
from model.releases import kimi_k2_instruct
from model.tiny import tiny_config
from rl import weight_link
from rl.cli import main
from rl.config import TrainConfig
from rl.errors import BadInput
from rl.hardware import load_hardware
from rl.plan import Plan, make_plan
from rl.plan_changes import changes_that_fit
from rl.plan_memory import (
    MUON_BATCH,
    MUON_CHUNK,
    RELAY_PIECES,
    learner_memory,
    published_layers,
    received_bytes,
)
from rl.plan_model import RELEASES, architecture_of
from rl.plan_time import forward_flops, newton_schulz_flops
from rl.recipe import load_recipe
from rollout.config import Dtype

H800 = load_hardware("H800")
# What is counted by hand below: 128 shards and two engines, each with GPUs of its own.
APART = ["cluster.placement=disaggregated", "parallel.shards=128", "cluster.rollout_workers=2"]


def _plan(recipe: str, *overrides: str, hardware: str = "H800") -> Plan:
    config = load_recipe(recipe, overrides)
    return make_plan(config, architecture_of(config.policy), load_hardware(hardware))


@pytest.mark.parametrize(
    ("recipe", "hardware", "parameters", "devices"),
    [
        ("k2_full", "H800", 1_026_408_232_448, 256),
        ("k2_full_1024", "H800", 1_026_408_232_448, 1024),
        ("moonlight_16b", "H800", 15_960_110_208, 8),
        ("qwen3_0p6b", "A100", 596_049_920, 2),
        ("quickstart", "cpu", 7_597_728, 2),
    ],
)
def test_every_recipe_fits_where_it_says(
    recipe: str, hardware: str, parameters: int, devices: int
) -> None:
    plan = _plan(recipe, hardware=hardware)
    assert plan.fits, plan.problems
    assert (plan.parameters, plan.devices) == (parameters, devices)
    assert plan.traffic.muon_over_adamw <= 1.25  # Moonlight sec. 2.3


def test_k2_states_on_128_shards_by_hand() -> None:
    plan = _plan("k2_full", *APART, "parallel.offload=none")
    # Every expert-parallel shard has 3 of 384 experts; everything else is cut in 128.
    owned = 1014.686e9 / 128 + 11.722e9 / 128
    assert plan.learner.weights == pytest.approx(2 * owned, rel=1e-3)
    assert plan.learner.gradients == pytest.approx(4 * owned, rel=1e-3)
    # float32 weights and momentum; AdamW's second moment for embedding and head
    assert plan.learner.optimizer == pytest.approx(8 * owned + 4 * 2.35e9 / 128, rel=1e-3)
    assert plan.learner.activations.saved == 61 * 8192 * 7168 * 2
    offloaded = _plan("k2_full", *APART)
    assert (offloaded.learner.gradients, offloaded.learner.optimizer) == (0, 0)
    assert offloaded.learner.host == plan.learner.gradients + plan.learner.optimizer


def test_adamw_keeps_two_moments_of_every_element_and_sends_no_matrices() -> None:
    with_muon = _plan("k2_full", *APART, "parallel.offload=none")
    plan = _plan("k2_full", *APART, "parallel.offload=none", "optimizer.muon=false")
    owned = 1014.686e9 / 128 + 11.722e9 / 128
    assert plan.learner.optimizer == pytest.approx(12 * owned, rel=1e-3)
    assert plan.learner.snapshot - with_muon.learner.snapshot == pytest.approx(
        8 * (plan.learner.optimizer - with_muon.learner.optimizer), rel=1e-3
    )
    assert (plan.traffic.muon, plan.times.newton_schulz, plan.times.muon) == (0, 0.0, 0.0)
    assert with_muon.traffic.muon > 0
    travels, stays = (_plan("k2_full", *APART, f"optimizer.muon={m}") for m in ("true", "false"))
    assert travels.traffic.offload / stays.traffic.offload == pytest.approx(14 / 8)


def test_weights_for_engines_lie_twice_in_the_memory_of_a_learner_node() -> None:
    node = _plan("k2_full", *APART).learner.shared
    # 8 of 128 shards have 3 experts of every layer each; all else is dealt out, tensor by tensor.
    experts = 8 * 1014.686e9 / 128
    assert 2 * 2 * experts < node < 2 * 2 * (experts + 8 * 11.722e9 / 128 + 2 * 1.175e9)
    with_changes = _plan("k2_full", *APART, "weights.delta=true", "weights.by_layer=false")
    assert with_changes.learner.shared == node * 3 // 2
    assert with_changes.engine.shared == 4 * 1_026_408_232_448  # two versions of the whole
    assert [p.part for p in with_changes.problems] == ["host"]
    whole = _plan("moonlight_16b", "parallel.expert_parallel=1")
    assert whole.learner.shared == 2 * 2 * 15_960_110_208  # all four shards are on one node
    assert whole.engine.received == 0


def test_weights_from_other_hosts_lie_in_the_memory_of_an_engine_node() -> None:
    layer = 384 * 3 * 7168 * 2048 + 384 * 7168 + 384 + 3 * 7168 * 2048  # experts, router, shared
    layer += 101_124_096 + 2 * 7168  # attention with its norms, the layer's norms
    plan = _plan("k2_full")
    # Two layers, and what some senders have not removed yet of the one before.
    assert 2 * 2 * layer < plan.engine.received < 1.01 * 2 * 2 * layer
    whole = _plan("k2_full", "weights.by_layer=false")
    assert whole.engine.received == 2 * 2 * 1_026_408_232_448
    assert [problem.part for problem in whole.problems] == ["host"] and plan.fits
    config = load_recipe("k2_full", ["weights.by_layer=false"])
    overrides = [c.override for c in changes_that_fit(config, kimi_k2_instruct(), H800)]
    assert overrides == ["weights.by_layer=true"]
    on_one_host = ["weights.transport=broadcast", "weights.by_layer=false"]
    assert _plan("moonlight_16b", *on_one_host).engine.received == 2 * 2 * 15_960_110_208
    changed = [*on_one_host, "weights.delta=true"]
    assert _plan("moonlight_16b", *changed).engine.received == 3 * 2 * 15_960_110_208


def test_layers_of_one_sender_take_turns_before_those_of_another() -> None:
    weights = [
        Weight(name="", layer=layer, role=Role.matrix, shape=(size, 1))
        for layer, size in ((0, 100), (1, 10), (2, 1), (2, 70))
    ]
    parallel = ParallelConfig(shards=2)
    nodes = published_layers(weights, parallel, 1)
    assert [dict(node) for node in nodes] == [{1: 100, 3: 1}, {2: 10, 3: 70}]
    config = load_recipe("moonlight_16b", ["weights.transport=broadcast", "weights.by_layer=true"])
    config = replace(config, parallel=parallel)
    row = replace(H800, devices_per_node=1)
    # The last layer, and the first of the next version from one node when the other has not sent
    # that it has nothing of it, so that layer 1 is still there.
    assert received_bytes(config, weights, row) == 2 * (71 + 100 + 10)
    assert received_bytes(config, weights, H800) == 2 * (71 + 100)  # both shards on one node


def test_relays_have_room_on_the_first_device_of_a_host() -> None:
    relays = 2 * H800.context_bytes + RELAY_PIECES
    for recipe in ("k2_full", "k2_full_1024"):
        plan = _plan(recipe)
        assert (plan.learner.relays, plan.engine.relays) == (relays, relays)
    alone = _plan("moonlight_16b")
    assert (alone.learner.relays, alone.engine.relays) == (0, 0)
    sent = _plan("moonlight_16b", "weights.transport=broadcast")
    assert sent.engine.total - alone.engine.total == relays
    assert sent.learner.total - alone.learner.total == relays
    on_cpu = _plan("quickstart", "weights.transport=broadcast", hardware="cpu")
    assert on_cpu.engine.relays == 0


def test_a_checkpoint_lies_in_the_memory_of_a_learner_node_while_it_is_written() -> None:
    plan = _plan("k2_full", *APART).learner
    state = _plan("k2_full", *APART, "parallel.offload=none").learner.optimizer
    assert plan.snapshot == plan.shared // 2 + 8 * state
    on_disk = ["parallel.offload=nvme", "parallel.nvme_path=/disk"]
    assert _plan("k2_full", *APART, *on_disk).learner.snapshot == plan.shared // 2


def test_log_probs_of_pi_old_take_a_forward_pass_of_all_minibatches_but_the_first() -> None:
    alone = ["objective.ptx_sequences=0"]
    plain = [*alone, "objective.old_logprobs=rollout", "objective.correction=none"]
    for layers, passes, trips in (
        (["parallel.checkpoint_layers=true"], 4, 3),
        (["parallel.checkpoint_layers=false"], 3, 2),
    ):
        without, found = (_plan("k2_full", *each, *layers).times for each in (plain, alone))
        assert found.compute == pytest.approx(without.compute * (1 + 3 / 4 / passes))
        assert found.experts == pytest.approx(without.experts * (1 + 3 / 4 / trips))
    once = ["objective.minibatches=1"]
    assert _plan("k2_full", *alone, *once).times == _plan("k2_full", *plain, *once).times
    for stage, gathers in ((2, 0), (3, 3 / 2)):
        cut = [f"parallel.zero_stage={stage}", "parallel.offload=none"]
        before, after = (_plan("k2_full", *each, *cut) for each in (plain, alone))
        assert before.traffic == after.traffic  # of an optimiser step
        # ZeRO-3 gathers weights for a forward and a backward pass of 4 minibatches; 3 once more.
        moved = gathers * before.traffic.weights
        more = after.times.collectives - before.times.collectives
        link = H800.inter_node_bandwidth * H800.network_efficiency
        assert more == pytest.approx(moved / link)


def test_kv_cache_of_the_engines() -> None:
    k2 = _plan("k2_full").engine
    assert k2.kv_bytes_per_token == 70_272  # spec 10: every device has all latents
    assert k2.cached_tokens == 40_000_000_000 // 70_272
    assert k2.weights == pytest.approx(2 * 1.026408e12 / 64, rel=1e-6)
    qwen = _plan("qwen3_0p6b", "engine.tensor_parallel_size=4").engine
    assert qwen.kv_bytes_per_token == 28 * 2 * 8 * 128 * 2 // 4  # key heads are split


def test_traffic_of_k2_by_hand() -> None:
    moved = _plan("k2_full", *APART, "objective.ptx_sequences=0").traffic
    assert moved.micro_batches == 2  # 256 sequences on 128 shards, one in each micro-batch
    dense = 11.722185664e9
    assert moved.gradients == pytest.approx(2 * 4 * dense * 127 / 128, rel=1e-4)
    assert moved.weights == pytest.approx(2 * 2 * 2 * dense * 127 / 128, rel=1e-4)
    # 8 rows of 7,168 numbers for each of 16,384 tokens in 60 layers, three times there and back
    assert moved.experts == pytest.approx(6 * 60 * 16384 * 8 * 7168 * 2 * 127 / 128, rel=1e-6)
    # No expert is cut. Two bytes there and two back of every other matrix, over all shards.
    assert moved.muon == pytest.approx(4 * 9.372368896e9 / 128, rel=1e-6)
    assert moved.publish == 2 * 1_026_408_232_448


def test_arithmetic_of_k2_by_hand() -> None:
    k2 = kimi_k2_instruct()
    assert forward_flops(k2, 0) / 2 == pytest.approx(31.687e9, rel=1e-3)  # spec 1.5
    assert forward_flops(k2, 1000) - forward_flops(k2, 0) == 2 * 61 * 64 * 320 * 1000
    one = newton_schulz_flops([w for w in inventory(k2) if w.name.endswith("1.mlp.gate.weight")], 5)
    assert one == 6 * 5 * 384 * 384 * (4 * 7168 + 2 * 384)  # layers 1, 11, 21, ... 51


def test_what_does_not_fit_comes_with_what_would() -> None:
    config = load_recipe("k2_full", [*APART, "parallel.offload=none"])
    plan = make_plan(config, kimi_k2_instruct(), H800)
    assert not plan.fits
    assert [p.part for p in plan.problems] == ["learner"]
    needed = f"each learner device needs {plan.learner.total / 1e9:.1f} GB of 85.5 GB"
    assert str(plan.problems[0]) == needed
    found = {c.override: c.plan for c in changes_that_fit(config, kimi_k2_instruct(), H800)}
    assert set(found) == {"parallel.offload=cpu", "parallel.shards=256"}
    for override, changed in found.items():
        again = _plan("k2_full", *APART, "parallel.offload=none", override)
        assert again.fits and again.learner == changed.learner


def test_an_engine_that_does_not_fit() -> None:
    config = load_recipe("k2_full", [*APART, "engine.tensor_parallel_size=16"])
    plan = make_plan(config, kimi_k2_instruct(), H800)
    assert [p.part for p in plan.problems] == ["engine"]
    overrides = [c.override for c in changes_that_fit(config, kimi_k2_instruct(), H800)]
    assert overrides == ["engine.tensor_parallel_size=64"]
    short = _plan("k2_full", "engine.kv_cache_bytes=1000000")
    assert str(short.problems[0]) == (
        "engine: the KV cache holds 14 tokens, less than one sequence of 8,192"
    )


def test_a_machine_whose_device_is_the_host_counts_all_parts() -> None:
    cpu = load_hardware("cpu")
    plan = _plan("quickstart", hardware="cpu")
    # Two versions of the weights in shared memory, in float32: the quickstart's engine has that.
    assert plan.learner.shared == 2 * 4 * plan.parameters and plan.engine.shared == 0
    # A checkpoint is copied before it is written: weights, momentum, AdamW's second moment.
    assert 8 * plan.parameters < plan.learner.snapshot < 12 * plan.parameters
    together = plan.learner.total + plan.learner.shared + plan.learner.snapshot + plan.engine.total
    config = load_recipe("quickstart", [])
    small = replace(cpu, memory_bytes=together - 1)
    problem = make_plan(config, tiny_config(512), small).problems[0]
    assert (problem.part, problem.needed) == ("host", together)
    assert make_plan(config, tiny_config(512), replace(cpu, memory_bytes=together)).fits


def test_more_spreading_never_needs_more() -> None:
    def total(**changes: object) -> int:
        parallel = ParallelConfig(**({"shards": 128, "expert_parallel": 64} | changes))  # type: ignore[arg-type]
        config = replace(load_recipe("k2_full", APART), parallel=parallel)
        memory = make_plan(config, kimi_k2_instruct(), H800).learner
        return memory.weights + memory.gradients + memory.optimizer

    by_stage = [total(zero_stage=stage) for stage in (1, 2, 3)]
    assert by_stage[0] > by_stage[1] > by_stage[2]
    assert total(zero_stage=1, expert_parallel=128) < by_stage[0]
    assert total(zero_stage=2, weights=Precision.bfloat16) < by_stage[1]
    offloaded = total(zero_stage=3, offload=Offload.cpu)
    assert offloaded < by_stage[2]


def test_sizes_are_those_of_the_code_that_they_stand_for() -> None:
    assert (logprob.GPU_TILE, logprob.CPU_TILE) == (HEAD_TILE, HEAD_TILE_CPU)
    assert (BATCH_ELEMENTS, CPU_CHUNK) == (MUON_BATCH, MUON_CHUNK)
    assert RELAY_PIECES == weight_link.IN_FLIGHT * weight_link.PIECE + weight_link.DEVICE_BYTES


def test_a_price_makes_a_cost() -> None:
    row = replace(H800, dollars_per_device_hour=2.0)
    plan = make_plan(load_recipe("k2_full", APART), kimi_k2_instruct(), row)
    assert plan.dollars_per_step == pytest.approx(2.0 * 256 * plan.times.step / 3600)
    between = plan.times.publish + plan.times.verify
    assert plan.times.step == max(plan.times.training, plan.times.rollout) + between
    assert plan.times.verify == pytest.approx(2 * 1_026_408_232_448 / H800.hash_bandwidth)


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["parallel.shards=256", "parallel.expert_parallel=256"], "must divide the 384 experts"),
        (["engine.max_model_len=200000"], "exceeds the model's context of 131072"),
        (["engine.tensor_parallel_size=48"], "must divide the 64 heads"),
        (["policy.path=null"], "policy.release=kimi_k2_instruct needs policy.path"),
        (["policy.release=kimi_k2"], "did you mean 'kimi_k2p5'"),
        (["policy.release=null"], "holds no config.json: bring the checkpoint, or name"),
    ],
)
def test_what_cannot_be_planned_is_named(overrides: list[str], message: str) -> None:
    with pytest.raises(BadInput, match=message):
        _plan("k2_full", *APART, *overrides)


def test_a_checkpoint_that_is_here_is_read(tmp_path: Path) -> None:
    K2Config(num_hidden_layers=2).to_json(tmp_path / "config.json")
    config = load_recipe("k2_full", [f"policy.path={tmp_path}"])
    read = architecture_of(config.policy)
    assert isinstance(read, K2Config) and read.num_hidden_layers == 2
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "gpt2"}))
    with pytest.raises(BadInput, match="model_type 'gpt2' cannot be planned"):
        architecture_of(config.policy)
    for make in RELEASES.values():
        assert make().num_hidden_layers > 20


def _command(monkeypatch: pytest.MonkeyPatch, *arguments: str) -> int:
    monkeypatch.setattr(sys, "argv", ["temper", "plan", *arguments])
    try:
        main()
    except SystemExit as done:
        return int(done.code or 0)
    raise AssertionError("the command did not end by exit")


def test_the_command_says_whether_it_fits(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert _command(monkeypatch, "qwen3_0p6b", "--hardware", "A100") == 0
    out = capsys.readouterr().out
    assert "596,049,920 parameters" in out and "fits: " in out
    assert _command(monkeypatch, "k2_full", *APART, "parallel.offload=none") == 1
    out = " ".join(capsys.readouterr().out.split())
    assert "does not fit: each learner device needs" in out
    assert "parallel.offload=cpu is enough" in out
    assert _command(monkeypatch, "k2_full", *APART, "parallel.offload=none", "--json") == 1
    found = json.loads(capsys.readouterr().out)
    assert not found["fits"] and "parallel.offload=cpu" in found["changes_that_fit"]
    assert found["learner"]["total"] > found["device_bytes"] == 85_520_809_984
    assert _command(monkeypatch, "k2_full", "--hardware", "H8OO") == 2
    assert "did you mean 'H800'?" in capsys.readouterr().err


def test_devices_that_learner_and_engines_share_hold_one_of_them_at_a_time() -> None:
    shards = ["parallel.shards=256", "cluster.rollout_workers=4"]
    shared = _plan("k2_full")
    apart = _plan("k2_full", "cluster.placement=disaggregated", *shards)
    assert (shared.devices, apart.devices) == (256, 512)
    reserved = H800.reserved_bytes  # of the process that is there, and of the one that is not
    assert shared.learner.total == apart.learner.total + reserved
    assert shared.engine.total == apart.engine.total + reserved
    assert max(shared.learner.total, shared.engine.total) < H800.memory_bytes
    assert shared.learner.total + shared.engine.total > H800.memory_bytes
    states = apart.learner.weights + apart.learner.gradients + apart.learner.optimizer
    assert (apart.learner.away, shared.learner.away) == (0, states + apart.learner.buckets)
    turns = 2 * shared.learner.away / H800.host_bandwidth
    assert (shared.times.turns, apart.times.turns) == (pytest.approx(turns), 0.0)
    phases = shared.times.training + shared.times.rollout + shared.times.publish
    assert shared.times.step == pytest.approx(phases + shared.times.verify + turns)
    one_after_the_other = _plan("k2_full", "rollout.max_staleness=0").times
    assert one_after_the_other.step == shared.times.step


def test_a_node_of_shared_devices_holds_both_sides_in_its_memory() -> None:
    plan, config = _plan("k2_full"), load_recipe("k2_full", [])
    learner = plan.learner
    needed = 8 * (learner.host + learner.away) + learner.shared + learner.snapshot
    needed += plan.engine.received
    for size, problems in ((needed, []), (needed - 1, [needed])):
        row = replace(H800, host_bytes=size)
        found = make_plan(config, kimi_k2_instruct(), row).problems
        assert [problem.needed for problem in found if problem.part == "host"] == problems


def test_engines_grow_and_shrink_with_the_devices_that_they_share() -> None:
    config = load_recipe(
        "k2_full",
        ["parallel.shards=128", "cluster.rollout_workers=8", "engine.tensor_parallel_size=16"],
    )
    overrides = [c.override for c in changes_that_fit(config, kimi_k2_instruct(), H800)]
    assert overrides == ["engine.tensor_parallel_size=64 cluster.rollout_workers=2"]


def test_the_tiny_model_needs_what_was_predicted() -> None:
    # Without the sharding engine: no float32 copy of the weights, no buckets. With it:
    # benchmarks/plan_memory.py. States are exact; the height is within 10 %.
    config, tokens, length = tiny_config(512), 1024, 256
    recipe = TrainConfig()
    recipe.policy.micro_batch_tokens = tokens
    recipe.policy.dtype = Dtype.float32
    plan = learner_memory(recipe, config, inventory(config), load_hardware("cpu"))
    ids = torch.randint(0, 500, (tokens,), generator=torch.Generator().manual_seed(0))
    mask = torch.ones(tokens, dtype=torch.bool)
    mask[::length] = False
    lengths = [length] * (tokens // length)
    gc.collect()
    with LiveBytes() as live:
        network = K2(config)
        network.initialize_(0)
        assert live.now == plan.weights
        optimizer = MuonClip(parameter_groups(network.named_parameters()), MuonClipConfig())
        policy = Policy(network)
        for _ in range(2):
            optimizer.zero_grad()
            live.reset_peak()
            for _ in range(2):
                out = policy(ids, mask, lengths, torch.ones(len(lengths)))
                (-out.logprobs.mean()).backward()
                del out
            optimizer.step()
        gc.collect()
        copy_of_weights = sum(p.nbytes for p in network.parameters())
        states = plan.weights + plan.gradients + plan.optimizer - copy_of_weights
        assert live.now == pytest.approx(states, rel=0.005)  # AdamW's counters, cached indices
        assert live.peak == pytest.approx(states + plan.activations.total, rel=0.1)
