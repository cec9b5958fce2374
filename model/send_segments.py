"""Files of tensors in shared memory, in the safetensors format, written into pages that stay.

New pages of shared memory cost ten times what a copy into old ones does, so a file is kept mapped
and written again for a later version. Its first eight bytes, the length of the header, are zero
while it is being written: a reader finds either a whole version or none.
"""

import json
import mmap
import os
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
import xxhash
from numpy.typing import NDArray
from torch import Tensor

BLOCK = 1 << 19  # bytes: hashed while they are still in the cache of the core that copied them
HEADER_STEP = 4096  # data begins at a multiple of it
DIGEST = "0" * 32
NAMES = {
    torch.float64: "F64",
    torch.float32: "F32",
    torch.bfloat16: "BF16",
    torch.float16: "F16",
    torch.float8_e4m3fn: "F8_E4M3",
    torch.int64: "I64",
    torch.int32: "I32",
    torch.int16: "I16",
    torch.int8: "I8",
    torch.uint16: "U16",
    torch.uint8: "U8",
    torch.bool: "BOOL",
}
Bytes = NDArray[np.uint8]


@dataclass(frozen=True, slots=True, kw_only=True)
class Place:
    """One tensor of a file."""

    dtype: str  # safetensors' name
    shape: tuple[int, ...]
    begin: int  # bytes, from the first tensor's first byte
    end: int


class Segment:
    """One file, mapped as long as this lives."""

    def __init__(self, file: Path, num_bytes: int) -> None:
        """Make the file. Raises OSError if shared memory is full."""
        self.file = file
        with file.open("x+b") as handle:
            try:
                # Pages that are not there when they are written to end the process, not the call.
                os.posix_fallocate(handle.fileno(), 0, num_bytes)
                self._map = mmap.mmap(handle.fileno(), num_bytes)
            except BaseException:
                file.unlink()
                raise
        self.bytes: Bytes = np.frombuffer(self._map, np.uint8)
        self.places: dict[str, Place] = {}

    @property
    def data(self) -> Bytes:
        """The bytes of its tensors, one after another."""
        return self.bytes[len(self.bytes) - end_of(self.places) :]

    @property
    def header(self) -> Bytes:
        """What comes before them."""
        return self.bytes[: len(self.bytes) - end_of(self.places)]

    def write(
        self, bucket: Mapping[str, Tensor], places: dict[str, Place], version: int
    ) -> dict[str, str]:
        """Put `bucket` in place of what was there; returns the digest of every tensor."""
        self.bytes[:8] = 0
        self.places = places
        data, digests = self.data, {}
        for name, place in places.items():
            tensor = bucket[name]
            digest = started_digest(name, tensor)
            source = bytes_of(tensor)
            target = data[place.begin : place.end]
            for start in range(0, len(source), BLOCK):
                block = target[start : start + BLOCK]
                np.copyto(block, source[start : start + BLOCK])
                digest.update(block.data)
            digests[name] = digest.hexdigest()
        header = header_of(places, version, digests)
        self.bytes[8 : 8 + len(header)] = np.frombuffer(header, np.uint8)
        self.bytes[:8] = np.frombuffer(len(header).to_bytes(8, "little"), np.uint8)
        return digests

    def remove(self) -> None:
        """Remove the file; whoever has it mapped can still read it. May be called twice."""
        self.file.unlink(missing_ok=True)


def places_of(bucket: Mapping[str, Tensor]) -> dict[str, Place]:
    """Where each tensor lies: wide elements first, so that all are aligned; else in order.

    Raises ValueError for a type of numbers that the format does not know.
    """
    places: dict[str, Place] = {}
    begin = 0
    for name, tensor in sorted(bucket.items(), key=lambda item: -item[1].itemsize):
        if tensor.dtype not in NAMES:
            raise ValueError(f"tensor {name} is {tensor.dtype}, which cannot be sent")
        end = begin + tensor.nbytes
        places[name] = Place(
            dtype=NAMES[tensor.dtype], shape=tuple(tensor.shape), begin=begin, end=end
        )
        begin = end
    return places


def end_of(places: Mapping[str, Place]) -> int:
    """Bytes of all tensors."""
    return max((place.end for place in places.values()), default=0)


def file_bytes(places: Mapping[str, Place], version: int) -> int:
    """The size of a file of these tensors."""
    header = header_of(places, version, dict.fromkeys(places, DIGEST))
    return 8 + len(header) + end_of(places)


def header_of(places: Mapping[str, Place], version: int, digests: Mapping[str, str]) -> bytes:
    """The JSON between length and data; spaces bring the data to a multiple of `HEADER_STEP`."""
    entries: dict[str, Any] = {
        "__metadata__": {"version": str(version), "digests": json.dumps(dict(digests))}
    }
    for name, place in places.items():
        entries[name] = {
            "dtype": place.dtype,
            "shape": place.shape,
            "data_offsets": [place.begin, place.end],
        }
    header = json.dumps(entries, separators=(",", ":")).encode()
    return header + b" " * (-(8 + len(header)) % HEADER_STEP)


def bytes_of(tensor: Tensor) -> Bytes:
    """The bytes of a contiguous tensor on CPU, not copied."""
    if tensor.numel() == 0:
        return np.empty(0, np.uint8)
    view: Bytes = tensor.reshape(-1).view(torch.uint8).numpy()
    return view


def started_digest(name: str, tensor: Tensor) -> xxhash.xxh3_128:
    """A digest that waits for the tensor's bytes."""
    return xxhash.xxh3_128(f"{name} {tensor.dtype} {list(tensor.shape)}".encode())


assert sys.byteorder == "little"  # the format's byte order, and that of shared memory
