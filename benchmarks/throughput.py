"""Samples a second of one recipe: Temper's loop, its synchronous mode, and TRL's GRPOTrainer.

All go from one supervised start of the quickstart's tiny K2, on the same tasks in the same order,
K = 8, 16 groups a step, one optimiser step on each, at most 64 tokens, temperature 1, GRPO's loss,
verifiers, learning rate, betas and weight decay; no PTX, no held-out tasks, no checkpoints but the
last. The optimiser is AdamW in TRL, and MuonClip here, which costs more and whose updates have
AdamW's size; one of ours has AdamW too.

Runs take turns. A rate is that of the steps after the first, from the metrics of the run: samples
over wall time, whatever happens in it. Reward curves are kept with the rates.

`--parts tune` finds TRL's best settings first: threads, precision, kernels of the experts, batches,
caches, continuous batching, vLLM. The fastest whose log-probs are right race: one of all, and one
whose optimiser has float32 weights, as Temper's always has.

TRL is no dependency: its packages go into a virtual environment in `--folder`, which reads torch,
transformers and all else from Temper's.

    python -m benchmarks.throughput --parts tune race --rounds 3 --steps 60
"""

import argparse
import json
import os
import shutil
import statistics
import subprocess
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from benchmarks.machine import hardware
from benchmarks.quickstart_runs import Case, start_model, step_samples, train
from benchmarks.trl_runs import run_trl, ways

HERE = Path(__file__).resolve().parent
DATA = HERE / "data" / "throughput.json"
SAME = (
    "objective.kind=grpo",
    "objective.ptx_weight=0",
    "objective.ptx_sequences=0",
    "rollout.temperature_end=1.0",
)
AHEAD, BEHIND = "rollout.max_staleness=1", "rollout.max_staleness=0"
BEST = ("engine.dtype=bfloat16", "engine.eager=false")
TEMPER = {
    "one version ahead": (AHEAD, *BEST),
    "one version ahead, caches kept": (AHEAD, *BEST, "engine.recompute_kv=false"),
    "one version ahead, AdamW": (AHEAD, *BEST, "optimizer.muon=false"),
    "the recipe as it is": (),
    "synchronous": (BEHIND, *BEST),
}
VARIANTS = {
    "synchronous, 2 threads": (BEHIND, *BEST, "engine.threads=2", "policy.threads=2"),
    "two versions ahead": ("rollout.max_staleness=2", *BEST),
    "256 sequences": (AHEAD, *BEST, "engine.max_num_seqs=256"),
    "engine not compiled": (AHEAD, "engine.dtype=bfloat16"),
}
"""Settings of ours that are not the fastest; run when they are named."""
TRL, TRL_WIDE = "TRL", "TRL, float32 weights"
PLAIN = "float32, 2 threads"
MISMATCH = 0.01  # nats, between sampler and trainer: more is another policy
WARM_UP = 4  # steps that are not steady; what is left of 12, 60 or 180 are whole generations
SPAN = 10  # steps over which the end of a curve is averaged


@dataclass(frozen=True, kw_only=True)
class Way:
    """Settings of TRL's, tried."""

    name: str
    samples_per_s: float | None  # None: it does not run
    mismatch: float | None  # mean |log-prob of the sampler - of the trainer|, where TRL tells
    note: str


@dataclass(frozen=True, kw_only=True)
class Run:
    """One run of one contender."""

    contender: str
    round: int
    load: float  # processes that wanted a core when it started; ours not among them
    samples_per_s: float
    tokens_per_s: float
    rewards: list[float]  # mean of every step
    seconds: list[float]  # of every step

    @property
    def last_reward(self) -> float:
        """Mean over the last steps."""
        return statistics.fmean(self.rewards[-SPAN:])


def measured(contender: str, number: int, samples: int, rows: Sequence[dict[str, float]]) -> Run:
    """A run from `seconds`, `reward` and `tokens` of its steps."""
    steady = rows[WARM_UP:]
    seconds = sum(row["seconds"] for row in steady)
    return Run(
        contender=contender,
        round=number,
        load=round(os.getloadavg()[0], 2),
        samples_per_s=samples * len(steady) / seconds,
        tokens_per_s=sum(row["tokens"] for row in steady) / seconds,
        rewards=[round(row["reward"], 4) for row in rows],
        seconds=[round(row["seconds"], 4) for row in rows],
    )


def run_temper(case: Case, contender: str) -> list[dict[str, float]]:
    """Temper's loop."""
    folder = case.folder / contender.replace(" ", "_").replace(",", "")
    shutil.rmtree(folder, ignore_errors=True)
    overrides = [*SAME, *(TEMPER | VARIANTS)[contender], f"steps={case.steps}", f"seed={case.seed}"]
    rows = train(folder, case.start, [*overrides, f"checkpoint.every={case.steps}"])
    names = {"seconds": "time/step", "reward": "reward/mean", "tokens": "rollout/tokens"}
    return [{name: row[key] for name, key in names.items()} for row in rows]


def tune(case: Case, names: Sequence[str]) -> list[Way]:
    """Try TRL's settings."""
    found = []
    for name in names:
        try:
            rows = run_trl(case, ways()[name])
            rate = measured(TRL, 0, step_samples(), rows).samples_per_s
            mismatches = [row["mismatch"] for row in rows if "mismatch" in row]
            worst = max(mismatches) if mismatches else None
            found.append(Way(name=name, samples_per_s=rate, mismatch=worst, note=""))
        except (RuntimeError, subprocess.TimeoutExpired) as error:
            found.append(Way(name=name, samples_per_s=None, mismatch=None, note=str(error)))
        print(found[-1], flush=True)
    return found


def race(case: Case, contenders: Sequence[str], best: Mapping[str, str], number: int) -> list[Run]:
    """One round: every contender once; `best` names the settings of TRL's."""
    found = []
    for contender in contenders:
        load = round(os.getloadavg()[0], 2)
        way = best.get(contender)
        rows = run_trl(case, ways()[way]) if way else run_temper(case, contender)
        run = measured(contender, number, step_samples(), rows)
        found.append(Run(**{**asdict(run), "load": load}))
        print(f"{number} {contender}: {run.samples_per_s:.1f} samples/s, load {load}", flush=True)
    return found


def best_of(ways_tried: Sequence[dict[str, Any]]) -> dict[str, str]:
    """TRL's fastest settings whose sampler and trainer agree, of all and with float32 weights.

    The plain ones if none were tried.
    """
    right = [w for w in ways_tried if w["samples_per_s"] and (w["mismatch"] or 0.0) < MISMATCH]
    wide = [w for w in right if ways()[w["name"]]["trl"]["model_init_kwargs"]["dtype"] == "float32"]
    return {
        name: str(max(some, key=lambda way: way["samples_per_s"], default={"name": PLAIN})["name"])
        for name, some in ((TRL, right), (TRL_WIDE, wide))
    }


def keep(content: dict[str, Any]) -> None:
    """Write the data file."""
    DATA.write_text(json.dumps(content, indent=1) + "\n")


def print_table(runs: Sequence[Run]) -> None:
    """Medians of every contender, and how many times TRL's they are."""
    names = list(dict.fromkeys(run.contender for run in runs))
    rates = {n: statistics.median(r.samples_per_s for r in runs if r.contender == n) for n in names}
    print(f"{'':<24} samples/s  of TRL  reward: first and last {SPAN} steps")
    for name, rate in rates.items():
        mine = [run for run in runs if run.contender == name]
        first = statistics.fmean(statistics.fmean(run.rewards[:SPAN]) for run in mine)
        last = statistics.fmean(run.last_reward for run in mine)
        ratio = f"{rate / rates[TRL]:6.2f}x" if TRL in rates else "      -"
        print(f"{name:<24} {rate:9.1f} {ratio}  {first:.3f} {last:.3f}")


def main() -> None:
    """Tune, race, keep, print."""
    every = [*TEMPER, TRL, TRL_WIDE]
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--parts", nargs="+", choices=("tune", "race"), default=("race",))
    parser.add_argument("--contenders", nargs="+", choices=[*every, *VARIANTS], default=every)
    parser.add_argument("--ways", nargs="+", choices=list(ways()), default=list(ways()))
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--steps", type=int, default=60)
    parser.add_argument("--tune-steps", type=int, default=12)
    parser.add_argument("--folder", type=Path, default=Path("runs/throughput"))
    arguments = parser.parse_args()
    folder = arguments.folder.absolute()
    folder.mkdir(parents=True, exist_ok=True)
    start = start_model(folder)
    kept = json.loads(DATA.read_text()) if DATA.exists() else {"ways": [], "runs": []}
    kept["hardware"] = hardware("cpu")
    if "tune" in arguments.parts:
        case = Case(folder=folder, start=start, steps=arguments.tune_steps, seed=0)
        tried = {way["name"]: way for way in kept["ways"]}
        tried |= {way.name: asdict(way) for way in tune(case, arguments.ways)}
        kept["ways"] = list(tried.values())
        keep(kept)
    if "race" in arguments.parts:
        kept["best"] = best_of(kept["ways"])
        kept["runs"] = [r for r in kept["runs"] if r["contender"] not in arguments.contenders]
        for number in range(arguments.rounds):
            case = Case(folder=folder, start=start, steps=arguments.steps, seed=number)
            runs = race(case, arguments.contenders, kept["best"], number)
            kept["runs"] += [asdict(run) for run in runs]
            keep(kept)
        print_table([Run(**run) for run in kept["runs"]])


if __name__ == "__main__":
    main()
