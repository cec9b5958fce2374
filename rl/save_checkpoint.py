"""Writes the checkpoints of a run beside its steps: whole and on the disk, or not there at all.

The learner waits only while its shards copy what they will write. Files, digests, manifest and the
move into place are made while the loop goes on:

    learner | step 20 | copies | step 21      | step 22      | step 23
    shards  |                  | write files |
    driver  |                                | digests, sync, rename |

A disk that refuses does not end a run, whose weights are nowhere else: it is told of, the
checkpoint before stays, and every step tries again. Only the end waits, and then fails.
"""

import asyncio
import contextlib
import json
import os
import shutil
import threading
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import asdict
from pathlib import Path

from model.formats import CheckpointError
from model.shards import merge_index
from model.snapshot import Writing
from rl.checkpoint import RunState, checkpoints_in, manifest_of, step_of
from rl.errors import PartLost, RunFailed
from rl.part import Part
from rl.remote import together

RETRY_S = 10.0  # at the end, for a person who frees space
TRIES = 60
FIRST_LOOK_S, LONGEST_LOOK_S = 0.02, 1.0  # between questions whether files are there
CLOSE_S = 60.0  # beyond it a checkpoint that is being written is given up

Written = Callable[[], Awaitable[None]]
"""Waits until all files are there, or none is written any more; then raises OSError or
CheckpointError."""
WriteFiles = Callable[[Path], Awaitable[Written]]
"""Begins to put model and learner files into the folder it is given: on return the learner may
change its weights. Raises OSError or CheckpointError."""


class Checkpoints:
    """The checkpoints of one run; at most one is being written."""

    def __init__(
        self,
        folder: Path,
        say: Callable[[str], None],
        *,
        keep: int,
        whole: Path | None = None,
    ) -> None:
        """Write below `folder`.

        Args:
            folder: the run's `checkpoints`.
            say: hears of a disk that refuses.
            keep: checkpoints to leave, the newest included; `step_0` stays beside them.
            whole: the one that the run goes on from.
        """
        self._folder = folder
        self._say = say
        self._keep = keep
        self._whole = whole
        self._finishing: asyncio.Task[None] | None = None
        self._placing = threading.Lock()  # a thread goes on when the task that waits is cancelled
        self._given_up = False
        self.behind = False
        """The last one could not be written: try again at the next step."""

    async def save(self, state: RunState, write: WriteFiles) -> None:
        """Begin `step_N`, after the one before; on return the learner may change its weights."""
        await self.settle()
        partial = self._folder / f"step_{state.step}.partial"
        try:
            self._make_way(self._folder / "latest")
            await asyncio.to_thread(self._begin, partial)
            written = await write(partial)
        except (OSError, CheckpointError) as error:
            self._refused(state, partial, error)
            return
        self._finishing = asyncio.create_task(self._finish(state, partial, written))

    async def settle(self) -> None:
        """Wait for the one that is being written; whoever is cancelled meanwhile may wait again."""
        while (finishing := self._finishing) is not None:
            try:
                await asyncio.shield(finishing)
            finally:
                if finishing.done() and self._finishing is finishing:
                    self._finishing = None

    async def close(self) -> None:
        """Wait for the one that is being written, if whoever writes it is there; not for long.

        On return it is the latest, or never will be: what comes next goes on from another.
        """
        if self._finishing is None:
            return
        try:
            with contextlib.suppress(PartLost):
                await asyncio.wait_for(self._finishing, CLOSE_S)
        except TimeoutError:
            await asyncio.to_thread(self._give_up)

    def _give_up(self) -> None:
        with self._placing:
            self._given_up = True

    async def complete(self, state: RunState, write: WriteFiles) -> Path:
        """The checkpoint of `state`, whole; written now if it could not be before.

        Raises:
            RunFailed: the disk has refused `TRIES` times.
        """
        await self.settle()
        final = self._folder / f"step_{state.step}"
        for left in reversed(range(TRIES)):
            if self._whole == final:
                return final
            await self.save(state, write)
            await self.settle()
            if self.behind and left:
                self._say(f"nothing comes after it: tried again in {RETRY_S:g} s, {left} times")
                await asyncio.sleep(RETRY_S)
        if self._whole == final:
            return final
        raise RunFailed(
            f"cannot write checkpoint {final}: see above. Last whole checkpoint: "
            f"{self._whole or 'none'}. Free space, then resume=true"
        )

    async def _finish(self, state: RunState, partial: Path, written: Written) -> None:
        try:
            await written()
            self._whole = await asyncio.to_thread(self._put, state, partial)
            self.behind = False
        except (OSError, CheckpointError) as error:
            self._refused(state, partial, error)

    def _refused(self, state: RunState, partial: Path, error: Exception) -> None:
        self.behind = True
        shutil.rmtree(partial, ignore_errors=True)
        self._say(
            f"WARNING: cannot write checkpoint step_{state.step}: {error}. The run goes on and "
            f"tries again; a kill now loses what came after {self._whole or 'the start'}"
        )

    def _make_way(self, latest: Path) -> None:
        """A folder in the place of the link, as some copies of a run have, is moved aside."""
        if latest.is_symlink() or not latest.is_dir():
            return
        number = 1
        while (aside := latest.with_name(f"{latest.name}.{number}")).exists():
            number += 1
        latest.rename(aside)
        self._say(
            f"WARNING: {latest} was a folder, and is to be a link to a checkpoint: moved to "
            f"{aside}, which no run reads. Remove it if you need nothing in it"
        )

    def _begin(self, partial: Path) -> None:
        """An empty folder; what killed runs have begun goes."""
        self._folder.mkdir(parents=True, exist_ok=True)
        for begun in self._folder.glob("step_*.partial"):
            shutil.rmtree(begun)
        partial.mkdir()

    def _put(self, state: RunState, partial: Path) -> Path:
        """Make what is in `partial` the latest checkpoint, unless it was given up meanwhile."""
        final, replaced = partial.with_suffix(""), partial.with_suffix(".replaced")
        write_json(partial / "state.json", asdict(state))
        manifest = manifest_of(partial)
        with self._placing:
            if self._given_up:
                raise CheckpointError(f"checkpoint {final} was given up")
            write_json(partial / "manifest.json", manifest)
            for folder in (p for p in partial.rglob("*") if p.is_dir()):
                _sync(folder)
            _sync(partial)
            if final.exists():
                shutil.rmtree(replaced, ignore_errors=True)  # a kill has left it
                final.rename(replaced)
            partial.rename(final)
            _point(self._folder / "latest", final.name)
            _sync(self._folder)
        shutil.rmtree(replaced, ignore_errors=True)
        self._prune(state.step)
        return final

    def _prune(self, step: int) -> None:
        """Remove old checkpoints, except step_0: what RL started from stays for comparison.

        Those of later steps are a future that was given up, and wait to be replaced; those that the
        run has passed since its last one never will be.
        """
        for each in checkpoints_in(self._folder):
            if self._whole is not None and step_of(self._whole) < step_of(each) < step:
                shutil.rmtree(each, ignore_errors=True)
        older = [p for p in checkpoints_in(self._folder) if 0 < step_of(p) <= step]
        for old in older[self._keep :]:
            shutil.rmtree(old, ignore_errors=True)


async def shards_written(shards: Sequence[Part], folder: Path) -> None:
    """Wait until the learner's shards have written their files, and make one model of them.

    They are asked between their steps, and meet for nothing here: all have ended when the error of
    one is raised, so that none writes into a folder that is removed.

    Raises:
        OSError, CheckpointError: a shard could not write its files.
        PartLost: a shard has ended.
    """
    look = FIRST_LOOK_S
    while True:
        found: list[Writing] = await together(shards, [each.call("written") for each in shards])
        if all(each.done for each in found):
            break
        await asyncio.sleep(look)
        look = min(2 * look, LONGEST_LOOK_S)
    for each in found:
        if each.error is not None:
            raise each.error
    await asyncio.to_thread(merge_index, folder / "model", len(shards))


async def save_checkpoint(folder: Path, state: RunState, write: WriteFiles, *, keep: int) -> Path:
    """One checkpoint, whole on return.

    Raises:
        RunFailed: the disk refused. Those before are untouched.
    """
    said: list[str] = []
    checkpoints = Checkpoints(folder, said.append, keep=keep)
    await checkpoints.save(state, write)
    await checkpoints.settle()
    if checkpoints.behind:
        raise RunFailed(said[-1])
    return folder / f"step_{state.step}"


def write_json(path: Path, content: object) -> None:
    """Write, down to the disk."""
    with path.open("w") as file:
        json.dump(content, file, indent=1)
        file.flush()
        os.fsync(file.fileno())


def _point(link: Path, target: str) -> None:
    beside = link.with_name(link.name + ".partial")
    beside.unlink(missing_ok=True)
    beside.symlink_to(target)
    beside.replace(link)


def _sync(folder: Path) -> None:
    """Bring names, made and moved, to the disk."""
    number = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(number)
    finally:
        os.close(number)
