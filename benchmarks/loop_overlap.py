"""Does the loop keep engines and learner at work together, and what does a long tail cost?

The real loop (`rl.loop.Loop` with its buffer, journal and batches) between an engine and a learner
whose work is sleep, so that other jobs on the machine do not matter. `learner` is the learner's
speed over that of the engine with a step's samples and no others; a `roomy` engine gives a sample
as many tokens/s among others as alone, a `crowded` one slows down as it fills.

Overlap: samples of 32-96 tokens. `alone` is how long the engine takes for a step's samples with
nothing else to do (the rollout time of a synchronous step), `overlap` the larger of that and of
the training time, over the time of a step; over 1 where an engine that is never emptied is faster.
In simulated time, and once in real time, where the loop's own work counts.

Long tail: 1 % of samples are 20 times as long as the others. The throughput is that of trained
tokens over the same number of tokens in samples that are all alike.

    OMP_NUM_THREADS=1 python -m benchmarks.loop_overlap
"""

import argparse
import itertools
import json
import random
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from statistics import fmean

from benchmarks.machine import hardware
from benchmarks.sleeping_roles import (
    GROUPS,
    RATES,
    SAMPLES,
    STEPS,
    Case,
    engine_rate,
    run,
    simulated,
)

DATA = Path(__file__).resolve().parent / "data" / "loop_overlap.json"
TOKENS = 64  # of a sample
LEARNERS = (1.5, 1.0, 0.75)
EDGE, TAIL_EDGE = 3, 15  # first and last steps that are not steady
SEEDS = (0, 1, 2)
PARTS = ("overlap", "long_tail")
REAL_SPEED = 16.0  # a step of half a second


def throughput(steps: Sequence[dict[str, float]]) -> float:
    """Trained tokens/s."""
    seconds = sum(step["time/step"] for step in steps)
    return sum(step["rollout/tokens"] for step in steps) / seconds


@dataclass(frozen=True, kw_only=True)
class Overlap:
    """Means over the steady steps, in seconds."""

    clock: str
    engine: str
    learner: float
    staleness: int
    step: float
    alone: float
    train: float
    stall: float
    engine_idle: float
    overlap: float
    lag: float  # versions that a token in the loss is behind, on average
    oldest: float  # and the most
    speedup: float  # trained tokens/s over those of the synchronous mode


def overlaps(base: Case, *, real: bool = False) -> list[Overlap]:
    """One row for each number of steps ahead, the first synchronous."""
    runs = {n: run(replace(base, staleness=n), real=real) for n in (0, 1, 2, 4)}
    synchronous = runs[0][EDGE:-EDGE]
    engine = engine_rate(base)
    rows = []
    for staleness, every in runs.items():
        steps = every[EDGE:-EDGE]
        step, train, stall, idle = (
            fmean(each[f"time/{name}"] for each in steps)
            for name in ("step", "learn", "stall", "engine_idle")
        )
        alone = fmean(each["rollout/tokens"] for each in steps) / engine
        rows.append(
            Overlap(
                clock="real" if real else "simulated",
                engine=base.engine,
                learner=base.learner,
                staleness=staleness,
                step=step,
                alone=alone,
                train=train,
                stall=stall,
                engine_idle=idle,
                overlap=max(alone, train) / step,
                lag=fmean(each["staleness/mean"] for each in steps),
                oldest=max(each["staleness/max"] for each in every),
                speedup=throughput(steps) / throughput(synchronous),
            )
        )
    return rows


def spread(position: int, sample: int) -> int:
    """Anything from 32 to 96 tokens."""
    return random.Random(f"{position}/{sample}").randint(TOKENS // 2, 3 * TOKENS // 2)


@dataclass(frozen=True, kw_only=True)
class Tail:
    """A run with a long tail against one of equal samples and as many tokens."""

    engine: str
    learner: float
    staleness: int
    seed: int
    whole: float  # throughput over that without the tail
    steady: float
    masked: float  # share of trained tokens that are too old for the loss
    resampled: float  # share of groups


def tail(base: Case, seed: int) -> Tail:
    """Both runs."""
    draw = random.Random(seed)
    lengths = {
        (at, k): TOKENS * (20 if draw.random() < 0.01 else 1)
        for at in range(STEPS * GROUPS)
        for k in range(SAMPLES)
    }
    short, longer = divmod(sum(lengths.values()), len(lengths))  # so many have one token more

    def even(position: int, sample: int) -> int:
        return short + (position * SAMPLES + sample < longer)

    alike = replace(base, length=even)
    learner_rate = base.learner * engine_rate(alike)
    without = simulated(alike, learner_rate)
    found = simulated(replace(base, length=lambda at, k: lengths[at, k]), learner_rate)
    steady = slice(TAIL_EDGE, -TAIL_EDGE)
    masked = sum(step["rollout/masked_tokens"] for step in found)
    return Tail(
        engine=base.engine,
        learner=base.learner,
        staleness=base.staleness,
        seed=seed,
        whole=throughput(found) / throughput(without),
        steady=throughput(found[steady]) / throughput(without[steady]),
        masked=masked / sum(step["rollout/tokens"] for step in found),
        resampled=sum(step["buffer/resampled"] for step in found) / (STEPS * GROUPS),
    )


def print_overlaps(rows: Sequence[Overlap]) -> None:
    """A table."""
    print(
        "clock      engine   learner  N    step   alone   train   stall    idle  overlap   lag"
        "  oldest  speedup"
    )
    for r in rows:
        print(
            f"{r.clock:<10} {r.engine:<8} {r.learner:7.2f} {r.staleness:2} {r.step:7.3f} "
            f"{r.alone:7.3f} {r.train:7.3f} {r.stall:7.3f} {r.engine_idle:7.3f} {r.overlap:8.3f} "
            f"{r.lag:5.2f} {r.oldest:5.0f}/{r.staleness} {r.speedup:8.2f}"
        )


def print_tails(rows: Sequence[Tail]) -> None:
    """Means over the seeds, and the lowest."""
    print("engine   learner  N   whole  (least)  steady  (least)  masked  resampled")
    for (engine, learner, n), group in itertools.groupby(
        rows, lambda row: (row.engine, row.learner, row.staleness)
    ):
        same = list(group)
        whole, steady = [r.whole for r in same], [r.steady for r in same]
        print(
            f"{engine:<8} {learner:7.2f} {n:2} {fmean(whole):7.3f}  {min(whole):7.3f} "
            f"{fmean(steady):7.3f}  {min(steady):7.3f} {fmean(r.masked for r in same):7.3f} "
            f"{fmean(r.resampled for r in same):10.3f}"
        )


def all_overlaps(cases: Sequence[Case], real_steps: int) -> list[Overlap]:
    """In real time where both take as long, then in simulated time."""
    real = replace(cases[0], learner=1.0, steps=real_steps, speed=REAL_SPEED)
    return overlaps(real, real=True) + [row for case in cases for row in overlaps(case)]


def all_tails(cases: Sequence[Case]) -> list[Tail]:
    """For each number of steps ahead, and each seed."""
    return [
        tail(replace(case, staleness=staleness), seed)
        for case, staleness, seed in itertools.product(cases, (1, 2, 4), SEEDS)
    ]


def main() -> None:
    """Run, keep, print."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--parts", nargs="+", choices=PARTS, default=PARTS)
    parser.add_argument("--real-steps", type=int, default=12, help="of half a second")
    arguments = parser.parse_args()
    cases = [
        Case(engine=engine, learner=learner, staleness=0, length=spread)
        for engine, learner in itertools.product(RATES, LEARNERS)
    ]
    content = json.loads(DATA.read_text()) if DATA.exists() else {}
    content["hardware"] = hardware("cpu")
    if "overlap" in arguments.parts:
        rows = all_overlaps(cases, arguments.real_steps)
        print_overlaps(rows)
        content["overlap"] = [asdict(row) for row in rows]
    if "long_tail" in arguments.parts:
        tails = all_tails(cases)
        print_tails(tails)
        content["long_tail"] = [asdict(row) for row in tails]
    DATA.write_text(json.dumps(content, indent=1) + "\n")


if __name__ == "__main__":
    main()
