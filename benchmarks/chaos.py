"""Does a run end as it would have, if something of it is killed every few seconds?

A run with a supervised start behind it is trained twice: undisturbed, and under `kill -9` of a
random process every `--every` seconds: the driver, a rollout worker, the core of its engine, a
reward worker, the learner's shard, Ray's raylet, its head or one of its agents. What ends the
driver is started again by hand, with `resume=true`, as often as it takes. Prints each kill and what
came of it, then whether each position of the stream has been trained exactly once, and the accuracy
on held-out tasks beside that of the undisturbed run.

The recipe is the quickstart's with fewer groups in a step: two cores then train 200 steps in a few
minutes. Every second step is a checkpoint, as a run would set it whose parts die all the time.
Where a start takes longer than `--every`, hardly anything is trained between two kills: choose
twice what the first start took, which is printed.

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
from benchmarks.run_processes import RunProcesses, kill
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
TOLD = re.compile(r"lost|back after|starting again|is gone|cannot|error|Error|WARNING")
LOOK_S = 0.5


@dataclass(frozen=True, kw_only=True)
class Kill:
    """One process that was ended, and what came of it until the next was."""

    at: float  # seconds since the run began
    part: str
    step: int  # trained when it was killed
    driver: str  # "goes on", or why it was started again by hand
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
    hand_offs: int = 0
    starts: list[float] = field(default_factory=list)  # seconds from a start to its first step


class Chaos:
    """A run under way, whoever is killed in it."""

    def __init__(self, folder: Path, arguments: Sequence[str], *, seed: int, every: float) -> None:
        """Kill at random by `seed`, a process every `every` seconds."""
        self.folder = RunFolder(folder)
        self._arguments, self._every = arguments, every
        self._random = random.Random(seed)
        self._log = folder.with_name(f"{folder.name}.log")
        self._read = 0
        self.kills: list[Kill] = []
        self.hand_offs = 0
        self.starts: list[float] = []
        self._began = self._started = time.monotonic()
        self._first_step: int | None = None
        self._open: tuple[float, str, int] | None = None  # the last kill: at, part, step
        self._driver_is = "goes on"
        self._processes = RunProcesses()
        self._driver = self._start()

    @property
    def step(self) -> int:
        """Steps trained so far."""
        rows = read_metrics(self.folder.metrics)
        return int(rows[-1]["step"]) if rows else 0

    def run(self, steps: int, kill_for_s: float) -> None:
        """Go on until the run has ended; kill while it trains, and for so long."""
        due, last = self._began + self._every, self._began + kill_for_s
        while True:
            time.sleep(LOOK_S)
            now, step = time.monotonic(), self.step
            self._processes.alive()  # so that those that become orphans are known
            if self._first_step is not None and step > self._first_step:
                self.starts.append(now - self._started)
                self._first_step = None
                if len(self.starts) == 1:
                    print(f"the first start took {self.starts[0]:.0f} s to its first step")
            code = self._driver.poll()
            if code == 0:
                self._close()
                return
            if code is not None:
                self._hand_off(code)
            elif due <= now < last and step < steps:
                self._close()
                self._kill(now - self._began, step)
                due = now + self._every

    def stop(self) -> None:
        """End everything of the run."""
        self._processes.kill()

    def _start(self) -> psutil.Popen:
        resume = self.folder.config.exists() and checkpoints_in(self.folder.checkpoints)
        self._started, self._first_step = time.monotonic(), self.step if resume else 0
        self.folder.root.parent.mkdir(parents=True, exist_ok=True)
        with self._log.open("ab") as log:
            driver = psutil.Popen(
                [
                    sys.executable, "-W", "ignore", "-m", "rl.cli", "train", *self._arguments,
                    f"run_dir={self.folder.root}", f"resume={'true' if resume else 'false'}",
                ],
                stdout=log, stderr=log, start_new_session=True,
            )  # fmt: skip
        self._processes.begin(driver.pid)
        return driver

    def _hand_off(self, code: int) -> None:
        """The driver has ended: start it again, once what it left is gone."""
        self._driver_is = f"ended with {code}, started again by hand"
        self.hand_offs += 1
        deadline = time.monotonic() + 60
        while (left := self._processes.alive()) and time.monotonic() < deadline:
            time.sleep(LOOK_S)
        if left:
            self._driver_is += f"; {len(left)} processes were left"
            self.stop()
        self._driver = self._start()

    def _kill(self, at: float, step: int) -> None:
        by_part = self._processes.by_part()
        part = self._random.choice(sorted(by_part))
        kill(self._random.choice(by_part[part]))
        self._open = (at, part, step)

    def _close(self) -> None:
        """Note and print what came of the last kill."""
        said = self._said()
        if self._open is None:
            return
        at, part, step = self._open
        kill = Kill(at=round(at, 1), part=part, step=step, driver=self._driver_is, said=said)
        self.kills.append(kill)
        print(f"{at:6.0f} s  step {step:3}  {part:<15} killed; the driver {kill.driver}")
        for line in said:
            print(f"{'':27}{line[:110]}")
        self._open, self._driver_is = None, "goes on"

    def _said(self) -> list[str]:
        """What the driver told of since it was last looked at."""
        with self._log.open("rb") as log:
            log.seek(self._read)
            text = log.read().decode(errors="replace")
            self._read = log.tell()
        return [line.strip() for line in text.splitlines() if TOLD.search(line)]


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
        hand_offs=run.hand_offs,
        starts=[round(each, 1) for each in run.starts],
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
        print(f"  {len(of.kills)} kills: {dict(by_part)}; {of.hand_offs} starts by hand")
        print(f"  restarts that the run counted: {of.restarts}")
        print(f"  a start took {min(of.starts):.0f}-{max(of.starts):.0f} s to its first step")


def print_difference(calm: Outcome, chaos: Outcome) -> None:
    """The accuracies' difference, with its 95 % interval over tasks drawn anew."""
    spread = sum(each.accuracy * (1 - each.accuracy) / TASKS for each in (calm, chaos))
    half, found = Z95 * spread**0.5, chaos.accuracy - calm.accuracy
    print(f"difference {found:+.3f} [{found - half:+.3f}, {found + half:+.3f}]")


def main() -> None:
    """Run both, keep, print."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--runs", type=Path, default=Path("runs/chaos"))
    parser.add_argument("--start", type=Path, help="a checkpoint, in place of a supervised start")
    parser.add_argument("--steps", type=int, default=200)
    parser.add_argument("--every", type=float, default=20.0, help="seconds between two kills")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--kill-for", type=float, default=float("inf"), help="seconds, then none")
    parser.add_argument("--groups", type=int, default=8, help="in a step")
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
    outcomes: dict[str, Outcome] = {}
    for name, every in (("undisturbed", float("inf")), ("killed", asked.every)):
        print(f"{name}: a kill every {every:g} s", flush=True)
        began = time.monotonic()
        chaos = Chaos(runs / name, arguments, seed=asked.seed, every=every)
        try:
            chaos.run(asked.steps, asked.kill_for)
        finally:
            chaos.stop()
        outcomes[name] = outcome(chaos, seed=asked.seed, wall=time.monotonic() - began)
        print_outcome(name, outcomes[name])
    print_difference(outcomes["undisturbed"], outcomes["killed"])
    content = {
        "hardware": hardware("cpu"),
        "recipe": arguments[: len(RECIPE) + 1],
        "every_s": asked.every,
        "runs": {name: asdict(each) for name, each in outcomes.items()},
    }
    asked.data.write_text(json.dumps(content, indent=1) + "\n")


if __name__ == "__main__":
    main()
