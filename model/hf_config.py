"""The config.json of a network that transformers builds, and what of it we would get wrong.

Light: imports nothing heavy. `effective` below is the configuration with transformers' defaults
filled in.
"""

import json
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

# Keys that some released files carry although they do not change the network.
IDLE_KEYS = frozenset(
    {
        "_attn_implementation_autoset",
        "_commit_hash",
        "_name_or_path",
        "auto_map",
        "max_window_layers",  # matters with a sliding window only, which is refused
        "model_type",
        "quantization_config",  # tensors are dequantised on load
        "rope_scaling",  # becomes rope_parameters
        "rope_theta",
        "task_specific_params",
        "tokenizer_class",
        "torch_dtype",
        "unsloth_fixed",
        "unsloth_version",
    }
)
NOT_CAUSAL = (
    ("is_causal", False),
    ("is_encoder_decoder", True),
    ("use_bidirectional_attention", True),
)
# Angles that depend on nothing but the position: in dynamic and longrope ones, a sequence's change
# with the longest sequence of its batch.
ROPE_TYPES = ("default", "linear", "llama3", "yarn")
DROPOUT = re.compile("^(?!classifier|summary).*(dropout|_pdrop$)")
# What stands between the hidden states and the log-probs, or inside the softmax, elsewhere than in
# our kernels.
SCALED_LOGITS = (
    "attn_logit_softcapping",
    "final_logit_softcapping",
    "lm_head_multiplier",
    "logit_scale",
    "logits_scaling",
)


@dataclass(frozen=True, slots=True)
class HFConfig:
    """A config.json as it was read: what we export says the same."""

    values: dict[str, Any]

    @classmethod
    def from_json(cls, path: str | Path) -> "HFConfig":
        """Read it; ValueError says what is wrong with the file."""
        path = Path(path)
        try:
            values = json.loads(path.read_text(encoding="utf-8"))
        except OSError as error:
            raise ValueError(f"cannot read {path}: {error.strerror}") from error
        except ValueError as error:
            raise ValueError(f"{path} is not valid JSON: {error}") from error
        if not isinstance(values, dict) or not isinstance(values.get("model_type"), str):
            raise ValueError(f"{path} must hold a JSON object with a model_type")
        return cls(values)

    @property
    def model_type(self) -> str:
        """The architecture's name."""
        return str(self.values["model_type"])

    def to_json(self, path: str | Path, dtype: str = "bfloat16") -> None:
        """Write the same network's config.json; weights are stored in `dtype`, not quantised."""
        dropped = ("quantization_config", "torch_dtype", "dtype")
        kept = {key: value for key, value in self.values.items() if key not in dropped}
        text = json.dumps(kept | {"dtype": dtype}, indent=2)
        Path(path).write_text(text + "\n", encoding="utf-8")


def refusals(
    stored: HFConfig, effective: Mapping[str, Any], known_keys: frozenset[str]
) -> Iterator[str]:
    """Why this network would be trained wrongly here, one sentence per reason."""
    for key in stored.values.keys() - known_keys - IDLE_KEYS:
        if stored.values[key] not in (None, False):
            yield (
                f"key {key} is unknown to transformers' {stored.model_type}: remove it if it does "
                "not change the network"
            )
    for key in SCALED_LOGITS:
        if effective.get(key) not in (None, False, 1):
            yield f"{key} = {effective[key]} is not implemented"
    for key, value in effective.items():
        if DROPOUT.search(key) and value not in (None, False, 0):
            yield f"{key} = {value}: log-probs would be random; set it to 0"
    for key, wrong in NOT_CAUSAL:
        if effective.get(key) is wrong:
            yield f"{key} = {wrong}: not a causal language model"
    yield from _partial_attention(effective)
    for kind in set(_rope_types(effective.get("rope_parameters"))) - set(ROPE_TYPES):
        yield f"rope_type {kind} is not implemented; known are {', '.join(ROPE_TYPES)}"


def _partial_attention(effective: Mapping[str, Any]) -> Iterator[str]:
    """Layers that do not see the whole sequence."""
    window, context = effective.get("sliding_window"), effective.get("max_position_embeddings")
    short = window is not None and not (context and window >= context)
    kinds = effective.get("layer_types") or ["sliding_attention" if short else "full_attention"]
    for kind in sorted(set(kinds)):
        if kind == "sliding_attention" and short:
            yield f"sliding_attention over {window} tokens is not implemented"
        elif kind not in ("full_attention", "sliding_attention"):
            yield f"layers of type {kind} are not implemented"


def _rope_types(parameters: Any) -> Iterator[str]:
    """Rotary schemes; some networks have one for each kind of layer."""
    if isinstance(parameters, Mapping):
        if "rope_type" in parameters:
            yield str(parameters["rope_type"])
        for value in parameters.values():
            yield from _rope_types(value)
