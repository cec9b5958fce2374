"""What a checkpoint is, and which one a run goes on from: it is whole or it does not count.

checkpoints/step_20/manifest.json    size and SHA-256 of every other file, written last
                    state.json       what the driver needs to go on
                    model/           Hugging Face checkpoint, tokenizer included
                    state-*          optimiser and random state of every shard
checkpoints/latest -> step_20        moved last

`rl.save_checkpoint` writes them.
"""

import hashlib
import json
import os
import sys
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path

from pydantic import TypeAdapter

from rl.errors import BadInput, RunFailed
from rl.evaluate import PassRate
from rl.journal import JournalState
from rl.self_critique import CritiqueState


@dataclass(frozen=True, slots=True, kw_only=True)
class RunState:
    """Where the driver was. The task stream and every seed follow from `step`."""

    step: int  # steps trained, and the version of the weights
    rollout_tokens: int
    train_seconds: float
    eval_before: dict[str, PassRate]
    critique: CritiqueState = field(default_factory=CritiqueState)
    journal: JournalState | None = None  # None: steps trained the stream in its order


def manifest_of(folder: Path) -> dict[str, dict[str, int | str]]:
    """Size and digest of every file below `folder`; on return all are on the disk."""
    files = sorted(p for p in folder.rglob("*") if p.is_file() and p.name != "manifest.json")
    with ThreadPoolExecutor() as threads:
        digests = list(threads.map(_synced_digest, files))
    return {
        str(path.relative_to(folder)): {"bytes": path.stat().st_size, "sha256": digest}
        for path, digest in zip(files, digests, strict=True)
    }


def _synced_digest(path: Path) -> str:
    with path.open("rb") as file:
        os.fsync(file.fileno())  # whoever wrote it
        return hashlib.file_digest(file, "sha256").hexdigest()


def _digest(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def checkpoints_in(folder: Path) -> list[Path]:
    """Every `step_N`, whole or not, newest first."""
    return sorted(filter(_is_checkpoint, folder.glob("step_*")), key=step_of, reverse=True)


def _is_checkpoint(path: Path) -> bool:
    prefix, _, number = path.name.partition("_")
    return prefix == "step" and number.isdecimal()


def stopped(folder: Path) -> RunFailed:
    """What a run says that was told to stop; `folder` is where its checkpoints lie."""
    if checkpoints_in(folder):
        return RunFailed("stopped; go on from the last checkpoint with resume=true")
    return RunFailed("stopped before the first checkpoint; to start anew, give the command again")


def step_of(checkpoint: Path) -> int:
    """The N of `step_N`."""
    return int(checkpoint.name.removeprefix("step_"))


def _loudly(line: str) -> None:
    print(f"temper: {line}", file=sys.stderr)


def latest_checkpoint(folder: Path, say: Callable[[str], None] = _loudly) -> Path:
    """The checkpoint that `latest` names, checked file by file; if damaged, the one before it.

    Args:
        folder: the run's `checkpoints`.
        say: hears of every damaged one, and what is used in its place.

    Raises:
        BadInput: there is none that is whole, or `latest` points at something else.
    """
    damaged = []
    candidates = by_preference(folder)
    for checkpoint in candidates:
        try:
            verify(checkpoint)
        except BadInput as error:
            damaged.append(str(error))
            continue
        for each in damaged:
            say(each)
        if damaged:
            say(f"the checkpoint before it is whole and used in its place: {checkpoint}")
        return checkpoint
    if damaged:
        later = [p.name for p in checkpoints_in(folder) if p not in candidates]
        other = f", or point latest at what was given up ({', '.join(later)})" if later else ""
        raise BadInput(f"no checkpoint is whole, start the run anew{other}:\n" + "\n".join(damaged))
    raise BadInput(f"there is no checkpoint in {folder} yet; a run begins anew without resume=true")


def by_preference(folder: Path) -> list[Path]:
    """What `latest` names, then the older ones; later ones are a future that was given up.

    Raises:
        BadInput: `latest` points at something else.
    """
    found, link = checkpoints_in(folder), folder / "latest"
    if not link.is_symlink():
        return found
    target = os.readlink(link)
    named = folder / target
    if not _is_checkpoint(named):
        raise BadInput(
            f"{link} points at {target}, which is no step_N: point it at the checkpoint to go on "
            f"from (ln -sfn step_N {link}), or remove it to go on from the newest"
        )
    return [named, *(p for p in found if step_of(p) < step_of(named))]


def verify(checkpoint: Path) -> None:
    """Compare every file with the manifest.

    Raises:
        BadInput: naming the first file that is missing or differs.
    """
    try:
        manifest = json.loads((checkpoint / "manifest.json").read_text())
    except (OSError, ValueError) as error:
        raise BadInput(f"checkpoint {checkpoint} has no readable manifest.json: {error}") from error
    with ThreadPoolExecutor() as threads:
        checks = [
            threads.submit(_problem, checkpoint / name, wanted) for name, wanted in manifest.items()
        ]
        for name, check in zip(manifest, checks, strict=True):
            if (problem := check.result()) is not None:
                raise BadInput(f"checkpoint {checkpoint} is damaged: {name} {problem}")


def _problem(path: Path, wanted: Mapping[str, int | str]) -> str | None:
    try:
        if path.stat().st_size != wanted["bytes"] or _digest(path) != wanted["sha256"]:
            return "differs from its manifest"
    except FileNotFoundError:
        return "is missing"
    except OSError as error:
        return f"cannot be read: {error}"
    return None


def read_state(checkpoint: Path) -> RunState:
    """The driver's part of a verified checkpoint."""
    return TypeAdapter(RunState).validate_json((checkpoint / "state.json").read_bytes())
