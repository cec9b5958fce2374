"""The network that a recipe trains, by its configuration alone: no weights are needed to plan."""

import difflib
import json
from collections.abc import Callable, Mapping
from pathlib import Path

from model.gqa import GqaConfig, qwen3_0p6b
from model.inventory import Architecture
from model.k2_config import MODEL_TYPES, K2Config
from model.releases import (
    deepseek_v3,
    kimi_k2_instruct,
    kimi_k2_thinking,
    kimi_k2p5,
    moonlight_16b,
)
from model.tiny import VOCABULARY, tiny_config
from rl.config import PolicyConfig
from rl.errors import BadInput

RELEASES: Mapping[str, Callable[[], Architecture]] = {
    "kimi_k2_instruct": kimi_k2_instruct,
    "kimi_k2_thinking": kimi_k2_thinking,
    "kimi_k2p5": kimi_k2p5,
    "moonlight_16b": moonlight_16b,
    "deepseek_v3": deepseek_v3,
    "qwen3_0p6b": qwen3_0p6b,
}


def architecture_of(policy: PolicyConfig) -> Architecture:
    """Of the checkpoint folder if it is here, else of the release, else of the tiny K2.

    Raises:
        BadInput: no such folder and no release named, an unknown release, an unreadable config.
    """
    if policy.release is not None and policy.release not in RELEASES:
        close = difflib.get_close_matches(policy.release, RELEASES, n=1, cutoff=0.5)
        hint = f"; did you mean {close[0]!r}?" if close else ""
        raise BadInput(
            f"unknown policy.release={policy.release!r}{hint}; known: {', '.join(RELEASES)}"
        )
    config = None if policy.path is None else Path(policy.path) / "config.json"
    if config is not None and config.is_file():
        return _read(config)
    if policy.release is not None:
        return RELEASES[policy.release]()
    if config is not None:
        raise BadInput(
            f"policy.path={policy.path} holds no config.json: bring the checkpoint, or name its "
            f"architecture by policy.release ({', '.join(RELEASES)})"
        )
    return tiny_config(VOCABULARY)


def _read(path: Path) -> Architecture:
    try:
        raw = json.loads(path.read_text(encoding="utf-8"))
        kind = raw.get("text_config", raw).get("model_type") if isinstance(raw, dict) else None
        if kind in MODEL_TYPES:
            return K2Config.from_json(path)
        return GqaConfig.from_json(path)
    except (OSError, ValueError) as error:
        raise BadInput(str(error)) from error
