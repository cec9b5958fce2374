"""Does a run end as it would have, if something of it is killed every few seconds?

A run with a supervised start behind it is trained twice: undisturbed, and under `kill -9` of random
processes: the driver, a rollout worker, the core of its engine, a reward worker, the learner's
shard, Ray's raylet, its head or one of its agents, and the process of `--revive` that looks on. If
that one ends, the command is given again by hand, with `resume=true`.
Prints each kill and what came of it, then whether each position of the stream has been trained
exactly once, and the accuracy on held-out tasks beside that of the undisturbed run.

Which kind of process is killed is random among those that were killed least often so far. A kill
comes `--every` seconds after training went on from the last one: most of them end the state
of the run, and a start takes longer than that. After one kill in four the next does not wait, and
comes at any time within `--every` seconds: while the run starts again.

The recipe is the quickstart's with fewer groups in a step: two cores then train 200 steps in a few
minutes. Every second step is a checkpoint, as a run would set it whose parts die all the time.

    python -m benchmarks.chaos --runs runs/chaos
    python -m benchmarks.chaos --runs runs/chaos --steps 20 --start CHECKPOINT
"""

import argparse
import json
import random
import re
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path

import psutil

from benchmarks.machine import hardware
from benchmarks.run_processes import RunProcesses, kill, title
from rewards.intervals import Z95, wilson
from rl.checkpoint import checkpoints_in, latest_checkpoint, read_state
from rl.metrics import read_metrics
from rl.run_folder import RunFolder

DATA = Path(__file__).resolve().parent / "data" / "chaos.json"
RECIPE = (
    "quickstart",
    "wandb=disabled",
    "sft=null",
    "evaluation.tasks=256",
    "checkpoint.every=2",
)
TASKS = 256  # held out
PARTS = ("undisturbed", "killed")
TOLD = re.compile(r"lost|back after|starting again|is gone|cannot|error|Error|WARNING")
LOOK_S = 0.5
BEYOND = 3  # steps after a kill that cannot be trained from what lay ready
AT_ONCE = 0.25  # share of kills that are followed by another within `--every` seconds


@dataclass(frozen=True, kw_only=True)
class Kill:
    """One process that was ended, and what came of it until the next was."""

    at: float  # seconds since the run began
    part: str
    step: int  # trained when it was killed
    back_s: float | None  # until steps that did not lie ready; None: another kill first
    by_hand: str  # why the command had to be given again; empty if it had not
    said: list[str]


@dataclass(frozen=True, kw_only=True)
class Outcome:
    """One run."""

    seed: int
    steps: int
    wall_seconds: float
    accuracy_before: float
    accuracy: float
    low: float
    high: float
    trained: int  # positions in the samples of all steps
    twice: int  # of them, in more than one
    lost: int  # positions that are neither trained nor open
    restarts: dict[str, int]
    kills: list[Kill] = field(default_factory=list)
    by_hand: int = 0


class Chaos:
    """A run under way, whoever is killed in it."""

    def __init__(self, folder: Path, arguments: Sequence[str], *, seed: int, every: float) -> None:
        """Kill at random by `seed`, `every` seconds after it trains."""
        self.folder = RunFolder(folder)
        self._arguments, self._every = arguments, every
        self._random = random.Random(seed)
        self._log = folder.with_name(f"{folder.name}.log")
        self._read = 0
        self.kills: list[Kill] = []
        self.by_hand = 0
        self._began = time.monotonic()
        self._open: tuple[float, str, int] | None = None  # the last kill: at, part, step
        self._back_s: float | None = None
        self._why_by_hand = ""
        self._processes = RunProcesses()
        self._command = self._start()

    @property
    def step(self) -> int:
        """Steps trained so far."""
        rows = read_metrics(self.folder.metrics)
        return int(rows[-1]["step"]) if rows else 0

    def run(self, steps: int, kill_for_s: float) -> None:
        """Go on until the run has ended; kill while it trains, and for so long."""
        due: float | None = None  # None: not before it trains
        last, step = self._began + kill_for_s, 0
        while True:
            time.sleep(LOOK_S)
            before, now, step = step, time.monotonic(), self.step
            self._processes.alive()  # so that those that become orphans are known
            if before == 0 < step and not self.kills and self._open is None:
                print(f"the first step was trained after {now - self._began:.0f} s", flush=True)
                due = now + self._every
            if self._open is not None and self._back_s is None and step >= self._open[2] + BEYOND:
                self._back_s = now - self._began - self._open[0]
                due = due or now + self._every
            code = self._command.poll()
            if code == 0:
                self._close()
                return
            if code is not None:
                self._give_again(code)
            elif due is not None and due <= now < last and step < steps - BEYOND:
                self._close()
                self._kill(now - self._began, step)
                at_once = self._random.random() < AT_ONCE
                due = now + self._random.uniform(0, self._every) if at_once else None

    def stop(self) -> None:
        """End everything of the run."""
        self._processes.kill()

    def _start(self) -> psutil.Popen:
        resume = self.folder.config.exists() and checkpoints_in(self.folder.checkpoints)
        self.folder.root.parent.mkdir(parents=True, exist_ok=True)
        with self._log.open("ab") as log:
            command = psutil.Popen(
                [
                    sys.executable, "-W", "ignore", "-m", "rl.cli", "train", "--revive",
                    *self._arguments,
                    f"run_dir={self.folder.root}", f"resume={'true' if resume else 'false'}",
                ],
                stdout=log, stderr=log, start_new_session=True,
            )  # fmt: skip
        self._processes.begin(command.pid)
        return command

    def _give_again(self, code: int) -> None:
        """The command has ended: give it again, once what it left is gone."""
        self._why_by_hand = f"ended with {code}"
        self.by_hand += 1
        deadline = time.monotonic() + 60
        while (left := self._processes.alive()) and time.monotonic() < deadline:
            time.sleep(LOOK_S)
        if left:
            left_titles = Counter(title(process)[:40] for process in left)
            self._why_by_hand += f"; {len(left)} processes were left: {dict(left_titles)}"
            self.stop()
        self._command = self._start()

    def _kill(self, at: float, step: int) -> None:
        by_part = self._processes.by_part()
        killed = Counter(kill.part for kill in self.kills)
        fewest = min(killed[part] for part in by_part)
        part = self._random.choice(sorted(p for p in by_part if killed[p] == fewest))
        kill(self._random.choice(by_part[part]))
        self._open, self._back_s, self._why_by_hand = (at, part, step), None, ""

    def _close(self) -> None:
        """Note and print what came of the last kill."""
        said = self._said()
        if self._open is None:
            return
        at, part, step = self._open
        back = None if self._back_s is None else round(self._back_s, 1)
        by_hand = self._why_by_hand
        kill = Kill(at=round(at, 1), part=part, step=step, back_s=back, by_hand=by_hand, said=said)
        self.kills.append(kill)
        again = (
            f"trains again after {back:.0f} s" if back is not None else "no step before the next"
        )
        print(f"{at:6.0f} s  step {step:3}  {part:<15} killed: {again}  {by_hand}", flush=True)
        for line in said:
            print(f"{'':27}{line[:110]}")
        self._open = None

    def _said(self) -> list[str]:
        """What the driver told of since it was last looked at."""
        with self._log.open("rb") as log:
            log.seek(self._read)
            text = log.read().decode(errors="replace")
            self._read = log.tell()
        return [
            line.strip()
            for line in text.splitlines()
            if TOLD.search(line) and "(raylet)" not in line
        ]


def outcome(run: Chaos, *, seed: int, wall: float) -> Outcome:
    """What a run that has ended came to."""
    folder = run.folder
    summary = json.loads(folder.summary.read_text())
    journal = read_state(latest_checkpoint(folder.checkpoints)).journal
    assert journal is not None
    steps_of: Counter[int] = Counter()
    for path in sorted(folder.samples.glob("step_*.jsonl")):
        tasks = {json.loads(line)["task"] for line in path.read_text().splitlines()}
        steps_of.update({int(task.rpartition("/")[2]) for task in tasks})
    accuracy = summary["eval_after"]["all"]
    low, high = wilson(accuracy, TASKS)
    return Outcome(
        seed=seed,
        steps=summary["steps"],
        wall_seconds=wall,
        accuracy_before=summary["eval_before"]["all"],
        accuracy=accuracy,
        low=low,
        high=high,
        trained=len(steps_of),
        twice=sum(count > 1 for count in steps_of.values()),
        lost=len(set(range(journal.end)) - set(journal.open) - set(steps_of)),
        restarts=summary["restarts_by_part"],
        kills=run.kills,
        by_hand=run.by_hand,
    )


def supervised_start(runs: Path) -> Path:
    """The checkpoint that both runs start from; made if it is not there."""
    checkpoint = runs / "start" / "checkpoints" / "step_0" / "model"
    if not checkpoint.is_dir():
        command = ["sft", "quickstart", f"run_dir={runs / 'start'}", "wandb=disabled"]
        subprocess.run(
            [sys.executable, "-m", "rl.cli", *command], check=True, stdout=subprocess.DEVNULL
        )
    return checkpoint


def print_outcome(name: str, of: Outcome) -> None:
    """A run in a paragraph."""
    print(
        f"{name}: {of.steps} steps in {of.wall_seconds:.0f} s; {of.trained} positions trained, "
        f"{of.twice} twice, {of.lost} lost; held-out pass@1 {of.accuracy_before:.3f} -> "
        f"{of.accuracy:.3f} [{of.low:.3f}, {of.high:.3f}]"
    )
    if of.kills:
        by_part = Counter(kill.part for kill in of.kills)
        print(
            f"  {len(of.kills)} kills: {dict(by_part)}; the command given {of.by_hand} times more"
        )
        print(f"  restarts that the run counted: {of.restarts}")


def print_difference(calm: float, chaos: float) -> None:
    """The accuracies' difference, with its 95 % interval over tasks drawn anew."""
    spread = sum(each * (1 - each) / TASKS for each in (calm, chaos))
    half, found = Z95 * spread**0.5, chaos - calm
    print(f"difference {found:+.3f} [{found - half:+.3f}, {found + half:+.3f}]")


def main() -> None:
    """Run both, keep, print."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--runs", type=Path, default=Path("runs/chaos"))
    parser.add_argument("--start", type=Path, help="a checkpoint, in place of a supervised start")
    parser.add_argument("--steps", type=int, default=200)
    parser.add_argument("--every", type=float, default=20.0, help="seconds of training per kill")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--kill-for", type=float, default=float("inf"), help="seconds, then none")
    parser.add_argument("--groups", type=int, default=8, help="in a step")
    parser.add_argument("--parts", nargs="+", choices=PARTS, default=PARTS)
    parser.add_argument("--data", type=Path, default=DATA)
    asked = parser.parse_args()
    runs = asked.runs.absolute()
    start = (asked.start or supervised_start(runs)).absolute()
    arguments = [
        *RECIPE,
        f"rollout.groups_per_step={asked.groups}",
        f"policy.path={start}",
        f"steps={asked.steps}",
        f"seed={asked.seed}",
    ]
    content = json.loads(asked.data.read_text()) if asked.data.exists() else {"runs": {}}
    for name in asked.parts:
        every = float("inf") if name == "undisturbed" else asked.every
        print(f"{name}: a kill after every {every:g} s of training", flush=True)
        began = time.monotonic()
        chaos = Chaos(runs / name, arguments, seed=asked.seed, every=every)
        try:
            chaos.run(asked.steps, asked.kill_for)
        finally:
            chaos.stop()
        found = outcome(chaos, seed=asked.seed, wall=time.monotonic() - began)
        print_outcome(name, found)
        content["runs"][name] = {
            "hardware": hardware("cpu"),
            "recipe": arguments[: len(RECIPE) + 1],
            "every_s": None if name == "undisturbed" else every,
            **asdict(found),
        }
        asked.data.write_text(json.dumps({"runs": content["runs"]}, indent=1) + "\n")
    if set(content["runs"]) == set(PARTS):
        print_difference(*(content["runs"][name]["accuracy"] for name in PARTS))


if __name__ == "__main__":
    main()
