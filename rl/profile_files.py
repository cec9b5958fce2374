"""What `temper profile-tasks` writes: the tasks to train on, a row for every task, a histogram."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt

from rewards.task import Task
from rl.difficulty import BARS, TaskProfile, Verdict, histogram
from rl.errors import BadInput, writing

THEN = "give the command again: it goes on with what is missing"


@dataclass(frozen=True, slots=True)
class ProfileFiles:
    """FILE and its two neighbours."""

    tasks: Path

    @property
    def profile(self) -> Path:
        """A row for every task, with the settings that it was measured under."""
        return self.tasks.with_suffix(".profile.jsonl")

    @property
    def partial(self) -> Path:
        """The tasks while they are being written."""
        return self.tasks.with_suffix(".partial")

    @property
    def plot(self) -> Path:
        """The histogram."""
        return self.tasks.with_suffix(".profile.png")

    def read(self, settings: Mapping[str, Any]) -> dict[tuple[str, str], TaskProfile]:
        """Rows of an earlier run by task and question; a last line cut by a kill is dropped.

        Raises:
            BadInput: they were measured under other settings, or are no such rows.
            RunFailed: the half line cannot be dropped.
        """
        if not self.profile.exists():
            return {}
        try:
            lines = self.profile.read_bytes().splitlines(keepends=True)
        except OSError as error:
            raise BadInput(f"cannot read {self.profile}: {error.strerror or error}") from error
        whole = [line for line in lines if line.endswith(b"\n")]
        if len(whole) < len(lines):
            with writing(self.profile, THEN):
                self.profile.write_bytes(b"".join(whole))
        try:
            rows = [json.loads(line) for line in whole]
            other = any({key: row[key] for key in settings} != settings for row in rows)
            found = [_profile({k: v for k, v in r.items() if k not in settings}) for r in rows]
        except (KeyError, TypeError, ValueError, AttributeError) as error:
            raise BadInput(
                f"{self.profile} is no profile ({error}): choose another --out"
            ) from error
        if other:
            raise BadInput(
                f"{self.profile} was measured with another model or other settings: delete it, or "
                "choose another --out"
            )
        return {(each.task, each.question): each for each in found}

    def append(self, profile: TaskProfile, settings: Mapping[str, Any]) -> None:
        """Add one row. Raises RunFailed where the disk refuses."""
        row = {**asdict(profile), "pass_rate": profile.pass_rate, **settings}
        with writing(self.profile, THEN), self.profile.open("a") as file:
            file.write(json.dumps(row) + "\n")

    def write(self, kept: Sequence[tuple[Task, str]], profiles: Sequence[TaskProfile]) -> None:
        """The kept tasks, each with its question, and the histogram of all.

        Raises RunFailed where the disk refuses.
        """
        rows = [json.dumps({**asdict(task), "question": question}) for task, question in kept]
        with writing(self.tasks, THEN):
            self.partial.write_text("".join(row + "\n" for row in rows))
            self.partial.replace(self.tasks)
        with writing(self.plot, THEN):
            _draw(profiles, self.plot)


def _profile(row: dict[str, Any]) -> TaskProfile:
    del row["pass_rate"]
    return TaskProfile(**{**row, "verdict": Verdict(row["verdict"])})


def _draw(profiles: Sequence[TaskProfile], path: Path) -> None:
    """Tasks by pass rate; the kept ones darker."""
    figure, axis = plt.subplots(figsize=(7, 4), constrained_layout=True)
    places = [(bar + 0.5) / BARS for bar in range(BARS)]
    kept = [each for each in profiles if each.kept]
    for rows, colour, label in ((profiles, "#9bb8d9", "all"), (kept, "#1f5fa8", "kept")):
        axis.bar(places, histogram(rows), width=0.9 / BARS, color=colour, label=label)
    axis.set_xlabel("pass rate")
    axis.set_ylabel("tasks")
    axis.legend()
    figure.savefig(path, dpi=110)
    plt.close(figure)
