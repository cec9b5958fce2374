"""A checkpoint folder in, a network out, and back. Folders are what vLLM and transformers read."""

import shutil
from collections.abc import Iterator
from pathlib import Path

import torch
from safetensors import SafetensorError
from torch import Tensor

from model.config import K2Config
from model.formats import CheckpointError, read_into, released_tensors, write_shards
from model.k2 import K2

SHARD_BYTES = 5 * 1000**3
TOKENIZER_FILES = (
    "tokenizer.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "chat_template.jinja",
    "generation_config.json",
    "tiktoken.model",
    "tokenization_kimi.py",
)


def load_k2(
    path: str | Path, dtype: torch.dtype = torch.float32, compute_dtype: torch.dtype = torch.float32
) -> K2:
    """The network of a checkpoint folder, its weights in `dtype` (the router bias stays fp32).

    Raises CheckpointError naming every missing, extra or mis-shaped tensor, and a truncated or
    absent file.
    """
    folder = Path(path)
    if not folder.is_dir():
        raise CheckpointError(f"no checkpoint folder at {folder}")
    try:
        config = K2Config.from_json(folder / "config.json")
    except ValueError as error:
        raise CheckpointError(str(error)) from error
    with torch.device("meta"):
        model = K2(config, compute_dtype)
    for parameter in model.parameters():
        parameter.data = parameter.data.to(dtype)
    model.to_empty(device="cpu")
    read_into(dict(released_tensors(model)), folder)
    return model


@torch.no_grad()
def export_tensors(model: K2, dtype: torch.dtype = torch.bfloat16) -> Iterator[tuple[str, Tensor]]:
    """Every tensor under its released name in `dtype`, one at a time; the router bias stays fp32.

    A tensor that already has `dtype` is a view of the weights: copy it before the next update.
    """
    for name, tensor in released_tensors(model):
        yield name, tensor if name.endswith("e_score_correction_bias") else tensor.to(dtype)


def save_k2(
    model: K2,
    path: str | Path,
    dtype: torch.dtype = torch.bfloat16,
    *,
    tokenizer_from: str | Path | None = None,
    shard_bytes: int = SHARD_BYTES,
) -> None:
    """Write a checkpoint folder, all or nothing: written beside `path` as `.partial`, then renamed.

    `tokenizer_from` is the folder whose tokenizer files come along. On failure the previous
    checkpoint is as it was.
    """
    folder = Path(path)
    partial = folder.with_name(folder.name + ".partial")
    try:
        shutil.rmtree(partial, ignore_errors=True)
        partial.mkdir(parents=True)
        write_shards(export_tensors(model, dtype), partial, shard_bytes)
        model.config.to_json(partial / "config.json", str(dtype).removeprefix("torch."))
        for name in TOKENIZER_FILES if tokenizer_from is not None else ():
            source = Path(tokenizer_from or "") / name
            if source.is_file():
                shutil.copyfile(source, partial / name)
        replace_folder(partial, folder)
    except (OSError, SafetensorError) as error:
        raise CheckpointError(f"cannot write checkpoint {folder}: {error}") from error
    finally:
        shutil.rmtree(partial, ignore_errors=True)


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
