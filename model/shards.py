"""Safetensors files of a checkpoint folder, tensor by tensor: a process reads and writes its share.

Several processes write one folder together: each calls `write_shards` with its own `part`; when all
are done, one calls `merge_index`.
"""

import json
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import groupby
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from kernels import fp8, int4
from model.formats import CheckpointError, Quantised, stored_quantisation

INDEX = "model.safetensors.index.json"
SINGLE = "model.safetensors"
# Written by some converters; follows from the config.
DERIVED = ".rotary_emb.inv_freq"
PLAIN = ("BF16", "F32", "F16", "F64")
# What may follow a tensor's name.
ENDINGS = {
    None: ("",),
    Quantised.fp8: ("", "_scale_inv"),
    Quantised.int4: ("", "_packed", "_scale", "_shape"),
}


@dataclass(frozen=True, slots=True)
class Header:
    """What a file says of one tensor."""

    file: Path
    shape: list[int]
    dtype: str  # as safetensors writes it: BF16, F8_E4M3, I32


@dataclass(frozen=True, slots=True)
class Part:
    """A tensor as it must be stored."""

    name: str
    shape: list[int]
    dtypes: tuple[str, ...]  # any of these


class Checkpoint:
    """A checkpoint folder that holds a network; any share of its tensors can be read, at any time.

    Names, shapes and precisions of all of them are checked when it is opened.
    """

    def __init__(
        self,
        folder: Path,
        shapes: Mapping[str, Sequence[int]],
        *,
        known: Collection[str] = (),
        prefix: str = "",
        passed_over: tuple[str, ...] = (),
    ) -> None:
        """Open it.

        Args:
            folder: config.json, and safetensors files with their index.
            shapes: released names of the tensors that will be read.
            known: names that may be there and are not read.
            prefix: what stands before every name in the files; tensors without it are other parts
                of the checkpoint (a vision tower).
            passed_over: beginnings of names, after the prefix, that the network does without.

        Raises:
            CheckpointError: naming every missing, extra or mis-shaped tensor, a truncated file, or
                a format that is not read.
        """
        quantised = stored_quantisation(folder)
        headers = _headers(folder, prefix)
        self._parts = {
            name: _parts(name, torch.Size(shape), quantised, headers)
            for name, shape in shapes.items()
        }
        accounted = {part.name for mine in self._parts.values() for part in mine}
        accounted.update(name + end for name in known for end in ENDINGS[quantised])
        extra = [
            name
            for name in headers.keys() - accounted
            if not name.endswith(DERIVED) and not name.startswith(passed_over)
        ]
        _refuse(folder, self._parts, headers, sorted(extra))
        self._headers, self._prefix = headers, prefix

    def __contains__(self, name: str) -> bool:
        """Whether a plain tensor of that name is in the files."""
        return name in self._headers

    def read_into(self, slots: Mapping[str, Tensor]) -> None:
        """Copy tensors, dequantised in the slot's precision and on its device."""
        parts = {name: self._parts[name] for name in slots}
        for name, stored in _stored(parts, self._headers, self._prefix):
            slot = slots[name]
            here = [tensor.to(slot.device) for tensor in stored]
            slot.copy_(_dequantised(name, here, slot.dtype, slot.shape))


def read_into(
    slots: Mapping[str, Tensor],
    folder: Path,
    *,
    known: Collection[str] = (),
    prefix: str = "",
    passed_over: tuple[str, ...] = (),
) -> None:
    """Copy tensors of a checkpoint once; see `Checkpoint`."""
    shapes = {name: slot.shape for name, slot in slots.items()}
    checkpoint = Checkpoint(folder, shapes, known=known, prefix=prefix, passed_over=passed_over)
    checkpoint.read_into(slots)


def read_tensors(folder: Path) -> Iterator[tuple[str, Tensor]]:
    """Every tensor of a checkpoint under its name, one at a time; in fp32 if it was quantised.

    Raises CheckpointError as `read_into` does.
    """
    quantised = stored_quantisation(folder)
    headers = _headers(folder)
    shapes = _shapes(headers, quantised)
    parts = {name: _parts(name, shape, quantised, headers) for name, shape in shapes.items()}
    accounted = {part.name for mine in parts.values() for part in mine}
    _refuse(folder, parts, headers, sorted(headers.keys() - accounted))
    for name, stored in _stored(parts, headers, ""):
        yield name, _dequantised(name, stored, torch.float32, shapes[name])


def tensor_shapes(folder: Path) -> dict[str, torch.Size]:
    """The tensors that `read_tensors` yields, without reading them."""
    return _shapes(_headers(folder), stored_quantisation(folder))


def _shapes(headers: dict[str, Header], quantised: Quantised | None) -> dict[str, torch.Size]:
    """Names and shapes of tensors, by the names and shapes of their parts."""
    shapes = {}
    endings = ENDINGS[quantised][1:]
    for name, header in headers.items():
        base = next((name.removesuffix(end) for end in endings if name.endswith(end)), name)
        if name == base:
            shapes[base] = torch.Size(header.shape)
        elif name.endswith("_packed"):
            shapes[base] = torch.Size([*header.shape[:-1], header.shape[-1] * int4.PER_WORD])
    return shapes


def listing(names: list[str], separator: str = ", ") -> str:
    """The first names, and how many more."""
    shown = separator.join(names[:8])
    return f"{shown} and {len(names) - 8} more" if len(names) > 8 else shown


def _parts(
    name: str, shape: torch.Size, quantised: Quantised | None, headers: dict[str, Header]
) -> list[Part]:
    """How a tensor must be stored: in the parts of the format if any of them is there."""
    endings = [end for end in ENDINGS[quantised] if f"{name}{end}" in headers]
    if len(shape) != 2:
        return [Part(name, list(shape), PLAIN)]
    if quantised is Quantised.int4 and endings not in ([], [""]):
        rows, columns = shape
        return [
            Part(f"{name}_packed", [rows, columns // int4.PER_WORD], ("I32",)),
            Part(f"{name}_scale", [rows, columns // int4.GROUP], ("BF16",)),
            Part(f"{name}_shape", [2], ("I32", "I64")),
        ]
    if quantised is Quantised.fp8 and (
        "_scale_inv" in endings or (endings and headers[name].dtype == "F8_E4M3")
    ):
        return [
            Part(name, list(shape), ("F8_E4M3",)),
            Part(f"{name}_scale_inv", list(fp8.blocks(shape)), ("F32",)),
        ]
    return [Part(name, list(shape), PLAIN)]


def _refuse(
    folder: Path, parts: dict[str, list[Part]], headers: dict[str, Header], extra: list[str]
) -> None:
    """CheckpointError naming every part that is missing or stored otherwise, and the extra ones."""
    problems: list[str] = []
    missing = []
    for part in (part for mine in parts.values() for part in mine):
        stored = headers.get(part.name)
        if stored is None:
            missing.append(part.name)
            continue
        if stored.shape != part.shape:
            problems.append(
                f"{part.name} has shape {stored.shape}, the config asks for {part.shape}"
            )
        if stored.dtype not in part.dtypes:
            wanted = " or ".join(part.dtypes)
            problems.append(f"{part.name} is stored as {stored.dtype}, not as {wanted}")
    if extra:
        problems.insert(0, f"tensors that the network does not have: {listing(extra)}")
    if missing:
        problems.insert(0, f"missing tensors: {listing(missing)}")
    if problems:
        raise CheckpointError(f"{folder} does not fit its config: " + listing(problems, "; "))


def _stored(
    parts: dict[str, list[Part]], headers: dict[str, Header], prefix: str
) -> Iterator[tuple[str, list[Tensor]]]:
    """The parts of every tensor, file by file; a part may lie in another file than the first."""

    def file_of(name: str) -> Path:
        return headers[parts[name][0].name].file

    for file, names in groupby(sorted(parts, key=file_of), key=file_of):
        with safe_open(file, framework="pt") as shard:
            for name in names:
                stored = []
                for part in parts[name]:
                    other = headers[part.name].file
                    if other == file:
                        stored.append(shard.get_tensor(prefix + part.name))
                    else:
                        with safe_open(other, framework="pt") as elsewhere:
                            stored.append(elsewhere.get_tensor(prefix + part.name))
                yield name, stored


def _dequantised(name: str, stored: list[Tensor], dtype: torch.dtype, shape: torch.Size) -> Tensor:
    """The tensor of its parts, in `dtype` if it was quantised."""
    if len(stored) == 1:
        return stored[0]
    if len(stored) == 2:
        return fp8.dequantise(fp8.Fp8(*stored), dtype)
    packed, scale, stored_shape = stored
    if stored_shape.tolist() != list(shape):
        raise CheckpointError(
            f"{name}_shape says {stored_shape.tolist()}, the config asks for {list(shape)}"
        )
    return int4.dequantise(int4.Int4(packed, scale), dtype)


def _headers(folder: Path, prefix: str = "") -> dict[str, Header]:
    """Every tensor of a folder whose name begins with `prefix`, which is cut off."""
    headers: dict[str, Header] = {}
    for file in _shard_files(folder):
        for name, header in _file_headers(file).items():
            if not name.startswith(prefix):
                continue
            short = name.removeprefix(prefix)
            if short in headers:
                raise CheckpointError(
                    f"{name} is in two files of {folder}: {headers[short].file.name}, {file.name}"
                )
            headers[short] = header
    if prefix and not headers:
        raise CheckpointError(f"{folder} has no tensor whose name begins with {prefix}")
    return headers


def _shard_files(folder: Path) -> list[Path]:
    """The safetensors files of a checkpoint folder."""
    if not folder.is_dir():
        raise CheckpointError(f"no checkpoint folder at {folder}")
    index = folder / INDEX
    if index.exists():
        try:
            names = sorted(
                set(json.loads(index.read_text(encoding="utf-8"))["weight_map"].values())
            )
        except (KeyError, TypeError, AttributeError, ValueError) as error:
            raise CheckpointError(f"{index} is not a safetensors index: {error!r}") from error
    elif (folder / SINGLE).exists():
        names = [SINGLE]
    else:
        raise CheckpointError(f"no weights in {folder}: neither {INDEX} nor {SINGLE}")
    missing = [name for name in names if not (folder / name).is_file()]
    if missing:
        raise CheckpointError(f"{folder} lacks {listing(missing)}, named in {INDEX}")
    return [folder / name for name in names]


def _file_headers(file: Path) -> dict[str, Header]:
    """Names, shapes and precisions of one file."""
    try:
        with safe_open(file, framework="pt") as shard:
            slices = {name: shard.get_slice(name) for name in shard.keys()}  # noqa: SIM118 (no mapping)
            return {
                name: Header(file, list(part.get_shape()), str(part.get_dtype()))
                for name, part in slices.items()
            }
    except (SafetensorError, OSError) as error:
        raise CheckpointError(f"{file} is truncated or corrupt: {error}") from error


def write_file(file: Path, tensors: Mapping[str, Tensor], metadata: Mapping[str, str]) -> None:
    """One safetensors file of contiguous tensors on CPU. Raises OSError if the disk refuses."""
    try:
        save_file(dict(tensors), file, dict(metadata))
    except SafetensorError as error:  # its word for a full disk
        raise OSError(f"cannot write {file}: {error}") from error


def write_shards(
    tensors: Iterable[tuple[str, Tensor]], folder: Path, shard_bytes: int, *, part: int = 0
) -> None:
    """Stream tensors into files of about `shard_bytes`; at most one file is held in memory.

    `merge_index` makes a checkpoint of the files of all parts. Raises OSError if the disk refuses.
    """
    pending: dict[str, Tensor] = {}
    number = size = 0

    def flush() -> None:
        file = folder / f"part-{part:05d}-{number:05d}.safetensors"
        write_file(file, pending, {"format": "pt"})
        pending.clear()

    for name, tensor in tensors:
        if pending and size + tensor.nbytes > shard_bytes:
            flush()
            number, size = number + 1, 0
        pending[name] = tensor.detach().to("cpu").contiguous()
        size += tensor.nbytes
    flush()


def merge_index(folder: Path, parts: int = 1) -> None:
    """Name the files of all parts as one checkpoint: model.safetensors, or several and an index.

    Raises CheckpointError if one of the parts 0 .. parts - 1 has no file, a file is truncated, or a
    tensor is in two of them.
    """
    files = sorted(folder.glob("part-*.safetensors"))
    absent = [
        str(part)
        for part in range(parts)
        if not any(file.name.startswith(f"part-{part:05d}-") for file in files)
    ]
    if absent:
        raise CheckpointError(f"{folder} has no file of part {listing(absent)} of {parts}")
    content = {file: _file_headers(file) for file in files}
    for file in [file for file, headers in content.items() if not headers]:
        file.unlink()
        del content[file]
    if len(content) == 1:
        next(iter(content)).rename(folder / SINGLE)
        return
    weight_map: dict[str, str] = {}
    for number, (file, headers) in enumerate(content.items(), 1):
        target = f"model-{number:05d}-of-{len(content):05d}.safetensors"
        if twice := headers.keys() & weight_map.keys():
            raise CheckpointError(f"{min(twice)} was written by two parts, see {file}")
        weight_map.update(dict.fromkeys(headers, target))
    for file, headers in content.items():
        file.rename(folder / weight_map[next(iter(headers))])
    total = sum(_data_bytes(folder / target) for target in set(weight_map.values()))
    index = {"metadata": {"total_size": total}, "weight_map": weight_map}
    (folder / INDEX).write_text(json.dumps(index, indent=2) + "\n", encoding="utf-8")


def _data_bytes(file: Path) -> int:
    """Bytes of a file's tensors: all but the header and the eight bytes of its length."""
    with file.open("rb") as content:
        return file.stat().st_size - 8 - int.from_bytes(content.read(8), "little")
