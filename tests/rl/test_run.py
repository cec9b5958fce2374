"""Whole runs with real Ray, vLLM and MuonClip: learning, stopping, killing, resuming.

One supervised start serves all of them. Commands run as a user's would: in processes of their own.
"""

import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import psutil
import pytest
import torch
from transformers import Qwen3Config, Qwen3ForCausalLM

from rl.checkpoint import latest_checkpoint, read_state
from rl.metrics import read_metrics
from rl.run_folder import RunFolder

SHARED_MEMORY = Path("/dev/shm")
TEMPER = [sys.executable, "-W", "ignore", "-m", "rl.cli"]
# One easy family, so that the supervised start takes a minute.
EASY = [
    "wandb=disabled",
    "tasks.families=[{name: products, options: {min_terms: 2, max_terms: 3, max_digits: 1}}]",
    "tasks.held_out_percent=30",
    "sft.min_steps=60",
    "sft.max_steps=160",
    "sft.test_every=10",
    "sft.target_accuracy=0.3",
    "evaluation.tasks=192",
]
SHORT = [*EASY, "sft=null", "evaluation.tasks=16", "checkpoint.every=1"]


def _run(*arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([*TEMPER, *arguments], capture_output=True, text=True, timeout=600)


def _wait(condition: Callable[[], bool], seconds: float, what: str) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, f"not within {seconds:g} s: {what}"
        time.sleep(0.2)


@pytest.fixture(scope="module")
def start(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A checkpoint that solves some of the easy tasks."""
    run_dir = tmp_path_factory.mktemp("sft") / "run"
    done = _run("sft", "quickstart", *EASY, f"run_dir={run_dir}", "--json")
    assert done.returncode == 0, done.stderr
    return Path(json.loads(done.stdout.splitlines()[-1])["checkpoint"])


@contextmanager
def _under_way(folder: RunFolder, steps: int, *arguments: str) -> Iterator[psutil.Popen]:
    """The driver of a run that has trained `steps` steps."""
    driver = psutil.Popen(
        [*TEMPER, "train", "quickstart", *arguments, f"run_dir={folder.root}"],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
        # A test run that was started in the background ignores Ctrl-C, and so would its children.
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.default_int_handler),
    )
    try:
        _wait(
            lambda: len(read_metrics(folder.metrics)) >= steps or driver.poll() is not None,
            180,
            f"{steps} steps",
        )
        assert driver.poll() is None, driver.stderr.read()
        yield driver
    finally:
        if driver.poll() is None:
            os.killpg(driver.pid, signal.SIGKILL)
        driver.wait()


@pytest.fixture
def running(start: Path, tmp_path: Path) -> Iterator[tuple[psutil.Process, RunFolder]]:
    """A run under way: its driver and its folder, two steps trained."""
    folder = RunFolder(tmp_path / "run")
    with _under_way(folder, 2, *SHORT, f"policy.path={start}", "steps=100000") as driver:
        yield driver, folder


def _nothing_left(parts: list[psutil.Process]) -> None:
    _wait(lambda: not any(p.is_running() for p in parts), 40, f"processes end: {parts}")
    pids = {p.pid for p in parts}
    left = [f for f in SHARED_MEMORY.glob("temper-*") if int(f.name.split("-")[1]) in pids]
    assert not left


def test_accuracy_on_held_out_tasks_rises(start: Path, tmp_path: Path) -> None:
    folder = RunFolder(tmp_path / "run")
    done = _run(
        "train", "quickstart", *EASY, "sft=null", f"policy.path={start}", "steps=80",
        "evaluation.samples=8", f"run_dir={folder.root}", "--json",
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    summary = json.loads(folder.summary.read_text())
    assert summary == json.loads(done.stdout.splitlines()[-1])
    assert 0.1 < summary["eval_before"]["all"] < 0.75
    # The same 192 tasks, eight samples each: the standard error of the difference is about 0.018,
    # and a hundred steps have gained 0.09 and more.
    assert summary["eval_after"]["all"] > summary["eval_before"]["all"] + 0.03
    rows = read_metrics(folder.metrics)
    assert [row["step"] for row in rows] == list(range(1, 81))
    assert all(row["staleness/max"] <= 1 for row in rows)
    assert max(row["probe/abs_logprob"] for row in rows) < 1e-3
    assert folder.plot.stat().st_size > 10_000
    assert "Held-out pass@1" in folder.report.read_text()
    assert len(list(folder.samples.glob("step_*.jsonl"))) == 80
    exported = tmp_path / "exported"
    assert _run("export", str(folder.root), str(exported)).returncode == 0
    assert (exported / "config.json").is_file() and (exported / "tokenizer.json").is_file()


def test_ctrl_c_leaves_nothing_behind_but_a_whole_checkpoint(
    running: tuple[psutil.Process, RunFolder],
) -> None:
    driver, folder = running
    parts = driver.children(recursive=True)
    driver.send_signal(signal.SIGINT)
    assert driver.wait(timeout=60) == 1
    assert "resume=true" in driver.stderr.read()
    _nothing_left(parts)
    assert read_state(latest_checkpoint(folder.checkpoints)).step >= 1


TIMES = re.compile(r"time/|buffer/waiting_s|rollout/tokens_per_s|mismatch/seconds|faults/")


def _outcome(folder: RunFolder) -> tuple[dict[str, Any], list[dict[str, float]], list[str]]:
    """What a run has come to, times left out: digests of its last state, metrics and samples."""
    manifest = json.loads((latest_checkpoint(folder.checkpoints) / "manifest.json").read_text())
    digests = {name: each for name, each in manifest.items() if name != "state.json"}
    rows = [
        {name: value for name, value in row.items() if not TIMES.match(name)}
        for row in read_metrics(folder.metrics)
    ]
    samples = [path.read_text() for path in sorted(folder.samples.glob("step_*.jsonl"))]
    return digests, rows, samples


def test_a_synchronous_run_goes_on_bit_for_bit_after_kill_9_of_everything(
    start: Path, tmp_path: Path
) -> None:
    """Weights, momenta, metrics and samples of six steps, once colocated and once killed."""
    calm, killed = RunFolder(tmp_path / "calm"), RunFolder(tmp_path / "killed")
    settings = [*SHORT, f"policy.path={start}", "steps=6", "rollout.max_staleness=0"]
    settings.append("checkpoint.every=2")
    with _under_way(killed, 3, "--revive", *settings) as looking_on:
        parts = looking_on.children(recursive=True)  # the driver, and all that it has started
        for part in parts:
            part.kill()
        _wait(lambda: not any(part.is_running() for part in parts), 20, "all are gone")
        assert read_state(latest_checkpoint(killed.checkpoints)).step < 6
        assert looking_on.wait(timeout=180) == 0, looking_on.stderr.read()
        assert "ended by SIGKILL; another one starts" in looking_on.stderr.read()
    assert json.loads(killed.summary.read_text())["restarts_by_part"] == {"driver": 1}
    # With engine and learner taking turns: it may not change anything either.
    turns = "cluster.placement=colocated"
    done = _run("train", "quickstart", *settings, f"run_dir={calm.root}", turns)
    assert done.returncode == 0, done.stderr
    found, expected = _outcome(killed), _outcome(calm)
    assert found[1] == expected[1]
    assert found == expected
    after = [json.loads(folder.summary.read_text())["eval_after"] for folder in (killed, calm)]
    assert after[0] == after[1]
    trained = [
        {int(json.loads(line)["task"].rpartition("/")[2]) for line in text.splitlines()}
        for text in found[2]
    ]
    assert trained == [set(range(16 * step, 16 * step + 16)) for step in range(6)]


@pytest.mark.long
def test_weights_that_do_not_arrive_stop_the_run(start: Path, tmp_path: Path) -> None:
    # No engine is this exact: the probe must stop the run and name the version and the engine.
    done = _run(
        "train", "quickstart", *SHORT, f"policy.path={start}", "steps=2", "engine.dtype=bfloat16",
        "weights.probe_tolerance=1e-9", f"run_dir={tmp_path / 'run'}",
    )  # fmt: skip
    assert done.returncode == 1
    assert "rollout worker 0 does not compute with version 0 of the weights" in done.stderr
    assert "Traceback" not in done.stderr


@pytest.mark.long
def test_spread_learner_goes_on_with_another_number_of_shards(start: Path, tmp_path: Path) -> None:
    """ZeRO-3 and spread experts on two shards, INT4 training; then one shard goes on."""
    folder = RunFolder(tmp_path / "run")
    common = ["train", "quickstart", *SHORT, f"run_dir={folder.root}", "policy.int4_experts=true"]
    spread = ["parallel.shards=2", "parallel.zero_stage=3", "parallel.expert_parallel=2"]
    done = _run(*common, *spread, f"policy.path={start}", "steps=2")
    assert done.returncode == 0, done.stderr
    done = _run(*common, "steps=3", "resume=true")
    assert done.returncode == 0, done.stderr
    rows = read_metrics(folder.metrics)
    assert [row["step"] for row in rows] == [1, 2, 3]
    # The engine serves the rounded experts, in float32: any other weights would show.
    assert max(row["probe/abs_logprob"] for row in rows) < 1e-3
    assert all(0.05 < row["optim/update_rms"] < 0.22 for row in rows)
    exported = tmp_path / "exported"
    assert _run("export", str(folder.root), str(exported)).returncode == 0
    config = json.loads((exported / "config.json").read_text())
    assert config["quantization_config"]["format"] == "pack-quantized"


@pytest.mark.long
def test_another_network_trains_through_the_same_learner(start: Path, tmp_path: Path) -> None:
    """Qwen3 with a tied head, made here from its config, with the tokenizer of the tiny K2."""
    torch.manual_seed(0)
    qwen = tmp_path / "qwen"
    tokenizer = json.loads((start / "config.json").read_text())
    config = Qwen3Config(
        vocab_size=tokenizer["vocab_size"],
        hidden_size=128,
        intermediate_size=256,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        head_dim=32,
        max_position_embeddings=512,
        tie_word_embeddings=True,
        bos_token_id=tokenizer["bos_token_id"],
        eos_token_id=tokenizer["eos_token_id"],
        pad_token_id=tokenizer["pad_token_id"],
    )
    Qwen3ForCausalLM(config).save_pretrained(qwen)
    for name in ("tokenizer.json", "tokenizer_config.json", "chat_template.jinja"):
        if (start / name).is_file():
            shutil.copyfile(start / name, qwen / name)
    folder = RunFolder(tmp_path / "run")
    done = _run(
        "train", "quickstart", *SHORT, f"policy.path={qwen}", "steps=2", "parallel.shards=2",
        "parallel.zero_stage=2", f"run_dir={folder.root}",
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert "QK-Clip" in done.stdout + done.stderr
    rows = read_metrics(folder.metrics)
    assert [row["step"] for row in rows] == [1, 2]
    assert max(row["probe/abs_logprob"] for row in rows) < 1e-3


@pytest.mark.long
def test_bfloat16_learner_and_engine_agree_on_what_was_sampled(start: Path, tmp_path: Path) -> None:
    """The tiny model, bfloat16 on both sides, on policy: seen 0.002 nats a token."""
    folder = RunFolder(tmp_path / "run")
    done = _run(
        "train", "quickstart", *SHORT, f"policy.path={start}", "steps=1", "engine.dtype=bfloat16",
        f"run_dir={folder.root}",
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    (row,) = read_metrics(folder.metrics)
    assert 0 < row["mismatch/abs_logprob"] < 0.01
