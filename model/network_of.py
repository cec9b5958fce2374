"""Which network a checkpoint folder gets: our own K2, or one of transformers."""

from pathlib import Path

from model.formats import CheckpointError
from model.hf_config import HFConfig

K2_TYPES = ("deepseek_v3", "kimi_k2", "kimi_k25")


def is_k2(path: str | Path) -> bool:
    """Whether `model.k2` is the network of that folder's config.json (CheckpointError if none)."""
    if not Path(path).is_dir():
        raise CheckpointError(f"no checkpoint folder at {path}")
    try:
        return HFConfig.from_json(Path(path) / "config.json").model_type in K2_TYPES
    except ValueError as error:
        raise CheckpointError(str(error)) from error
