"""A checkpoint folder in, a network out, and back. Folders are what vLLM and transformers read."""

import json
import shutil
from collections.abc import Iterator
from pathlib import Path

import torch
from torch import Tensor

from model.formats import (
    CheckpointError,
    Quantised,
    check_format,
    quantisation_config,
    released_tensors,
    store,
)
from model.k2 import K2
from model.k2_config import K2Config, tensor_prefix
from model.shards import merge_index, read_into, write_shards

SHARD_BYTES = 5 * 1000**3
TOKENIZER_FILES = (
    "tokenizer.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "chat_template.jinja",
    "generation_config.json",
    "tiktoken.model",
    "tokenization_kimi.py",
    "tokenization_moonshot.py",
)


def load_k2(
    path: str | Path,
    dtype: torch.dtype = torch.float32,
    compute_dtype: torch.dtype = torch.float32,
    *,
    checkpoint_layers: bool = False,
    int4_experts: bool = False,
) -> K2:
    """The network of a checkpoint folder, its weights in `dtype` (the router bias stays fp32).

    A block-FP8 or INT4 checkpoint is dequantised. The options are those of `K2`. Raises
    CheckpointError naming every missing, extra or mis-shaped tensor, a truncated or absent file, or
    a format that is not read.
    """
    folder = Path(path)
    if not folder.is_dir():
        raise CheckpointError(f"no checkpoint folder at {folder}")
    try:
        config = K2Config.from_json(folder / "config.json")
        with torch.device("meta"):
            model = K2(
                config,
                compute_dtype,
                checkpoint_layers=checkpoint_layers,
                int4_experts=int4_experts,
            )
    except ValueError as error:
        raise CheckpointError(str(error)) from error
    for parameter in model.parameters():
        parameter.data = parameter.data.to(dtype)
    model.to_empty(device="cpu")
    read_into(
        dict(released_tensors(model)),
        folder,
        prefix=tensor_prefix(folder / "config.json"),
        passed_over=config.mtp_prefixes,
    )
    return model


@torch.no_grad()
def export_tensors(
    model: K2,
    dtype: torch.dtype = torch.bfloat16,
    quantised: Quantised | None = None,
    *,
    unpacked: bool = False,
) -> Iterator[tuple[str, Tensor]]:
    """What a checkpoint holds, one tensor at a time; see `model.formats.store`.

    A tensor that already has `dtype` is a view of the weights: copy it before the next update.
    """
    for name, tensor in released_tensors(model):
        yield from store(name, tensor, dtype, quantised, unpacked=unpacked)


def save_k2(
    model: K2,
    path: str | Path,
    dtype: torch.dtype = torch.bfloat16,
    *,
    quantised: Quantised | None = None,
    tokenizer_from: str | Path | None = None,
    shard_bytes: int = SHARD_BYTES,
) -> None:
    """Write a checkpoint folder, all or nothing: written beside `path` as `.partial`, then renamed.

    `dtype` is that of the tensors that are not quantised. `tokenizer_from` is the folder whose
    tokenizer files come along. On failure the previous checkpoint is as it was.
    """
    check_format({name: tensor.shape for name, tensor in released_tensors(model)}, quantised)
    folder = Path(path)
    partial = folder.with_name(folder.name + ".partial")
    try:
        shutil.rmtree(partial, ignore_errors=True)
        partial.mkdir(parents=True)
        write_shards(export_tensors(model, dtype, quantised), partial, shard_bytes)
        merge_index(partial)
        write_config(model.config, partial, dtype, quantised)
        copy_tokenizer(tokenizer_from, partial)
        replace_folder(partial, folder)
    except OSError as error:
        raise CheckpointError(f"cannot write checkpoint {folder}: {error}") from error
    finally:
        shutil.rmtree(partial, ignore_errors=True)


def write_config(
    config: K2Config, folder: Path, dtype: torch.dtype, quantised: Quantised | None = None
) -> None:
    """config.json of a checkpoint whose tensors are those of `export_tensors`."""
    file = folder / "config.json"
    config.to_json(file, str(dtype).removeprefix("torch."))
    if quantised is not None:
        raw = json.loads(file.read_text(encoding="utf-8"))
        raw["quantization_config"] = quantisation_config(quantised)
        file.write_text(json.dumps(raw, indent=2) + "\n", encoding="utf-8")


def copy_tokenizer(source: str | Path | None, folder: Path) -> None:
    """Bring the tokenizer files of checkpoint `source` into `folder`; None brings none."""
    for name in TOKENIZER_FILES if source is not None else ():
        file = Path(source or "") / name
        if file.is_file():
            shutil.copyfile(file, folder / name)


def replace_folder(new: Path, target: Path) -> None:
    """Put `new` in the place of `target`.

    A folder cannot be renamed over another: the old one steps aside, and back if that fails.
    """
    previous = target.with_name(target.name + ".previous")
    if target.exists():
        shutil.rmtree(previous, ignore_errors=True)
        target.rename(previous)
    try:
        new.rename(target)
    except OSError:
        if previous.exists():
            previous.rename(target)
        raise
    shutil.rmtree(previous, ignore_errors=True)
