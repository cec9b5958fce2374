"""The files of a weight update on this host: mapped, and verified before anything uses them.

An update is a list of safetensors files (`model/send_weights.py` writes them). Their metadata
carries `version` and `digests`, a JSON object of one xxh3-128 per tensor; the announced digest
covers them all. Mappings are kept: a sender writes the same files again for later versions, and
making a mapping costs more than reading through one that is there.
"""

import json
import os
from collections import deque
from collections.abc import Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import torch
import xxhash

REFUSED = "weight update refused:"  # errors cross the process border as text
VERIFY_THREADS = max(1, min(8, (os.cpu_count() or 1) // 4))  # a file each; others compute, too
BLOCK = 1 << 24  # bytes hashed at a time; the interpreter is free meanwhile
DTYPES = {
    "F64": torch.float64,
    "F32": torch.float32,
    "BF16": torch.bfloat16,
    "F16": torch.float16,
    "F8_E4M3": torch.float8_e4m3fn,
    "I64": torch.int64,
    "I32": torch.int32,
    "I16": torch.int16,
    "I8": torch.int8,
    "U16": torch.uint16,
    "U8": torch.uint8,
    "BOOL": torch.bool,
}


class Refused(ValueError):
    """The update cannot be taken; the engine computes with the weights that it had."""

    def __init__(self, reason: str) -> None:
        """Mark the reason for the other side of the process border."""
        super().__init__(f"{REFUSED} {reason}")


class Changes(Protocol):
    """The way to a version from the one before it (`model.send_weights.Changes` is one)."""

    @property
    def base(self) -> int | None: ...

    @property
    def files(self) -> list[str]: ...


class Update(Protocol):
    """What a sender tells of new weights (`model.send_weights.WeightUpdate` is one)."""

    @property
    def version(self) -> int: ...

    @property
    def files(self) -> list[str]: ...

    @property
    def num_bytes(self) -> int: ...

    @property
    def digest(self) -> str: ...

    @property
    def digests(self) -> dict[str, str]: ...

    @property
    def changes(self) -> Changes | None: ...


class PlacedUpdate(Update, Protocol):
    """The same for an engine whose ranks may live on several hosts."""

    @property
    def by_rank(self) -> list[list[str]]: ...


@dataclass(frozen=True, slots=True, kw_only=True)
class Announced:
    """What the core process is told of an update."""

    version: int
    files: Sequence[str]
    digest: str


def announced(update: Update, files: Sequence[str] | None = None) -> Announced:
    """What the core process is told of `update`, in its own files or in others that hold it."""
    return Announced(version=update.version, files=files or update.files, digest=update.digest)


@dataclass(frozen=True, slots=True, kw_only=True)
class Contents:
    """One file, read through a mapping."""

    version: str
    digests: dict[str, str]
    tensors: dict[str, torch.Tensor]


class Mappings:
    """Files that stay mapped from update to update."""

    def __init__(self) -> None:
        """Map nothing yet."""
        self._maps: dict[str, tuple[tuple[int, int], torch.Tensor]] = {}

    def bytes_of(self, file: str) -> torch.Tensor:
        """The bytes of a file. Raises OSError."""
        identity = _identity(file)
        known = self._maps.get(file)
        if known is None or known[0] != identity:
            mapped = torch.from_file(file, shared=False, size=identity[1], dtype=torch.uint8)
            known = self._maps[file] = (identity, mapped)
        return known[1]

    def read(self, file: str, *, again: bool = False) -> Contents:
        """A file's tensors, not copied. Raises Refused if it is none of ours, or only half written.

        The tensors change when the file is written again. `again`: as it is mapped already,
        whatever has become of its name.
        """
        try:
            return contents(self._maps[file][1] if again else self.bytes_of(file))
        except (OSError, RuntimeError, ValueError, KeyError, TypeError) as error:
            raise Refused(f"{file} cannot be read: {error}") from error

    def keep(self, files: Iterable[str]) -> None:
        """Let go of all other files."""
        wanted = set(files)
        self._maps = {file: known for file, known in self._maps.items() if file in wanted}

    def trim(self) -> None:
        """Let go of files that are removed: what is mapped of them takes memory still."""
        self._maps = {file: known for file, known in self._maps.items() if _is(file, known[0])}


def _identity(file: str) -> tuple[int, int]:
    status = Path(file).stat()
    return status.st_ino, status.st_size


def _is(file: str, identity: tuple[int, int]) -> bool:
    try:
        return _identity(file) == identity
    except OSError:
        return False


def contents(data: torch.Tensor) -> Contents:
    """What a safetensors file [bytes] holds.

    Raises ValueError, KeyError or TypeError if it is no such file.
    """
    raw = data.numpy()
    length = int.from_bytes(raw[:8].tobytes(), "little")
    if not 0 < length <= len(raw) - 8:
        raise ValueError("it is not whole")
    header: dict[str, Any] = json.loads(raw[8 : 8 + length].tobytes())
    metadata = header.pop("__metadata__")
    body = data[8 + length :]
    tensors: dict[str, torch.Tensor] = {}
    for name, entry in header.items():
        begin, end = entry["data_offsets"]
        if not 0 <= begin <= end <= len(body):
            raise ValueError(f"{name} lies outside of it")
        tensors[name] = body[begin:end].view(DTYPES[entry["dtype"]]).view(entry["shape"])
    return Contents(
        version=metadata["version"], digests=json.loads(metadata["digests"]), tensors=tensors
    )


def read_update(
    update: Announced, mappings: Mappings, *, again: bool = False
) -> dict[str, torch.Tensor]:
    """The update's tensors, mapped from its files, in their order; their bytes are not looked at.

    `again`: from what is mapped already (`Mappings.read`).

    Raises Refused, naming the file, unless versions, names and digests are those announced.
    """
    tensors: dict[str, torch.Tensor] = {}
    for found in read_files(update, mappings, again=again):
        tensors |= found.tensors
    return tensors


def verify(update: Announced, mappings: Mappings, *, again: bool = False) -> None:
    """Raise Refused, naming file and tensor, unless every byte is the one announced.

    `again`: from what is mapped already (`Mappings.read`).
    """
    found = read_files(update, mappings, again=again)

    def check(file: str, contents: Contents) -> None:
        check_contents(file, contents.tensors, contents.digests)

    with ThreadPoolExecutor(VERIFY_THREADS, thread_name_prefix="verify") as threads:
        deque(threads.map(check, update.files, found), maxlen=0)


def read_files(update: Announced, mappings: Mappings, *, again: bool = False) -> list[Contents]:
    """What the update's files say they hold. Raises Refused unless that is what was announced."""
    files: list[Contents] = []
    digests: dict[str, str] = {}
    for file in update.files:
        found = mappings.read(file, again=again)
        if found.version != str(update.version):
            raise Refused(f"{file} holds version {found.version}, not {update.version}")
        if found.tensors.keys() != found.digests.keys():
            raise Refused(f"{file} has not one digest for each tensor")
        files.append(found)
        digests |= found.digests
    if update_digest(update.version, digests) != update.digest:
        raise Refused(f"the files are not those announced for version {update.version}")
    return files


def check_contents(
    file: str, tensors: Mapping[str, torch.Tensor], digests: Mapping[str, str]
) -> None:
    """Raise Refused, naming file and tensor, if a tensor is not what its digest says."""
    for name, tensor in tensors.items():
        if tensor_digest(name, tensor) != digests.get(name):
            raise Refused(f"{file}: the content of {name} does not match its digest")


def check_complete(
    tensors: Mapping[str, torch.Tensor], shapes: Mapping[str, Sequence[int]]
) -> None:
    """Refuse an update that would leave some old weights in place."""
    if wrong := sorted(tensors.keys() ^ shapes.keys()):
        kind = "missing" if wrong[0] in shapes else "unknown"
        raise Refused(f"{kind} tensor {wrong[0]} ({len(wrong)} names differ)")
    check_known(tensors, shapes)


def check_known(tensors: Mapping[str, torch.Tensor], shapes: Mapping[str, Sequence[int]]) -> None:
    """Refuse tensors that are not those of the checkpoint."""
    for name, tensor in tensors.items():
        if name not in shapes:
            raise Refused(f"unknown tensor {name}")
        if list(tensor.shape) != list(shapes[name]):
            raise Refused(f"{name} has shape {list(tensor.shape)}, not {list(shapes[name])}")


def tensor_digest(name: str, tensor: torch.Tensor) -> str:
    """xxh3-128 over name, dtype, shape and bytes; the same as in `model/send_weights.py`."""
    digest = xxhash.xxh3_128(f"{name} {tensor.dtype} {list(tensor.shape)}".encode())
    data = tensor.contiguous().reshape(-1).view(torch.uint8).numpy()
    for start in range(0, len(data), BLOCK):
        digest.update(data[start : start + BLOCK].data)
    return digest.hexdigest()


def update_digest(version: int, digests: Mapping[str, str]) -> str:
    """One digest over a whole update; the same as in `model/send_weights.py`."""
    return xxhash.xxh3_128(json.dumps([version, sorted(digests.items())]).encode()).hexdigest()
