"""Where the processor's time goes while the quickstart trains: who works, who waits, who pauses.

The recipe as it is, from its supervised start, without held-out tasks. Between two moments of the
steady state the CPU time of every process of the run is taken from /proc: the engine's core, the
rollout worker that owns it, the learner, the reward workers with the sandboxes below them, the
driver, and Ray's own processes. `useful` is generating, scoring and training: all but driver and
Ray, over cores x wall time. CPU time that processes outside the run had in between is kept, too:
on a shared machine `useful_of_free` leaves it out of what could be had.

Idle: of the learner, while no call of it is under way; of the engine, while it has no request.
Pause: generation stands still for new weights, from `timeline.json` (an upper bound: the files
are verified in it, while requests run).

`cpu_per_step` bounds every way of overlapping: no step can take less than that over the cores.

    python -m benchmarks.loop_efficiency --steps 60 --rounds 3
    python -m benchmarks.loop_efficiency engine.dtype=bfloat16 engine.eager=false --staleness 0 1 \
        --data benchmarks/data/loop_modes.json
"""

import argparse
import json
import os
import shutil
import statistics
import time
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path

import psutil

from benchmarks.machine import hardware
from benchmarks.quickstart_runs import Row, start_model, step_samples, train

DATA = Path(__file__).resolve().parent / "data" / "loop_efficiency.json"
EDGE = 5  # first and last steps that are not steady
ROLES = {
    "VLLM::EngineCore": "engine",
    "ray::WatchedRollout": "rollout worker",
    "ray::LearnerWorker": "learner",
    "ray::RewardWorker": "rewards",
}
USEFUL = tuple(ROLES.values())
DRIVER, RAY = "driver", "Ray"


@dataclass(frozen=True, kw_only=True)
class Moment:
    """CPU seconds so far."""

    at: float  # seconds since the epoch
    roles: dict[str, float]
    machine: float  # of all processes, ours and others


def moment(pid: int) -> Moment:
    """Look at the run whose command is process `pid`."""
    roles = dict.fromkeys((*USEFUL, DRIVER, RAY), 0.0)
    pending: list[tuple[psutil.Process, str]] = [(psutil.Process(pid), DRIVER)]
    while pending:
        process, inherited = pending.pop()
        try:
            name = " ".join(process.cmdline()) or process.name()
            role = next((r for start, r in ROLES.items() if name.startswith(start)), inherited)
            times = process.cpu_times()
            roles[role] += times.user + times.system
            if role == "rewards":  # sandboxes come and go
                roles[role] += times.children_user + times.children_system
            below = RAY if role == DRIVER else role
            pending += [(child, below) for child in process.children()]
        except psutil.Error:
            continue  # ended while we looked
    every = psutil.cpu_times()
    busy = every.user + every.nice + every.system + every.irq + every.softirq
    return Moment(at=time.time(), roles=roles, machine=busy)


@dataclass
class Watch:
    """Takes the two moments."""

    last: int  # step of the second
    begin: Moment | None = None
    end: Moment | None = None

    def look(self, pid: int, rows: Sequence[Row]) -> None:
        """What `quickstart_runs.train` calls."""
        if self.begin is None and len(rows) >= EDGE:
            self.begin = moment(pid)
        if self.end is None and len(rows) >= self.last:
            self.end = moment(pid)


@dataclass(frozen=True, kw_only=True)
class Result:
    """One run between the two moments."""

    staleness: int
    round: int
    load: float  # processes that wanted a core before it started
    wall: float
    cpu: dict[str, float]  # seconds, by role
    cpu_per_step: float  # of all roles together
    others: float  # CPU seconds of processes outside the run
    learner_idle: float  # shares of the wall time
    engine_idle: float
    pause: float
    samples_per_s: float
    steps: dict[str, float] = field(default_factory=dict)  # medians of a step, in seconds

    @property
    def useful(self) -> float:
        """CPU time generating, scoring and training over cores x wall time."""
        return sum(self.cpu[role] for role in USEFUL) / (self.wall * (os.cpu_count() or 1))

    @property
    def useful_of_free(self) -> float:
        """The same over what others left."""
        free = self.wall * (os.cpu_count() or 1) - self.others
        return sum(self.cpu[role] for role in USEFUL) / free


def spans(path: Path, tracks: str, begin: float, end: float) -> list[tuple[str, float, float]]:
    """Name, begin and end of what tracks beginning with `tracks` did, cut to the time between."""
    lines = path.read_text().splitlines()[1:]
    events = [json.loads(line.rstrip(",")) for line in lines if line.startswith("{")]
    names = {e["pid"]: e["args"]["name"] for e in events if e["name"] == "process_name"}
    found = []
    for event in events:
        if event["ph"] == "X" and names.get(event["pid"], "").startswith(tracks):
            start = event["ts"] / 1e6
            stop = start + event["dur"] / 1e6
            if stop > begin and start < end:
                found.append((event["name"], max(start, begin), min(stop, end)))
    return found


def covered(pieces: Iterable[tuple[float, float]]) -> float:
    """Seconds in which at least one of them lasts."""
    total, reached = 0.0, 0.0
    for start, stop in sorted(pieces):
        total += max(0.0, stop - max(start, reached))
        reached = max(reached, stop)
    return total


def measure(
    folder: Path, start: Path, steps: int, staleness: int, number: int, more: Sequence[str]
) -> Result:
    """One run, with `more` settings of the recipe."""
    run = folder / f"staleness{staleness}"
    shutil.rmtree(run, ignore_errors=True)
    watch, load = Watch(last=steps - EDGE), os.getloadavg()[0]
    overrides = [f"steps={steps}", f"rollout.max_staleness={staleness}", f"seed={number}", *more]
    rows = train(run, start, [*overrides, f"checkpoint.every={steps}"], watch.look)
    begin, end = watch.begin, watch.end
    assert begin is not None
    assert end is not None
    wall = end.at - begin.at
    cpu = {role: end.roles[role] - begin.roles[role] for role in begin.roles}
    timeline = run / "timeline.json"
    learner = spans(timeline, "learner shard", begin.at, end.at)
    weights = [s for s in spans(timeline, "rollout worker", begin.at, end.at) if "weights" in s[0]]
    steady = rows[EDGE : steps - EDGE]
    names = ("step", "learn", "sync", "stall", "engine_idle", "rollout")
    return Result(
        staleness=staleness,
        round=number,
        load=round(load, 2),
        wall=wall,
        cpu={role: round(seconds, 2) for role, seconds in cpu.items()},
        cpu_per_step=round(sum(cpu.values()) / (steps - 2 * EDGE), 3),
        others=end.machine - begin.machine - sum(cpu.values()),
        learner_idle=1 - covered((a, b) for _, a, b in learner) / wall,
        engine_idle=sum(row["time/engine_idle"] for row in steady)
        / sum(row["time/step"] for row in steady),
        pause=covered((a, b) for _, a, b in weights) / wall,
        samples_per_s=step_samples() * len(steady) / sum(row["time/step"] for row in steady),
        steps={n: statistics.median(row[f"time/{n}"] for row in steady) for n in names},
    )


def print_table(results: Sequence[Result]) -> None:
    """One line a run: shares of cores x wall time by role, then what waited."""
    roles = (*USEFUL, DRIVER, RAY)
    print("N  " + " ".join(f"{role:>14}" for role in (*roles, "others")), end="")
    print("  useful of-free  learner-idle engine-idle  pause samples/s  load cpu/step")
    cores = os.cpu_count() or 1
    for r in results:
        shares = [r.cpu[role] / (r.wall * cores) for role in roles] + [r.others / (r.wall * cores)]
        print(f"{r.staleness}  " + " ".join(f"{share:14.3f}" for share in shares), end="")
        print(
            f"  {r.useful:6.3f} {r.useful_of_free:7.3f}  {r.learner_idle:12.3f} "
            f"{r.engine_idle:11.3f} {r.pause:6.3f} {r.samples_per_s:9.1f} {r.load:5.2f}"
            f" {r.cpu_per_step:8.3f}"
        )


def main() -> None:
    """Run, keep, print."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--staleness", type=int, nargs="+", default=[1])
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--steps", type=int, default=60)
    parser.add_argument("--folder", type=Path, default=Path("runs/throughput"))
    parser.add_argument("--data", type=Path, default=DATA)
    parser.add_argument("overrides", nargs="*", default=[], help="settings, such as steps=20")
    arguments = parser.parse_args()
    folder = arguments.folder.absolute()
    folder.mkdir(parents=True, exist_ok=True)
    start = start_model(folder)
    results = []
    for number in range(arguments.rounds):
        for staleness in arguments.staleness:
            results.append(
                measure(folder, start, arguments.steps, staleness, number, arguments.overrides)
            )
            print_table(results[-1:])
    rows = [{**asdict(r), "useful": r.useful, "useful_of_free": r.useful_of_free} for r in results]
    arguments.data.write_text(
        json.dumps(
            {"hardware": hardware("cpu"), "overrides": arguments.overrides, "runs": rows}, indent=1
        )
        + "\n"
    )
    print_table(results)


if __name__ == "__main__":
    main()
