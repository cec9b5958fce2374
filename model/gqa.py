"""Sizes of grouped-query networks that transformers builds: Qwen2, Qwen3, Llama, Mistral.

Only what arithmetic needs; the network itself is transformers' own. Light: imports nothing heavy.
"""

import json
from dataclasses import MISSING, dataclass, fields
from pathlib import Path
from typing import Any

MODEL_TYPES = ("llama", "mistral", "qwen2", "qwen3", "qwen3_moe")
# Any other value is refused: it would change the count of parameters.
ONLY_VALUES: dict[str, Any] = {
    "attention_bias": False,
    "decoder_sparse_step": 1,
    "hidden_act": "silu",
    "mlp_bias": False,
    "mlp_only_layers": [],
}


@dataclass(kw_only=True, slots=True)
class GqaConfig:
    """A decoder with grouped-query attention, with the keys of its config.json."""

    model_type: str
    vocab_size: int
    hidden_size: int
    intermediate_size: int
    num_hidden_layers: int
    num_attention_heads: int
    num_key_value_heads: int
    head_dim: int
    max_position_embeddings: int
    tie_word_embeddings: bool = False
    num_experts: int = 0
    """Routed experts of every layer. 0: all layers are dense."""
    num_experts_per_tok: int = 0
    moe_intermediate_size: int = 0

    def __post_init__(self) -> None:
        """Refuse sizes that cannot be built, by name."""
        if self.model_type not in MODEL_TYPES:
            raise ValueError(_unknown(self.model_type))
        optional = ("num_experts", "num_experts_per_tok", "moe_intermediate_size")
        for item in fields(self):
            value = getattr(self, item.name)
            if isinstance(value, bool) or not isinstance(value, int):
                continue
            if value < 0 or (value == 0 and (self.num_experts or item.name not in optional)):
                raise ValueError(f"{item.name} must be positive, got {value}")
        if self.num_attention_heads % self.num_key_value_heads:
            raise ValueError(
                f"num_key_value_heads must divide num_attention_heads {self.num_attention_heads}, "
                f"got {self.num_key_value_heads}"
            )

    @property
    def qk_norm(self) -> bool:
        """Queries and keys are normalised head by head."""
        return self.model_type in ("qwen3", "qwen3_moe")

    @property
    def qkv_bias(self) -> bool:
        """Queries, keys and values have a bias, whatever config.json says."""
        return self.model_type == "qwen2"

    @classmethod
    def from_json(cls, path: str | Path) -> "GqaConfig":
        """Read a config.json of transformers.

        Raises:
            ValueError: a missing key, or a value that this arithmetic does not know.
        """
        raw: dict[str, Any] = json.loads(Path(path).read_text(encoding="utf-8"))
        for key, only in ONLY_VALUES.items():
            if raw.get(key) not in (None, only):
                raise ValueError(f"{path}: {key} must be {only!r}, got {raw[key]!r}")
        raw.setdefault("num_experts", raw.get("num_local_experts"))  # transformers 5 renames it
        if raw.get("model_type") not in MODEL_TYPES:
            raise ValueError(f"{path}: {_unknown(raw.get('model_type'))}")
        names = {item.name for item in fields(cls)}
        values = {key: value for key, value in raw.items() if key in names and value is not None}
        if "head_dim" not in values and {"hidden_size", "num_attention_heads"} <= values.keys():
            values["head_dim"] = values["hidden_size"] // values["num_attention_heads"]
        if values.get("model_type") != "qwen3_moe":
            values.pop("num_experts_per_tok", None)
        missing = [f.name for f in fields(cls) if f.name not in values and f.default is MISSING]
        if missing:
            raise ValueError(f"{path}: missing keys: {', '.join(missing)}")
        try:
            return cls(**values)
        except (TypeError, ValueError) as error:
            raise ValueError(f"{path}: {error}") from error


def _unknown(model_type: object) -> str:
    known = ", ".join((*MODEL_TYPES, "kimi_k2", "deepseek_v3"))
    return f"model_type {model_type!r} cannot be planned; known: {known}"


def qwen3_0p6b() -> GqaConfig:
    """Qwen/Qwen3-0.6B as released: 596,049,920 parameters, the head tied to the embedding."""
    return GqaConfig(
        model_type="qwen3",
        vocab_size=151936,
        hidden_size=1024,
        intermediate_size=3072,
        num_hidden_layers=28,
        num_attention_heads=16,
        num_key_value_heads=8,
        head_dim=128,
        max_position_embeddings=40960,
        tie_word_embeddings=True,
    )
