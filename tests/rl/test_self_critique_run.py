"""A short run of the recipe `self_critique` with real Ray, vLLM and MuonClip; then it goes on."""

import json
import subprocess
import sys
from collections import Counter
from pathlib import Path
from typing import Any

import pytest

from rl.checkpoint import latest_checkpoint, read_state
from rl.critic_baseline import Baseline
from rl.metrics import read_metrics
from rl.run_folder import RunFolder

TEMPER = [sys.executable, "-W", "ignore", "-m", "rl.cli"]
SHORT = [
    "wandb=disabled",
    "sft.min_steps=80",
    "sft.max_steps=80",
    "sft.cooldown_steps=0",
    # Bare verdicts alone, and hardly any chance: a short start makes them readable.
    "tasks.supervised_families.0.worked_share=0.0",
    "tasks.supervised_families.0.weight=8.0",
    "tasks.supervised_families.1.weight=0.1",
    # So easy that some answers of a group are right and some wrong: pairs for the critic.
    "tasks.families.0.options.min_terms=2",
    "tasks.families.0.options.max_terms=3",
    "tasks.test_families.0.options.min_terms=2",
    "tasks.test_families.0.options.max_terms=3",
    "rewards.critic.temperature=0.2",
    "evaluation.tasks=32",
    "checkpoint.every=2",
    "rollout.samples_per_group=4",
    "rollout.max_staleness=0",  # every step then waits for its measurement
    "rewards.calibration.share=0.25",
    "rewards.calibration.least_agreement=0.0",
]


def _run(*arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([*TEMPER, *arguments], capture_output=True, text=True, timeout=900)


def _samples(folder: RunFolder, step: int) -> list[dict[str, Any]]:
    text = (folder.samples / f"step_{step:05d}.jsonl").read_text()
    return [json.loads(line) for line in text.splitlines()]


@pytest.mark.long
def test_the_critic_ranks_is_trained_is_measured_and_is_frozen(tmp_path: Path) -> None:
    folder = RunFolder(tmp_path / "run")
    done = _run("train", "self_critique", *SHORT, "steps=6", f"run_dir={folder.root}")
    assert done.returncode == 0, done.stderr

    rows = read_metrics(folder.metrics)
    assert [row["step"] for row in rows] == [1, 2, 3, 4, 5, 6]
    assert any(row.get("critic/judgements", 0) > 0 for row in rows)
    assert all("critic/gate_open" in row for row in rows)
    assert any("critic/agreement" in row for row in rows)
    assert any("watched/win_rate_start" in row for row in rows)
    assert max(row["probe/abs_logprob"] for row in rows) < 1e-3
    samples = [row for step in range(1, 7) for row in _samples(folder, step)]
    tasks = Counter(row["task"].partition("/")[0] for row in samples)
    assert tasks["critic"] > 0 and tasks["explanations"] > 0 and tasks["products"] > 0
    ranked = [row for row in samples if "rubric" in row["parts"]]
    assert ranked and all(0.0 <= row["parts"]["rubric"] <= 1.0 for row in ranked)
    assert all(set(row["watched"]) == {"explanations"} for row in ranked)
    judged = [row for row in samples if row["task"].startswith("critic/")]
    assert {row["score"] for row in judged} <= {0.0, 1.0, -0.5}
    assert "<answer_A>" in judged[0]["prompt"]

    assert Baseline.read(folder.baseline).answers
    state = read_state(latest_checkpoint(folder.checkpoints))
    assert state.step == 6 and state.critique.judged_pairs
    assert folder.critic_plot.stat().st_size > 10_000
    assert "The critic" in folder.report.read_text()
    summary = json.loads(folder.summary.read_text())
    assert {"all", "products", "explanations"} <= set(summary["eval_after"])

    frozen = "rewards.calibration.least_agreement=1.0"
    run = [*SHORT[:-1], frozen, "steps=8", f"run_dir={folder.root}", "resume=true"]
    done = _run("train", "self_critique", *run)
    assert done.returncode == 0, done.stderr
    assert [row["step"] for row in read_metrics(folder.metrics)] == list(range(1, 9))
    later = {row["task"].partition("/")[0] for step in (7, 8) for row in _samples(folder, step)}
    assert "products" in later and "explanations" not in later
