"""Optimiser state on a disk: two real ranks against one that keeps everything in memory.

Where cut and order are the same, so are all bits. Against one rank 1e-5 in float32, since the order
of summation differs; of embedding and head only the mean, since AdamW turns the rounding of
gradients near its epsilon into small steps. A wrong gradient costs 1e-2.
"""

import json
import shutil
import socket
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from model.config import K2Config, MuonClipConfig, Offload, ParallelConfig
from model.k2 import K2
from model.parallel import Shard

JOB = Path(__file__).with_name("shards_job.py")
# On each of two ranks every flat tensor has more than the 262,144 elements (1 MiB) below which
# DeepSpeed keeps it in memory.
MODEL = {
    "vocab_size": 4096,
    "hidden_size": 256,
    "intermediate_size": 1024,
    "moe_intermediate_size": 128,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 4,
    "n_routed_experts": 8,
    "num_experts_per_tok": 2,
    "n_shared_experts": 1,
    "q_lora_rank": 32,
    "kv_lora_rank": 32,
    "qk_nope_head_dim": 16,
    "qk_rope_head_dim": 8,
    "v_head_dim": 16,
    "initializer_range": 0.05,
    "bos_token_id": 0,
    "eos_token_id": 1,
    "pad_token_id": 2,
}
NVME = {"stage": 3, "offload": "nvme"}
BF16 = {"stage": 3, "weights": "bfloat16"}
ON_DISK = Path("nvme") / "zero_stage_3" / "optimizer"
needs_libaio = pytest.mark.skipif(
    not Path("/usr/include/libaio.h").exists() or shutil.which("c++") is None,
    reason="needs libaio-dev and g++",
)

Results = dict[str, list[dict[str, Any]]]  # by run, then rank


def _job(folder: Path, shards: int, runs: dict[str, dict[str, Any]]) -> Results:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    job = {"model": MODEL, "lengths": [7, 5, 9, 4], "shards": shards, "port": port, "runs": runs}
    file = folder / "job.json"
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
    """All parameters: without spread experts every one comes whole from one rank."""
    return {name: t for rank in ranks for (name, _), t in rank["tensors"].items()}


def _compare(
    got: list[dict[str, Any]], expected: list[dict[str, Any]], tolerance: float = 1e-5
) -> None:
    found, wanted = _whole(got), _whole(expected)
    assert found.keys() == wanted.keys()
    for name, tensor in wanted.items():
        if name in ("model.embed_tokens.weight", "lm_head.weight") and tolerance:
            assert (found[name] - tensor).abs().mean() < 1e-6
            continue
        torch.testing.assert_close(
            found[name], tensor, atol=tolerance, rtol=0, msg=lambda text, n=name: f"{n}: {text}"
        )


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("nvme")
    (folder / "nvme").mkdir()
    return folder


@pytest.fixture(scope="module")
def saved(folder: Path) -> Results:
    """Two ranks, two steps, saved."""
    runs = {
        "swapped-bf16": NVME | BF16 | {"save": "state-bf16"},
        "swapped": NVME | {"save": "state"},
        "two": {"stage": 3},
        "four": {"stage": 3, "steps": 4},
        "four-bf16": BF16 | {"steps": 4},
    }
    return _job(folder, 2, runs)


@pytest.fixture(scope="module")
def alone(folder: Path, saved: Results) -> Results:
    """One rank, everything in memory."""
    runs = {
        "one": {},
        "one-four": {"steps": 4},
        "one-restored": {"start": "swapped", "restore": "state"},
    }
    return _job(folder, 1, runs)


@pytest.fixture(scope="module")
def restored(folder: Path, saved: Results) -> Results:
    """Two ranks that go on from what was saved, state on the disk again."""
    start = NVME | {"start": "swapped", "restore": "state"}
    bf16 = NVME | BF16 | {"start": "swapped-bf16", "restore": "state-bf16"}
    runs = {
        "again": start,
        "again-bf16": bf16,
        "reset": start | {"reset": True},
        "forgetful": {"stage": 3, "start": "swapped"},
    }
    return _job(folder, 2, runs)


@needs_libaio
def test_state_lies_on_the_disk(folder: Path, saved: Results) -> None:
    elements = sum(t.numel() for n, t in _whole(saved["swapped"]).items() if "correction" not in n)
    for rank, result in enumerate(saved["swapped"]):
        assert result["in_memory"] == 1  # AdamW's count of steps
        files = list((folder / ON_DISK / f"rank{rank}").glob("*.swp"))
        # Of two runs: matrices of experts, other matrices, and all that AdamW updates.
        for kind, number in (("momentum-", 4), ("exp_avg-", 2), ("exp_avg_sq-", 2)):
            assert len([f for f in files if f.name.startswith(kind)]) == number
        moments = [f for f in files if f.name.startswith(("momentum-", "exp_avg-"))]
        # 4 bytes of every element, half of them here; every file ends on a multiple of 1 KiB.
        assert 0 <= sum(f.stat().st_size for f in moments) - 2 * 2 * elements < 20_000


@needs_libaio
def test_steps_equal_those_in_memory(saved: Results, alone: Results) -> None:
    assert saved["two"][0]["in_memory"] > 1_000_000
    _compare(saved["swapped"], saved["two"], tolerance=0)
    _compare(saved["swapped"], alone["one"])


@needs_libaio
def test_saved_state_goes_on_in_memory(alone: Results) -> None:
    _compare(alone["one-restored"], alone["one-four"])


@needs_libaio
def test_saved_state_goes_on_from_the_disk(saved: Results, restored: Results) -> None:
    assert restored["again"][1]["in_memory"] == 1
    _compare(restored["again"], saved["four"], tolerance=0)


@needs_libaio
def test_float32_masters_come_back(saved: Results, restored: Results) -> None:
    """Without them the rounding of weights to bfloat16 would show."""
    _compare(restored["again-bf16"], saved["four-bf16"], tolerance=0)


@needs_libaio
def test_reset_forgets_state_on_the_disk(restored: Results) -> None:
    _compare(restored["reset"], restored["forgetful"], tolerance=0)
    with pytest.raises(AssertionError):
        _compare(restored["again"], restored["forgetful"], tolerance=1e-3)


def _start(path: Path) -> None:
    with torch.device("meta"):
        network = K2(K2Config(**MODEL))  # type: ignore[arg-type]
    parallel = ParallelConfig(zero_stage=3, offload=Offload.nvme, nvme_path=str(path))
    Shard(network, lambda slots, first: None, MuonClipConfig(), parallel)


def test_without_a_compiler_it_says_what_to_install(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(ValueError, match=r"offload=nvme needs .* apt install libaio-dev g"):
        _start(tmp_path)


def test_a_folder_that_is_not_there_is_named(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"parallel\.nvme_path=.*missing is not a folder"):
        _start(tmp_path / "missing")


@needs_libaio
def test_without_muon_both_moments_lie_on_the_disk(tmp_path: Path) -> None:
    (tmp_path / "nvme").mkdir()
    done = _job(
        tmp_path,
        2,
        {"memory": {"stage": 3, "muon": False}, "disk": NVME | {"muon": False}},
    )
    _compare(done["disk"], done["memory"], tolerance=0)
    for rank, result in enumerate(done["disk"]):
        assert result["in_memory"] == 2  # counts of steps: of experts, of all else
        names = [f.name for f in (tmp_path / ON_DISK / f"rank{rank}").glob("*.swp")]
        assert not any(name.startswith("momentum-") for name in names)
        assert sum(name.startswith("exp_avg_sq-") for name in names) == 2
