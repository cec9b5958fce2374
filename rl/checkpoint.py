"""Save and resume a run: a checkpoint is whole or it does not exist.

checkpoints/step_20/manifest.json    size and SHA-256 of every other file, written last
                    state.json       what the driver needs to go on
                    model/           Hugging Face checkpoint, tokenizer included
                    learner.pt       optimiser and random state
checkpoints/latest -> step_20        moved last
"""

import hashlib
import json
import os
import shutil
from collections.abc import Awaitable, Callable
from dataclasses import asdict, dataclass, field
from pathlib import Path

from pydantic import TypeAdapter

from model.formats import CheckpointError
from rl.errors import BadInput, RunFailed
from rl.evaluate import PassRate
from rl.self_critique import CritiqueState


@dataclass(frozen=True, slots=True, kw_only=True)
class RunState:
    """Where the driver was. The task stream and every seed follow from `step`."""

    step: int  # steps trained, and the version of the weights
    rollout_tokens: int
    train_seconds: float
    eval_before: dict[str, PassRate]
    restarts: int
    critique: CritiqueState = field(default_factory=CritiqueState)


def _digest(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _files(folder: Path) -> list[Path]:
    return sorted(p for p in folder.rglob("*") if p.is_file() and p.name != "manifest.json")


def _write_json(path: Path, content: object) -> None:
    with path.open("w") as file:
        json.dump(content, file, indent=1)
        file.flush()
        os.fsync(file.fileno())


async def save_checkpoint(
    folder: Path,
    state: RunState,
    write: Callable[[Path], Awaitable[None]],
    *,
    keep: int,
) -> Path:
    """Write `folder/step_N` and move `latest` to it; older ones beyond `keep` go, step_0 stays.

    Args:
        folder: the run's `checkpoints`.
        state: the driver's own part.
        write: puts model and learner files into the folder it is given.
        keep: checkpoints to leave, the new one included.

    Raises:
        RunFailed: the disk refused (full, read-only). The previous checkpoint is untouched.
    """
    final = folder / f"step_{state.step}"
    partial = folder / f"step_{state.step}.partial"
    try:
        folder.mkdir(parents=True, exist_ok=True)
        shutil.rmtree(partial, ignore_errors=True)
        partial.mkdir()
        await write(partial)
        _write_json(partial / "state.json", asdict(state))
        manifest = {
            str(p.relative_to(partial)): {"bytes": p.stat().st_size, "sha256": _digest(p)}
            for p in _files(partial)
        }
        _write_json(partial / "manifest.json", manifest)
        if final.exists():
            shutil.rmtree(final)
        partial.rename(final)
        _point(folder / "latest", final.name)
    except (OSError, CheckpointError) as error:
        shutil.rmtree(partial, ignore_errors=True)
        raise RunFailed(
            f"cannot write checkpoint {final}: {error}. "
            f"Last whole checkpoint: {_latest_name(folder) or 'none'}. Free space, then resume=true"
        ) from error
    _prune(folder, keep)
    return final


def _point(link: Path, target: str) -> None:
    beside = link.with_name(link.name + ".partial")
    beside.unlink(missing_ok=True)
    beside.symlink_to(target)
    beside.replace(link)


def _latest_name(folder: Path) -> str | None:
    link = folder / "latest"
    return os.readlink(link) if link.is_symlink() else None


def _prune(folder: Path, keep: int) -> None:
    """Remove old checkpoints, except step_0: what RL started from stays for comparison."""
    whole = [p for p in folder.glob("step_*") if p.suffix != ".partial" and p.name != "step_0"]
    for old in sorted(whole, key=lambda p: int(p.name.removeprefix("step_")))[:-keep]:
        shutil.rmtree(old)


def latest_checkpoint(folder: Path) -> Path:
    """The checkpoint that `latest` names, checked file by file.

    Raises:
        BadInput: there is none, or a file is missing or differs from the manifest.
    """
    name = _latest_name(folder)
    if name is None:
        raise BadInput(f"no checkpoint to resume in {folder}: start the run without resume=true")
    checkpoint = folder / name
    verify(checkpoint)
    return checkpoint


def verify(checkpoint: Path) -> None:
    """Compare every file with the manifest.

    Raises:
        BadInput: naming the first file that is missing or differs.
    """
    try:
        manifest = json.loads((checkpoint / "manifest.json").read_text())
    except (OSError, json.JSONDecodeError) as error:
        raise BadInput(f"checkpoint {checkpoint} has no readable manifest.json: {error}") from error
    for name, wanted in manifest.items():
        path = checkpoint / name
        if not path.is_file():
            raise BadInput(f"checkpoint {checkpoint} is damaged: {name} is missing")
        if path.stat().st_size != wanted["bytes"] or _digest(path) != wanted["sha256"]:
            raise BadInput(
                f"checkpoint {checkpoint} is damaged: {name} differs from its manifest; "
                f"point {checkpoint.parent / 'latest'} at another step_N, or start anew"
            )


def read_state(checkpoint: Path) -> RunState:
    """The driver's part of a verified checkpoint."""
    return TypeAdapter(RunState).validate_json((checkpoint / "state.json").read_bytes())
