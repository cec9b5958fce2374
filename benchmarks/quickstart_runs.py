"""Runs of the quickstart recipe for benchmarks: one supervised start, and RL from there."""

import json
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from rl.recipe import load_recipe

TEMPER = str(Path(sys.executable).with_name("temper"))
LOOK_S = 0.2  # between two looks at a run
FROM_START = (
    "sft=null",
    "evaluation.tasks=1",
    "evaluation.samples=1",
    "wandb=disabled",
)
"""Only the loop: what is not in it runs as short as it can."""

Row = dict[str, float]


@dataclass(frozen=True, kw_only=True)
class Case:
    """What all contenders of a benchmark run."""

    folder: Path
    start: Path
    steps: int
    seed: int


def step_samples() -> int:
    """Samples of one step."""
    rollout = load_recipe("quickstart", []).rollout
    return rollout.groups_per_step * rollout.samples_per_group


def start_model(folder: Path) -> Path:
    """The recipe's model after its supervised start, made in `folder` unless it is there."""
    kept = folder / "start.json"
    if kept.exists():
        return Path(json.loads(kept.read_text())["checkpoint"])
    command = [TEMPER, "sft", "quickstart", "--json", f"run_dir={folder / 'sft'}"]
    out = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True).stdout
    found = json.loads(out.splitlines()[-1])
    kept.write_text(json.dumps(found) + "\n")
    return Path(found["checkpoint"])


def whole_rows(path: Path) -> list[Row]:
    """The steps of a `metrics.jsonl` that are whole."""
    if not path.exists():
        return []
    text = path.read_text()
    return [json.loads(line) for line in text[: text.rfind("\n") + 1].splitlines()]


def train(
    folder: Path,
    start: Path,
    overrides: Sequence[str],
    look: Callable[[int, list[Row]], None] = lambda pid, rows: None,
) -> list[Row]:
    """Run the loop from `start` in `folder`; the metrics of its steps.

    `look` is called a few times a second with the number of the command's process and the steps
    that are done.
    """
    arguments = [f"policy.path={start}", f"run_dir={folder}", *FROM_START, *overrides]
    log = folder.with_suffix(".log")
    log.parent.mkdir(parents=True, exist_ok=True)
    with log.open("w") as out:
        command = [TEMPER, "train", "quickstart", *arguments]
        process = subprocess.Popen(command, stdout=out, stderr=subprocess.STDOUT)
        while process.poll() is None:
            look(process.pid, whole_rows(folder / "metrics.jsonl"))
            time.sleep(LOOK_S)
    if process.returncode:
        raise SystemExit(f"the run in {folder} ended with {process.returncode}: see {log}")
    return whole_rows(folder / "metrics.jsonl")
