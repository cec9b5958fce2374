"""Names and files of a Hugging Face checkpoint: released tensor names, safetensors shards."""

import json
from collections.abc import Iterator
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

INDEX = "model.safetensors.index.json"
SINGLE = "model.safetensors"
# Written by some converters; follows from the config.
DERIVED = ".rotary_emb.inv_freq"


class CheckpointError(ValueError):
    """A checkpoint that cannot be read or written; the message says what and where."""


def released_tensors(model: nn.Module) -> Iterator[tuple[str, Tensor]]:
    """Every stored tensor under its released name; experts are views of the fused tensors."""
    for name, tensor in model.state_dict().items():
        if name.endswith(".experts.gate_up_proj"):
            base = name.removesuffix("gate_up_proj")
            for expert, matrix in enumerate(tensor):
                gate, up = matrix.chunk(2)
                yield f"{base}{expert}.gate_proj.weight", gate
                yield f"{base}{expert}.up_proj.weight", up
        elif name.endswith(".experts.down_proj"):
            base = name.removesuffix("down_proj")
            for expert, matrix in enumerate(tensor):
                yield f"{base}{expert}.down_proj.weight", matrix
        else:
            yield name, tensor


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
        raise CheckpointError(f"{folder} lacks {_listing(missing)}, named in {INDEX}")
    return [folder / name for name in names]


def _listing(names: list[str]) -> str:
    """The first names, and how many more."""
    shown = ", ".join(names[:8])
    return f"{shown} and {len(names) - 8} more" if len(names) > 8 else shown


def read_into(slots: dict[str, Tensor], folder: Path) -> None:
    """Copy a checkpoint into the given tensors; nothing is copied before all of it fits."""
    files = _shard_files(folder)
    shapes: dict[str, list[int]] = {}
    for file in files:
        shapes.update(_shapes(file))
    problems = [
        f"{name} has shape {shapes[name]}, the config asks for {list(slot.shape)}"
        for name, slot in slots.items()
        if name in shapes and shapes[name] != list(slot.shape)
    ]
    missing = [name for name in slots if name not in shapes]
    extra = [name for name in shapes if name not in slots and not name.endswith(DERIVED)]
    if missing:
        problems.append(f"missing tensors: {_listing(missing)}")
    if extra:
        problems.append(f"tensors that the network does not have: {_listing(extra)}")
    if problems:
        raise CheckpointError(f"{folder} does not fit its config: " + "; ".join(problems))
    for file in files:
        with safe_open(file, framework="pt") as shard:
            for name in shard.keys():  # noqa: SIM118 (not a mapping)
                if name in slots:
                    slots[name].copy_(_plain(name, shard.get_tensor(name)))


def _shapes(file: Path) -> dict[str, list[int]]:
    """Names and shapes of one shard, from its header."""
    try:
        with safe_open(file, framework="pt") as shard:
            names = list(shard.keys())
            return {name: list(shard.get_slice(name).get_shape()) for name in names}
    except (SafetensorError, OSError) as error:
        raise CheckpointError(f"{file} is truncated or corrupt: {error}") from error


def _plain(name: str, tensor: Tensor) -> Tensor:
    """The tensor, unless its numbers mean nothing without a scale."""
    if tensor.dtype not in (torch.float32, torch.bfloat16, torch.float16, torch.float64):
        raise CheckpointError(
            f"{name} is stored as {tensor.dtype}: quantised checkpoints are not read"
        )
    return tensor


def write_shards(tensors: Iterator[tuple[str, Tensor]], folder: Path, shard_bytes: int) -> None:
    """Stream tensors into shards of about `shard_bytes`; more than one get an index."""
    shards: list[list[str]] = []
    pending: dict[str, Tensor] = {}
    total = size = 0

    def flush() -> None:
        save_file(pending, folder / f"shard-{len(shards)}", metadata={"format": "pt"})
        shards.append(list(pending))
        pending.clear()

    for name, tensor in tensors:
        if pending and size + tensor.nbytes > shard_bytes:
            flush()
            size = 0
        pending[name] = tensor.contiguous()
        size += tensor.nbytes
        total += tensor.nbytes
    flush()
    if len(shards) == 1:
        (folder / "shard-0").rename(folder / SINGLE)
        return
    weight_map = {}
    for number, names in enumerate(shards):
        file = f"model-{number + 1:05d}-of-{len(shards):05d}.safetensors"
        (folder / f"shard-{number}").rename(folder / file)
        weight_map.update(dict.fromkeys(names, file))
    index = {"metadata": {"total_size": total}, "weight_map": weight_map}
    (folder / INDEX).write_text(json.dumps(index, indent=2) + "\n", encoding="utf-8")
