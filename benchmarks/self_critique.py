"""Does self-critique raise true quality, and is it the calibration that keeps the critic honest?

From one supervised start, for every seed, the recipe `self_critique` in three ways: `on` as it is,
`off` without calibration (no critic tasks; rubric rewards always count), and `frozen` with critic
tasks, but rubric rewards that never count: what the verifiable tasks and PTX teach alone. What no
part of the training is told, the true quality of open-ended answers, is watched in all. Adds the
curves to `benchmarks/data/self_critique.json` with the hardware, draws `docs/self_critique.png`,
and prints the table of all in there.

    python -m benchmarks.self_critique --seeds 0 1 2
    python -m benchmarks.self_critique --seeds      # prints what is kept
    python -m benchmarks.self_critique --start CHECKPOINT --seeds 0 --only on
"""

import argparse
import json
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from statistics import fmean

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt

from benchmarks.machine import hardware

HERE = Path(__file__).resolve().parent
DATA = HERE / "data" / "self_critique.json"
PICTURE = HERE.parent / "docs" / "self_critique.png"
PANELS = {
    "critic/agreement": "agreement with the verifiers",
    "watched/explanations": "true quality of open-ended answers",
    "critic/gap": "win rate against the start: judged less true",
}
CURVES = (
    "critic/agreement",
    "critic/order_consistency",
    "critic/length_bias",
    "critic/win_rate_start",
    "watched/win_rate_start",
    "critic/gap",
    "watched/explanations",
    "reward/critic",
    "reward/family/products",
    "critic/gate_open",
    "time/step",
)
TABLE = {
    "critic": "agreement",
    "critic/start": "same pairs",
    "critic/agreement": "in the run",
    "explanations": "true quality",
    "critic/win_rate_start": "judged",
    "watched/win_rate_start": "true",
    "critic/gap": "gap",
}
OVERRIDES: dict[str, tuple[str, ...]] = {
    "on": (),
    "frozen": ("rewards.calibration.least_agreement=1.0",),
    "off": ("rewards.calibration.share=0.0", "rewards.calibration.least_agreement=0.0"),
}
COLOURS = {"on": "#1f5fa8", "frozen": "#8a8f98", "off": "#b0481a"}
SPAN = 20  # values over which the begin and the end of a curve are averaged


@dataclass(frozen=True, kw_only=True)
class Result:
    """One run."""

    calibration: str  # a key of OVERRIDES
    seed: int
    note: str
    before: dict[str, float]
    after: dict[str, float]
    wall_seconds: float
    curves: dict[str, list[float | None]]  # by step; null where a step has no value

    def ends(self, name: str) -> tuple[float, float]:
        """The means of a curve's first and last values, or an evaluation before and after RL."""
        if name in self.before:
            return self.before[name], self.after[name]
        values = [value for value in self.curves[name] if value is not None]
        return fmean(values[:SPAN]), fmean(values[-SPAN:])


def temper(*arguments: str) -> None:
    """Run a command of the installed Temper."""
    subprocess.run(
        [sys.executable, "-m", "rl.cli", *arguments], check=True, stdout=subprocess.DEVNULL
    )


def supervised_start(runs: Path) -> Path:
    """The checkpoint that every run starts from; made if it is not there."""
    checkpoint = runs / "start" / "checkpoints" / "step_0" / "model"
    if not checkpoint.is_dir():
        temper("sft", "self_critique", f"run_dir={runs / 'start'}", "wandb=disabled")
    return checkpoint


def run(start: Path, folder: Path, *, calibration: str, seed: int, note: str) -> Result:
    """Run the recipe in `folder`."""
    overrides = [f"policy.path={start}", "sft=null", f"seed={seed}", f"run_dir={folder}"]
    began = time.perf_counter()
    temper("train", "self_critique", "wandb=disabled", *overrides, *OVERRIDES[calibration])
    rows = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    summary = json.loads((folder / "summary.json").read_text())
    return Result(
        calibration=calibration,
        seed=seed,
        note=note,
        before=summary["eval_before"],
        after=summary["eval_after"],
        wall_seconds=time.perf_counter() - began,
        curves={name: [_rounded(row.get(name)) for row in rows] for name in CURVES},
    )


def _rounded(value: float | None) -> float | None:
    return None if value is None else round(value, 4)


def keep(result: Result) -> list[Result]:
    """Put a result in place of an earlier one of its kind and seed; all that is kept then."""
    kept = json.loads(DATA.read_text())["results"] if DATA.exists() else []
    by_run = {(r["calibration"], r["seed"]): Result(**r) for r in kept}
    by_run[result.calibration, result.seed] = result
    ordered = [by_run[key] for key in sorted(by_run)]
    content = {"hardware": hardware("cpu"), "results": [asdict(r) for r in ordered]}
    DATA.write_text(json.dumps(content, indent=1) + "\n")
    return ordered


def draw(results: Sequence[Result]) -> None:
    """Every run's curves, a running mean of ten values, in a colour for each kind."""
    figure, axes = plt.subplots(1, 3, figsize=(13, 3.6), constrained_layout=True)
    for (name, title), axis in zip(PANELS.items(), axes, strict=True):
        for result in results:
            known = [(i + 1, v) for i, v in enumerate(result.curves[name]) if v is not None]
            steps = [step for step, _ in known]
            values = [fmean(v for _, v in known[max(i - 9, 0) : i + 1]) for i in range(len(known))]
            axis.plot(steps, values, color=COLOURS[result.calibration], linewidth=1.5)
        axis.set_title(title, fontsize=11)
        axis.set_xlabel("step")
        axis.grid(alpha=0.3)
    for kind, colour in COLOURS.items():
        axes[1].plot([], [], color=colour, label=f"calibration {kind}")
    axes[1].legend(fontsize=9, loc="upper left")
    figure.savefig(PICTURE, dpi=100)
    plt.close(figure)


def print_table(results: Sequence[Result]) -> None:
    """One line a run, then the means of each kind."""
    columns = ("calibration", "seed", *TABLE.values())
    print("".join(f"{column:>16}" for column in columns))
    for r in results:
        cells = (r.calibration, str(r.seed), *(_change(r.ends(name)) for name in TABLE))
        print("".join(f"{cell:>16}" for cell in cells))
    for kind in OVERRIDES:
        some = [r for r in results if r.calibration == kind]
        if some:
            means = (
                (fmean(r.ends(name)[0] for r in some), fmean(r.ends(name)[1] for r in some))
                for name in TABLE
            )
            row = (kind, f"mean of {len(some)}", *map(_change, means))
            print("".join(f"{cell:>16}" for cell in row))
    print(
        "agreement, same pairs and true quality: on held-out tasks before -> after RL; all else: "
        f"mean of a run's first {SPAN} values -> of its last {SPAN}"
    )


def _change(ends: tuple[float, float]) -> str:
    return f"{ends[0]:.2f} -> {ends[1]:.2f}"


def main() -> None:
    """Run, keep, print."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--seeds", type=int, nargs="*", default=[0, 1, 2])
    parser.add_argument("--runs", type=Path, default=Path("runs/self_critique"))
    parser.add_argument("--start", type=Path, help="a checkpoint in place of the supervised start")
    parser.add_argument("--only", choices=list(OVERRIDES))
    parser.add_argument("--note", default="", help="what else the machine was doing")
    arguments = parser.parse_args()
    runs = arguments.runs.absolute()
    start = arguments.start.absolute() if arguments.start else None
    for seed in arguments.seeds:
        for kind in OVERRIDES:
            if arguments.only in (None, kind):
                start = start or supervised_start(runs)
                folder = runs / f"seed{seed}-{kind}"
                keep(run(start, folder, calibration=kind, seed=seed, note=arguments.note))
    results = [Result(**r) for r in json.loads(DATA.read_text())["results"]]
    draw(results)
    print_table(results)


if __name__ == "__main__":
    main()
