"""The network of a checkpoint folder, whatever its architecture: our own K2, or transformers'."""

from pathlib import Path

import torch

from model.causal_lm import CausalLM
from model.formats import CheckpointError
from model.hf_config import HFConfig
from model.k2 import K2
from model.load import load_k2

K2_TYPES = ("deepseek_v3", "kimi_k2", "kimi_k25")


def is_k2(path: str | Path) -> bool:
    """Whether `model.k2` is the network of that folder's config.json (CheckpointError if none)."""
    if not Path(path).is_dir():
        raise CheckpointError(f"no checkpoint folder at {path}")
    try:
        return HFConfig.from_json(Path(path) / "config.json").model_type in K2_TYPES
    except ValueError as error:
        raise CheckpointError(str(error)) from error


def load_network(
    path: str | Path,
    dtype: torch.dtype = torch.float32,
    compute_dtype: torch.dtype = torch.float32,
    checkpoint_layers: bool = False,
) -> K2 | CausalLM:
    """The network with its weights in `dtype`; CheckpointError says what does not fit."""
    load = load_k2 if is_k2(path) else CausalLM.from_folder
    return load(path, dtype, compute_dtype, checkpoint_layers=checkpoint_layers)
