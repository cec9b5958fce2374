"""The folder of a run: `runs/NAME/`, and what lies where in it."""

import fcntl
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TextIO

from rl.config import TrainConfig
from rl.errors import BadInput

UNTRAINED = {"config.yaml", "start", "restarts.jsonl", "timeline.json", "wandb"}
"""What a run leaves that ended before it had trained: nothing that a later one must spare."""


@dataclass(frozen=True, slots=True)
class RunFolder:
    """Paths of one run."""

    root: Path

    @property
    def config(self) -> Path:
        """The resolved configuration."""
        return self.root / "config.yaml"

    @property
    def metrics(self) -> Path:
        """One object per step."""
        return self.root / "metrics.jsonl"

    @property
    def timeline(self) -> Path:
        """Which part did what, and when."""
        return self.root / "timeline.json"

    @property
    def samples(self) -> Path:
        """What was generated and how it was scored."""
        return self.root / "samples"

    @property
    def checkpoints(self) -> Path:
        """`step_N` folders and `latest`."""
        return self.root / "checkpoints"

    @property
    def start(self) -> Path:
        """The model as it was before any training (tiny, made by code)."""
        return self.root / "start"

    @property
    def length_budgets(self) -> Path:
        """Toggle's token budgets by family, measured before RL."""
        return self.root / "length_budgets.json"

    @property
    def baseline(self) -> Path:
        """What self-critique keeps of the policy before RL."""
        return self.root / "baseline.json"

    @property
    def restarts(self) -> Path:
        """What was lost and started again, a line each."""
        return self.root / "restarts.jsonl"

    @property
    def summary(self) -> Path:
        """Totals, written at the end."""
        return self.root / "summary.json"

    @property
    def plot(self) -> Path:
        """Reward and accuracy over steps."""
        return self.root / "reward.png"

    @property
    def critic_plot(self) -> Path:
        """What is known of the critic over steps."""
        return self.root / "critic.png"

    @property
    def report(self) -> Path:
        """The run as a page."""
        return self.root / "report.html"


_locks: dict[Path, TextIO] = {}  # of this process, until it ends


def run_root(config: TrainConfig) -> Path:
    """Where the run of a recipe lies."""
    return Path(config.run_dir or Path("runs") / config.name).absolute()


@contextmanager
def open_run(config: TrainConfig) -> Iterator[RunFolder]:
    """Make the folder, or find it when resuming.

    An earlier run of the same name is moved aside, or removed if it had not trained. The folder is
    this process's until that ends. If what is done within fails, as for a mistake in the recipe,
    all lies as before.

    Raises:
        BadInput: the folder cannot be made, there is nothing to resume in it, or another process
            has a run there.
    """
    root = run_root(config)
    folder = RunFolder(root)
    if config.resume and not folder.config.exists():
        raise BadInput(f"nothing to resume: {root} holds no run; start it without resume=true")
    try:
        _lock(root)
        aside = None if config.resume else _make(folder)
    except OSError as error:
        raise BadInput(f"cannot use run_dir {root}: {error.strerror or error}") from error
    try:
        yield folder
    except BaseException:
        if not config.resume:
            shutil.rmtree(root, ignore_errors=True)
        if aside is not None:
            aside.rename(root)
        raise
    if aside is not None and {path.name for path in aside.iterdir()} <= UNTRAINED:
        shutil.rmtree(aside)


def _make(folder: RunFolder) -> Path | None:
    """Make the folder; where the run that lay there lies now."""
    root = folder.root
    if not root.exists() or not any(root.iterdir()):
        root.mkdir(parents=True, exist_ok=True)
        return None
    if not folder.config.exists():
        raise BadInput(f"run_dir {root} holds other files: choose an empty or a new folder")
    number = 1
    while (aside := root.with_name(f"{root.name}.{number}")).exists():
        number += 1
    root.rename(aside)
    root.mkdir()
    return aside


def _lock(root: Path) -> None:
    """Keep other processes out. The file lies beside the folder, which may be moved aside."""
    if root in _locks:
        return
    root.parent.mkdir(parents=True, exist_ok=True)
    file = root.with_name(f".{root.name}.lock").open("a+")
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        file.seek(0)
        holder = file.read().strip()
        file.close()
        raise BadInput(
            f"process {holder} has a run in {root}: wait until it has ended, or choose another "
            "run_dir"
        ) from None
    file.truncate(0)
    file.write(str(os.getpid()))
    file.flush()
    _locks[root] = file
