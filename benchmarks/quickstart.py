"""Does the quickstart learn, is it RL that does it, and what does it cost?

For every seed: the main job by `make train`, and a control from the same supervised start with the
rewards shuffled inside every group. Adds the curves, accuracies, times and memory to
`benchmarks/data/quickstart.json` with the hardware, and prints the table of all that is in there.

    python benchmarks/quickstart.py --seeds 0 1 2
    python benchmarks/quickstart.py --seeds 0 --only shuffled --note "beside another run"
"""

import argparse
import json
import platform
import statistics
import subprocess
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import psutil

HERE = Path(__file__).resolve().parent
CURVES = ("reward/mean", "time/step", "time/stall", "time/engine_idle", "rollout/tokens_per_s")
WARM_UP_STEPS = 5  # not steady state
SAMPLE_S = 2.0  # between two looks at memory


@dataclass(frozen=True, kw_only=True)
class Result:
    """One run."""

    name: str
    seed: int
    note: str
    before: dict[str, float]
    after: dict[str, float]
    wall_seconds: float
    first_step_seconds: float
    peak_bytes: int  # proportional set size of the whole process tree
    stall_and_idle_share: float  # of the wall time, after the first steps
    curves: dict[str, list[float]]

    @property
    def gain(self) -> float:
        """Points of held-out pass@1."""
        return 100 * (self.after["all"] - self.before["all"])


def tree_bytes(process: psutil.Process) -> int:
    """Proportional set size of a process and everything it started."""
    total = 0
    for each in [process, *process.children(recursive=True)]:
        try:
            total += each.memory_full_info().pss
        except psutil.Error:
            continue  # ended while we looked
    return total


def run(name: str, seed: int, folder: Path, *, note: str, overrides: Sequence[str]) -> Result:
    """Run the main job in `folder` and watch it."""
    recipe = " ".join(["quickstart", f"seed={seed}", f"run_dir={folder}", *overrides])
    started, peak, first = time.perf_counter(), 0, 0.0
    process = psutil.Popen(["make", "train", f"RECIPE={recipe}"], stdout=subprocess.DEVNULL)
    metrics = folder / "metrics.jsonl"
    while process.poll() is None:
        peak = max(peak, tree_bytes(process))
        if not first and metrics.exists() and metrics.stat().st_size:
            first = time.perf_counter() - started
        time.sleep(SAMPLE_S)
    if process.returncode:
        raise SystemExit(f"{name} (seed {seed}) ended with exit code {process.returncode}")
    rows = [json.loads(line) for line in metrics.read_text().splitlines()]
    steady = rows[WARM_UP_STEPS:]
    lost = sum(row["time/stall"] + row["time/engine_idle"] for row in steady)
    summary = json.loads((folder / "summary.json").read_text())
    return Result(
        name=name,
        seed=seed,
        note=note,
        before=summary["eval_before"],
        after=summary["eval_after"],
        wall_seconds=time.perf_counter() - started,
        first_step_seconds=first,
        peak_bytes=peak,
        stall_and_idle_share=lost / sum(row["time/step"] for row in steady),
        curves={key: [round(row[key], 4) for row in rows] for key in CURVES},
    )


def hardware() -> dict[str, object]:
    """What this was measured on."""
    cpu = next(
        (
            line.partition(":")[2].strip()
            for line in Path("/proc/cpuinfo").read_text().splitlines()
            if line.startswith("model name")
        ),
        platform.processor(),
    )
    flags = Path("/proc/cpuinfo").read_text()
    return {
        "cpu": cpu,
        "cores": psutil.cpu_count(),
        "amx": "amx_tile" in flags,
        "memory_bytes": psutil.virtual_memory().total,
        "python": platform.python_version(),
    }


def keep(results: list[Result]) -> list[Result]:
    """Put `results` in place of earlier ones of the same name and seed; all that is kept then."""
    path = HERE / "data" / "quickstart.json"
    kept = json.loads(path.read_text())["results"] if path.exists() else []
    by_run = {(r["name"], r["seed"]): Result(**r) for r in kept}
    by_run |= {(r.name, r.seed): r for r in results}
    ordered = [by_run[key] for key in sorted(by_run)]
    content = {"hardware": hardware(), "results": [asdict(r) for r in ordered]}
    path.parent.mkdir(exist_ok=True)
    path.write_text(json.dumps(content, indent=1) + "\n")
    return ordered


def print_table(results: list[Result]) -> None:
    """One line a run, then the mean gains."""
    columns = ("run", "seed", "before", "after", "gain", "wall s", "1st step s", "idle", "GiB")
    print("".join(f"{column:>11}" for column in columns))
    for r in results:
        cells = (
            r.name, r.seed, f"{r.before['all']:.3f}", f"{r.after['all']:.3f}", f"{r.gain:+.1f}",
            f"{r.wall_seconds:.0f}", f"{r.first_step_seconds:.0f}",
            f"{r.stall_and_idle_share:.2f}", f"{r.peak_bytes / 2**30:.2f}",
        )  # fmt: skip
        print("".join(f"{cell:>11}" for cell in cells), r.note)
    for name in sorted({r.name for r in results}):
        gains = [r.gain for r in results if r.name == name]
        print(f"mean gain, {name}, {len(gains)} seeds: {statistics.mean(gains):+.1f} points")


def main() -> None:
    """Run, keep, print."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--runs", type=Path, default=Path("runs/benchmark"))
    parser.add_argument("--only", choices=["rl", "shuffled"])
    parser.add_argument("--note", default="", help="what else the machine was doing")
    arguments = parser.parse_args()
    results: list[Result] = []
    for seed in arguments.seeds:
        main_job = (arguments.runs / f"seed{seed}").absolute()
        if arguments.only != "shuffled":
            results.append(run("rl", seed, main_job, note=arguments.note, overrides=[]))
        if arguments.only != "rl":
            start = main_job / "checkpoints" / "step_0" / "model"
            overrides = ["sft=null", f"policy.path={start}", "rewards.shuffled=true"]
            folder = main_job.with_name(f"seed{seed}-shuffled")
            results.append(run("shuffled", seed, folder, note=arguments.note, overrides=overrides))
        kept = keep(results)
    print_table(kept)


if __name__ == "__main__":
    main()
