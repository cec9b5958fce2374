"""Store a checkpoint in another format, tensor by tensor: the network is never built."""

import json
import shutil
from collections.abc import Iterator
from pathlib import Path

import torch
from torch import Tensor

from model.formats import CheckpointError, Quantised, check_format, quantisation_config, store
from model.load import SHARD_BYTES, copy_tokenizer, replace_folder
from model.shards import merge_index, read_tensors, tensor_shapes, write_shards


def convert_checkpoint(
    source: str | Path,
    target: str | Path,
    dtype: torch.dtype = torch.bfloat16,
    *,
    quantised: Quantised | None = None,
    shard_bytes: int = SHARD_BYTES,
) -> None:
    """Write the checkpoint `source` as `target`, tokenizer included, all or nothing.

    Args:
        source: a checkpoint folder; best one in fp32, the master weights.
        target: the new folder; what is there is replaced in the end.
        dtype: of the tensors that are not quantised; the routers' biases are fp32.
        quantised: FP8 or INT4, or neither.
        shard_bytes: size of a file, and about what is held in memory.

    Raises:
        CheckpointError: `source` is damaged, or cannot be stored in that format.
    """
    source, folder = Path(source), Path(target)
    check_format(tensor_shapes(source), quantised)
    partial = folder.with_name(folder.name + ".partial")
    try:
        shutil.rmtree(partial, ignore_errors=True)
        partial.mkdir(parents=True)
        write_shards(_stored(source, dtype, quantised), partial, shard_bytes)
        merge_index(partial)
        raw = json.loads((source / "config.json").read_text(encoding="utf-8"))
        raw.pop("quantization_config", None)
        raw["dtype"] = str(dtype).removeprefix("torch.")
        if quantised is not None:
            raw["quantization_config"] = quantisation_config(quantised)
        (partial / "config.json").write_text(json.dumps(raw, indent=2) + "\n", encoding="utf-8")
        copy_tokenizer(source, partial)
        replace_folder(partial, folder)
    except OSError as error:
        raise CheckpointError(f"cannot write checkpoint {folder}: {error}") from error
    finally:
        shutil.rmtree(partial, ignore_errors=True)


def _stored(
    source: Path, dtype: torch.dtype, quantised: Quantised | None
) -> Iterator[tuple[str, Tensor]]:
    """What the new checkpoint holds."""
    for name, tensor in read_tensors(source):
        yield from store(name, tensor, dtype, quantised)
