"""An engine's own copy of the weights, brought from version to version by what changed.

`model/send_changes.py` tells how changes are stored. Two sets of files in shared memory take turns,
so that the version before is whole while the next is made: changes that do not give exactly the
announced bytes leave nothing behind.
"""

import logging
import mmap
import os
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray

from rollout.receive_folder import PrivateFolder
from rollout.receive_segments import (
    Announced,
    Mappings,
    Refused,
    Update,
    announced,
    check_contents,
    read_update,
    verify,
)

SHARED_MEMORY = Path("/dev/shm")
CHUNK = 1 << 16  # words
POSITIONS, BITS, WHOLE = 1, 2, 3
Bytes = NDArray[np.uint8]

log = logging.getLogger(__name__)


class HeldCopy:
    """The last version's files, and those of the one before."""

    def __init__(self, root: Path = SHARED_MEMORY) -> None:
        """Make a private folder, which others remove once this process is gone."""
        self._folder = PrivateFolder(root)
        self._mappings = Mappings()
        self._writable: dict[str, Bytes] = {}
        self._version: int | None = None
        self._files: list[str] = []
        self._spare: list[str] = []
        self._made = 0
        self.taken_whole = 0  # versions
        self.taken_changed = 0

    def take(self, update: Update) -> Announced:
        """The update in files of this engine's own, verified.

        It is made of its changes where this copy holds their base. A copy that missed a version,
        or is not what it should be, takes the whole update, and says so. Raises Refused, naming
        file and tensor, if that is not what was announced either, OSError if shared memory is full;
        what is held stays whole then.
        """
        if self._holds(update):  # its first load failed
            return announced(update, self._files)
        try:
            files = self._changed(update)
            if files is None:
                files = self._copy(update)
                self.taken_whole += 1
            else:
                self.taken_changed += 1
            self._spare, self._files, self._version = self._files, files, update.version
        finally:
            kept = [*self._files, *self._spare]
            for file in set(self._writable) - set(kept):
                self._remove(file)
            self._mappings.keep([*kept, *update.files])
        return announced(update, files)

    def close(self) -> None:
        """Remove the files. May be called twice."""
        self._folder.close()

    def _holds(self, update: Update) -> bool:
        """Whether exactly this is the last version: the one before must not be written over."""
        if update.version != self._version:
            return False
        try:
            verify(announced(update, self._files), self._mappings)
        except Refused:
            return False
        return True

    def _changed(self, update: Update) -> list[str] | None:
        """The files made of changes; None if there are none, or they cannot be used."""
        changes = update.changes
        if changes is None or changes.base is None or not self._files:
            return None
        try:
            return self._change(update, changes.base, changes.files)
        except (Refused, OSError, ValueError, IndexError, KeyError) as error:
            log.warning("version %d is taken whole: %s", update.version, error)
            return None

    def _copy(self, update: Update) -> list[str]:
        read_update(announced(update), self._mappings)
        files = []
        for position, source in enumerate(update.files):
            data = self._mappings.bytes_of(source).numpy()
            file = self._target(position, len(data))
            np.copyto(self._writable[file], data)
            files.append(file)
        verify(announced(update, files), self._mappings)
        return files

    def _change(self, update: Update, base: int, sources: list[str]) -> list[str]:
        if (base, len(sources)) != (self._version, len(self._files)):
            raise Refused(f"version {self._version} is held, the changes are of version {base}")
        files = []
        for position, (source, mine) in enumerate(zip(sources, self._files, strict=True)):
            found = self._mappings.read(source)
            check_contents(source, found.tensors, found.digests)
            old, header = self._writable[mine], found.tensors["header"].numpy()
            body = old[8 + int.from_bytes(old[:8].tobytes(), "little") :]
            file = self._target(position, len(header) + len(body))
            new = self._writable[file]
            np.copyto(new[: len(header)], header)
            apply_changes(body, new[len(header) :], found.tensors)
            files.append(file)
        verify(announced(update, files), self._mappings)
        return files

    def _target(self, position: int, num_bytes: int) -> str:
        """A file of that size to write into: the spare one if it fits, else a new one."""
        if position < len(self._spare):
            file = self._spare[position]
            if len(self._writable[file]) == num_bytes:
                return file
        path = self._folder.path / f"{self._made:05d}.safetensors"
        self._made += 1
        with path.open("x+b") as handle:
            os.posix_fallocate(handle.fileno(), 0, num_bytes)
            mapped = mmap.mmap(handle.fileno(), num_bytes)
        self._writable[str(path)] = np.frombuffer(mapped, np.uint8)
        return str(path)

    def _remove(self, file: str) -> None:
        Path(file).unlink(missing_ok=True)
        del self._writable[file]


def apply_changes(old: Bytes, new: Bytes, found: Mapping[str, torch.Tensor]) -> None:
    """Write into `new` what the changes `found` make of `old` [bytes]; both of one length.

    Raises ValueError or IndexError if they are not changes of as many bytes.
    """
    np.copyto(new, old)
    even = len(new) // 2 * 2
    words = new[:even].view(np.uint16)
    new[even:] = found["tail"].numpy()
    kinds, counts = found["kinds"].tolist(), found["counts"].tolist()
    positions, bits = found["positions"].numpy(), found["bits"].numpy()
    values = found["values"].numpy()
    position = bit = value = 0
    for start, kind, count in zip(range(0, len(words), CHUNK), kinds, counts, strict=True):
        if not kind:
            continue
        chunk, taken = words[start : start + CHUNK], values[value : value + count]
        value += count
        if kind == WHOLE:
            chunk[:] = taken
        elif kind == POSITIONS:
            chunk[positions[position : position + count]] = taken
            position += count
        elif kind == BITS:
            width = (len(chunk) + 7) // 8
            chunk[np.unpackbits(bits[bit : bit + width], count=len(chunk)).view(bool)] = taken
            bit += width
        else:
            raise ValueError(f"unknown kind of changes {kind}")
