"""Real ranks over gloo under DeepSpeed: every way to cut the job gives one process's weights.

Tolerance 1e-5 in float32: only the order of summation differs (seen: 4e-7 after two steps).
"""

import json
import socket
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

JOB = Path(__file__).with_name("shards_job.py")
MODEL = {
    "vocab_size": 48,
    "hidden_size": 32,
    "intermediate_size": 40,
    "moe_intermediate_size": 32,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 4,
    "n_routed_experts": 8,
    "num_experts_per_tok": 2,
    "n_shared_experts": 1,
    "q_lora_rank": 20,
    "kv_lora_rank": 16,
    "qk_nope_head_dim": 16,
    "qk_rope_head_dim": 8,
    "v_head_dim": 10,
    "initializer_range": 0.05,
    "bos_token_id": 0,
    "eos_token_id": 1,
    "pad_token_id": 2,
}
# Of the released checkpoint: attention 5 a layer, dense 3, router 1, shared 3, experts 3 x 8.
MATRICES = 3 * 5 + 3 + 2 * (1 + 3 + 24)
LENGTHS = [7, 5, 9, 4, 6, 3, 8]  # uneven: ranks have different numbers of micro-batches
TAU = 0.2  # below the largest logit of several heads

Results = dict[str, list[dict[str, Any]]]  # by run, then rank


def _job(folder: Path, shards: int, runs: dict[str, dict[str, Any]]) -> Results:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    job = {"model": MODEL, "lengths": LENGTHS, "shards": shards, "port": port, "runs": runs}
    file = folder / f"job{shards}.json"
    file.write_text(json.dumps(job))
    ranks = [
        subprocess.Popen(
            [sys.executable, "-W", "ignore", str(JOB), str(file), str(rank)],
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        for rank in range(shards)
    ]
    try:
        printed = [rank.communicate(timeout=600)[0] for rank in ranks]
    finally:
        for rank in ranks:
            rank.kill()
    failed = [text for rank, text in zip(ranks, printed, strict=True) if rank.returncode]
    assert not failed, failed[0][-4000:]
    return {
        name: [torch.load(folder / f"{name}-{rank}.pt") for rank in range(shards)] for name in runs
    }


def _whole(ranks: list[dict[str, Any]]) -> dict[str, Tensor]:
    """All parameters, of which every shard published a part; none twice."""
    parts: dict[tuple[str, int], Tensor] = {}
    for rank in ranks:
        assert not parts.keys() & rank["tensors"].keys()
        parts |= rank["tensors"]
    names = dict.fromkeys(name for name, _ in sorted(parts))
    return {
        name: torch.cat([parts[key] for key in sorted(parts) if key[0] == name]) for name in names
    }


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("shards")


@pytest.fixture(scope="module")
def alone(folder: Path) -> Results:
    return _job(
        folder,
        1,
        {
            "one": {},
            "one-pass": {"micro": 7, "checkpoint_layers": True},
            "one-clipped": {"tau": TAU},
            "one-bf16": {"stage": 2, "weights": "bfloat16"},
            "one-four": {"steps": 4},
            "one-four-bf16": {"stage": 2, "weights": "bfloat16", "steps": 4},
            "one-int4": {"int4": True},
            "one-adamw": {"muon": False, "tau": TAU},
            "one-saved": {"save": "state-one"},
        },
    )


@pytest.fixture(scope="module")
def two(folder: Path, alone: Results) -> Results:
    cuts = {
        f"two-{stage}-{ep}": {"stage": stage, "experts": ep} for stage in (1, 2, 3) for ep in (1, 2)
    }
    return _job(
        folder,
        2,
        cuts
        | {
            "two-micro": {"stage": 2, "experts": 2, "micro": 1},
            "two-clipped-1": {"stage": 1, "tau": TAU},
            "two-clipped-3": {"stage": 3, "experts": 2, "tau": TAU},
            "two-offload": {"stage": 2, "offload": "cpu"},
            "two-offload-3": {"stage": 3, "offload": "cpu"},
            "two-bf16": {"stage": 2, "weights": "bfloat16"},
            "two-bf16-3": {"stage": 3, "experts": 2, "weights": "bfloat16"},
            "two-traffic-1": {"stage": 1, "ns_dtype": "bfloat16"},
            "two-traffic-3": {"stage": 3, "ns_dtype": "bfloat16"},
            "two-traffic-experts": {"stage": 3, "experts": 2, "ns_dtype": "bfloat16"},
            "two-restored": {
                "stage": 3,
                "experts": 2,
                "restore": "state-one",
                "start": "one-saved",
            },
            "two-int4": {"stage": 2, "experts": 2, "int4": True},
            "two-adamw-1": {"muon": False, "tau": TAU, "stage": 1},
            "two-adamw-3": {"muon": False, "tau": TAU, "stage": 3, "experts": 2},
            "two-saved": {"stage": 3, "experts": 2, "save": "state-two"},
            "two-saved-bf16": {"stage": 2, "weights": "bfloat16", "save": "state-bf16"},
            "two-four-bf16": {"stage": 2, "weights": "bfloat16", "steps": 4},
            "two-restored-bf16": {
                "stage": 2,
                "weights": "bfloat16",
                "restore": "state-bf16",
                "start": "two-saved-bf16",
            },
        },
    )


@pytest.fixture(scope="module")
def three(folder: Path) -> Results:
    runs = {f"three-{stage}": {"stage": stage, "batch_elements": 1} for stage in (1, 3)}
    return _job(folder, 3, runs)


@pytest.fixture(scope="module")
def four(folder: Path, two: Results) -> Results:
    return _job(
        folder,
        4,
        {
            "four-1-2": {"stage": 1, "experts": 2},
            "four-2-4": {"stage": 2, "experts": 4},
            "four-3-2": {"stage": 3, "experts": 2},
            "four-3-1": {"stage": 3},
            "four-restored": {
                "stage": 1,
                "experts": 4,
                "restore": "state-two",
                "start": "two-saved",
            },
            "four-restored-bf16": {
                "stage": 3,
                "experts": 2,
                "weights": "bfloat16",
                "restore": "state-bf16",
                "start": "two-saved-bf16",
            },
        },
    )


def _compare(got: dict[str, Tensor], expected: dict[str, Tensor], tolerance: float) -> None:
    assert got.keys() == expected.keys()
    for name, tensor in expected.items():
        torch.testing.assert_close(
            got[name], tensor, atol=tolerance, rtol=0, msg=lambda text, n=name: f"{n}: {text}"
        )


def _compare_reports(ranks: list[dict[str, Any]], one: list[dict[str, Any]]) -> None:
    """Every shard tells the same of a step. The norm of the gradient is the one thing here that
    sees the scale of gradients: Newton-Schulz does not.
    """
    expected = torch.tensor(one[0]["reports"])
    for rank in ranks:
        torch.testing.assert_close(torch.tensor(rank["reports"]), expected, atol=0, rtol=2e-5)


def test_accumulation_and_layer_checkpoints_change_nothing(alone: Results) -> None:
    _compare(_whole(alone["one-pass"]), _whole(alone["one"]), 1e-5)


@pytest.mark.parametrize("ep", [1, 2])
@pytest.mark.parametrize("stage", [1, 2, 3])
def test_two_ranks_equal_one(alone: Results, two: Results, stage: int, ep: int) -> None:
    name = f"two-{stage}-{ep}"
    _compare(_whole(two[name]), _whole(alone["one"]), 1e-5)
    _compare_reports(two[name], alone["one"])


@pytest.mark.parametrize("name", ["four-1-2", "four-2-4", "four-3-2", "four-3-1"])
def test_four_ranks_equal_one(alone: Results, four: Results, name: str) -> None:
    _compare(_whole(four[name]), _whole(alone["one"]), 1e-5)
    _compare_reports(four[name], alone["one"])


@pytest.mark.parametrize("name", ["three-1", "three-3"])
def test_matrices_travel_in_many_rounds(alone: Results, three: Results, name: str) -> None:
    """One matrix a round: most ranks hold nothing of most rounds."""
    _compare(_whole(three[name]), _whole(alone["one"]), 1e-5)


def test_ranks_with_fewer_micro_batches_wait(alone: Results, two: Results) -> None:
    _compare(_whole(two["two-micro"]), _whole(alone["one"]), 1e-5)


@pytest.mark.parametrize("name", ["two-offload", "two-offload-3"])
def test_state_on_the_cpu_equals_state_on_the_device(
    alone: Results, two: Results, name: str
) -> None:
    _compare(_whole(two[name]), _whole(alone["one"]), 1e-5)


@pytest.mark.parametrize("name", ["two-clipped-1", "two-clipped-3"])
def test_clip_reaches_every_shard(alone: Results, two: Results, name: str) -> None:
    clipped = alone["one-clipped"][0]
    assert clipped["reports"][0][1] > 0
    assert [r[1] for r in two[name][0]["reports"]] == [r[1] for r in clipped["reports"]]
    _compare(_whole(two[name]), _whole([clipped]), 1e-5)
    plain, changed = _whole(alone["one"]), _whole([clipped])
    assert (
        plain["model.layers.0.self_attn.q_b_proj.weight"]
        - changed["model.layers.0.self_attn.q_b_proj.weight"]
    ).abs().max() > 1e-3


@pytest.mark.parametrize("name", ["two-adamw-1", "two-adamw-3"])
def test_adamw_alone_equals_one(alone: Results, two: Results, name: str) -> None:
    """QK-Clip goes on; no matrix is orthogonalised, none travels to be. AdamW divides a gradient by
    its own size: one that is nearly nothing, and rounded otherwise, moves a weight otherwise."""
    _compare(_whole(two[name]), _whole(alone["one-adamw"]), 1e-4)
    _compare_reports(two[name], alone["one-adamw"])
    assert all(reports[1] > 0 for reports in alone["one-adamw"][0]["reports"])
    assert all(rank["orthogonalised"] == 0 for rank in two[name])
    with pytest.raises(AssertionError):
        _compare(_whole(two[name]), _whole(alone["one-clipped"]), 1e-3)


def test_spread_experts_are_rounded_to_int4_too(alone: Results, two: Results) -> None:
    """Rounding can turn on the order of a sum: a few of many elements, by one step of the grid."""
    plain, expected = _whole(alone["one"]), _whole(alone["one-int4"])
    got = _whole(two["two-int4"])
    name = "model.layers.1.mlp.experts.down_proj"
    assert (plain[name] - expected[name]).abs().mean() > 1e-4
    for key, tensor in expected.items():
        assert (got[key] - tensor).abs().mean() < 1e-6, key


@pytest.mark.parametrize("name", ["two-bf16", "two-bf16-3"])
def test_bfloat16_weights_keep_float32_masters(alone: Results, two: Results, name: str) -> None:
    """Rounding of the forward pass turns the updates a little: matrices move by 0.006 an element
    in two steps, gains by 0.04, and a gain whose gradient is nearly zero may go the other way.
    """
    got, expected = _whole(two[name]), _whole(alone["one-bf16"])
    assert all(
        t.dtype == torch.bfloat16 for n, t in got.items() if not n.endswith("correction_bias")
    )
    for key, tensor in expected.items():
        gap = (got[key].float() - tensor.float()).abs()
        assert gap.mean() < (1e-3 if tensor.dim() > 1 else 5e-3), key


def test_every_matrix_is_orthogonalised_once(two: Results, four: Results) -> None:
    for name, ranks in (two | four).items():
        if "adamw" in name:
            continue
        assert sum(rank["orthogonalised"] for rank in ranks) == MATRICES, name


def test_traffic_stays_within_a_quarter_of_adamw(two: Results) -> None:
    """AdamW under ZeRO: 4 bytes of gradient and 4 of weight per element, (R - 1) / R of them sent
    by every rank (spec 2.3). MuonClip adds what its all-to-alls send: 2 bytes there and back.
    """
    shapes = {name: t.shape for name, t in _whole(two["two-3-1"]).items()}
    adamw = 8 * sum(s.numel() for n, s in shapes.items() if "correction" not in n) / 2
    for name in ("two-traffic-1", "two-traffic-3", "two-traffic-experts"):
        for rank in two[name]:
            assert max(rank["sent"]) <= 0.25 * adamw, name
    # ZeRO-1 cuts at most one matrix in each of its two groups of matrices, ZeRO-3 every one.
    cut = 2 * 2 * max(s[-2] * s[-1] for n, s in shapes.items() if len(s) > 1 and "embed" not in n)
    assert 0 <= max(rank["sent"][0] for rank in two["two-traffic-1"]) <= 2 * cut
    assert min(rank["sent"][0] for rank in two["two-traffic-3"]) > 0


def test_experts_never_leave_their_rank(two: Results) -> None:
    shapes = {name: t.shape for name, t in _whole(two["two-3-2"]).items()}
    dense = sum(
        s.numel()
        for n, s in shapes.items()
        if len(s) > 1 and ".experts." not in n and "embed" not in n and "lm_head" not in n
    )
    for rank in two["two-traffic-experts"]:
        # Half of every dense matrix is here: what is not owned here leaves, what is owned returns.
        assert max(rank["sent"]) <= 2 * dense


def test_state_moves_to_another_number_of_ranks(
    alone: Results, two: Results, four: Results
) -> None:
    """Two steps, saved, and two more on another number of ranks, cut in another way."""
    expected = _whole(alone["one-four"])
    _compare(_whole(two["two-restored"]), expected, 1e-5)
    _compare(_whole(four["four-restored"]), expected, 1e-5)


def test_float32_masters_are_saved_with_bfloat16_weights(
    alone: Results, two: Results, four: Results
) -> None:
    """The very steps of a run without the restart; cut in another way, as near as bfloat16 is."""
    for key, tensor in _whole(two["two-four-bf16"]).items():
        assert torch.equal(_whole(two["two-restored-bf16"])[key], tensor), key
    got, expected = _whole(four["four-restored-bf16"]), _whole(alone["one-four-bf16"])
    for key, tensor in expected.items():
        gap = (got[key].float() - tensor.float()).abs().mean()
        assert gap < (1e-3 if tensor.dim() > 1 else 5e-3), key
