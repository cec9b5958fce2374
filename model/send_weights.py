"""The sending end of weight updates: named tensors into bucket files that engines on this host map.

A bucket is a safetensors file in a private folder in shared memory. Its metadata carries
`version` and `digests`, a JSON object of one xxh3-128 per tensor (`rollout/receive_weights.py`
verifies them).
"""

import json
import os
import re
import secrets
import shutil
import tempfile
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
import xxhash
from safetensors.torch import save_file
from torch import Tensor

SHARED_MEMORY = Path("/dev/shm")
FOLDER = re.compile(r"temper-(?P<pid>\d+)-[0-9a-f]{16}")


@dataclass(frozen=True, slots=True, kw_only=True)
class WeightUpdate:
    """What an engine is told of one published version."""

    version: int
    files: list[str]  # in load order
    digests: dict[str, str]  # of every tensor
    num_bytes: int

    @property
    def digest(self) -> str:
        """Over version, names and content of all tensors."""
        return update_digest(self.version, self.digests)


def merged(updates: Sequence[WeightUpdate]) -> WeightUpdate:
    """One update of what several senders have published of the same version.

    Raises ValueError if versions differ or two senders publish the same tensor.
    """
    digests: dict[str, str] = {}
    for update in updates:
        if update.version != updates[0].version:
            raise ValueError(f"versions {updates[0].version} and {update.version} in one update")
        if twice := update.digests.keys() & digests.keys():
            raise ValueError(f"tensor {min(twice)} is published by two senders")
        digests |= update.digests
    return WeightUpdate(
        version=updates[0].version,
        files=[file for update in updates for file in update.files],
        digests=digests,
        num_bytes=sum(update.num_bytes for update in updates),
    )


class WeightSender:
    """Publishes versions of the weights; a version's files stay until it is released."""

    def __init__(self, *, bucket_bytes: int = 1 << 28, root: Path = SHARED_MEMORY) -> None:
        """Make the private folder and remove those of processes that are gone.

        Raises ValueError if `bucket_bytes` is not positive.
        """
        if bucket_bytes < 1:
            raise ValueError(f"bucket_bytes must be at least 1, got {bucket_bytes}")
        self._bucket_bytes = bucket_bytes
        root = root if root.is_dir() else Path(tempfile.gettempdir())
        remove_dead_folders(root)
        self._folder = root / f"temper-{os.getpid()}-{secrets.token_hex(8)}"
        self._folder.mkdir(mode=0o700)

    def publish(self, tensors: Iterable[tuple[str, Tensor]], version: int) -> WeightUpdate:
        """Write named full tensors (checkpoint names and shapes) as `version`.

        Tensors are taken one at a time; at most one bucket of them is held in memory. A tensor
        larger than a bucket gets one of its own. Raises ValueError for a name that comes twice
        or a version that is already published, OSError when shared memory is full.
        """
        folder = self._folder / str(version)
        try:
            folder.mkdir()
        except FileExistsError:
            raise ValueError(f"version {version} is already published") from None
        try:
            return self._write(folder, tensors, version)
        except BaseException:
            shutil.rmtree(folder)
            raise

    def _write(
        self, folder: Path, tensors: Iterable[tuple[str, Tensor]], version: int
    ) -> WeightUpdate:
        files: list[str] = []
        digests: dict[str, str] = {}
        total = 0
        for bucket in buckets(tensors, self._bucket_bytes):
            if twice := bucket.keys() & digests.keys():
                raise ValueError(f"tensor {min(twice)} comes twice")
            found = {name: tensor_digest(name, tensor) for name, tensor in bucket.items()}
            file = folder / f"{len(files):05d}.safetensors"
            save_file(bucket, file, {"version": str(version), "digests": json.dumps(found)})
            files.append(str(file))
            digests |= found
            total += sum(tensor.nbytes for tensor in bucket.values())
        return WeightUpdate(
            version=version,
            files=files,
            digests=digests,
            num_bytes=total,
        )

    def release(self, version: int) -> None:
        """Remove the files of `version`. Raises ValueError if it is not published."""
        folder = self._folder / str(version)
        if not folder.is_dir():
            raise ValueError(f"version {version} is not published")
        shutil.rmtree(folder)

    def close(self) -> None:
        """Remove everything. May be called twice."""
        shutil.rmtree(self._folder, ignore_errors=True)


def buckets(
    tensors: Iterable[tuple[str, Tensor]], bucket_bytes: int
) -> Iterable[dict[str, Tensor]]:
    """Group tensors in their order into dicts of at most `bucket_bytes`, on CPU and contiguous.

    Raises ValueError for a name that comes twice in one bucket.
    """
    bucket: dict[str, Tensor] = {}
    filled = 0
    for name, tensor in tensors:
        if name in bucket:
            raise ValueError(f"tensor {name} comes twice")
        if bucket and filled + tensor.nbytes > bucket_bytes:
            yield bucket
            bucket, filled = {}, 0
        bucket[name] = tensor.detach().to("cpu").contiguous()
        filled += tensor.nbytes
    if bucket:
        yield bucket


def tensor_digest(name: str, tensor: Tensor) -> str:
    """xxh3-128 over name, dtype, shape and bytes; the same as in `rollout/receive_weights.py`."""
    digest = xxhash.xxh3_128(f"{name} {tensor.dtype} {list(tensor.shape)}".encode())
    digest.update(tensor.contiguous().reshape(-1).view(torch.uint8).numpy().data)
    return digest.hexdigest()


def update_digest(version: int, digests: dict[str, str]) -> str:
    """One digest over a whole update; the same as in `rollout/receive_weights.py`."""
    return xxhash.xxh3_128(json.dumps([version, sorted(digests.items())]).encode()).hexdigest()


def remove_dead_folders(root: Path) -> None:
    """Remove the folders of senders whose process has ended without closing."""
    for folder in root.iterdir():
        match = FOLDER.fullmatch(folder.name)
        if match and not Path("/proc", match["pid"]).exists():
            shutil.rmtree(folder, ignore_errors=True)
