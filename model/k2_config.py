"""The K2 network's settings, and the config.json of every release. Light: imports nothing heavy."""

import json
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import Any

MODEL_TYPES = ("kimi_k2", "deepseek_v3")
ARCHITECTURES = ("DeepseekV3ForCausalLM", "KimiK25ForConditionalGeneration")
# K2.5 keeps the text network's settings under this key and its tensors under this prefix.
NESTED = "text_config"
NESTED_PREFIX = "language_model."

# What a config.json may say of parts that have one form only in our network. Any other value is
# refused, not ignored.
ONLY_VALUES: dict[str, Any] = {
    "attention_bias": False,
    "attention_dropout": 0.0,
    "hidden_act": "silu",
    "moe_layer_freq": 1,
    "norm_topk_prob": True,
    "rope_interleave": True,
    "scoring_func": "sigmoid",
    "tie_word_embeddings": False,
    "topk_method": "noaux_tc",
}
# Keys that do not change the network: balancing losses (off in RL), how it is stored, run or
# sampled from. A key that is in no list is refused unless its value says nothing.
# fmt: off
IDLE_KEYS = frozenset({
    "_attn_implementation", "_attn_implementation_autoset", "_commit_hash", "_name_or_path",
    "architectures", "auto_map", "aux_loss_alpha", "dtype", "ep_size", "id2label", "label2id",
    "length_penalty", "max_length", "model_type", "num_beam_groups", "num_beams",
    "num_return_sequences", "pretraining_tp", "quantization_config", "repetition_penalty",
    "return_dict", "seq_aux", "temperature", "tokenizer_class", "top_k", "top_p", "torch_dtype",
    "transformers_version", "typical_p", "use_cache",
})
# fmt: on


@dataclass(kw_only=True, slots=True)
class RopeScaling:
    """YaRN (spec 1.1). K2's beta_fast is 1, not YaRN's usual 32."""

    type: str = "yarn"
    factor: float = 32.0
    original_max_position_embeddings: int = 4096
    beta_fast: float = 1.0
    beta_slow: float = 1.0
    mscale: float = 1.0
    mscale_all_dim: float = 1.0

    def __post_init__(self) -> None:
        """Refuse what `model.rope` does not compute."""
        if self.type != "yarn":
            raise ValueError(f"rope_scaling.type must be 'yarn', got {self.type!r}")
        if self.factor < 1 or self.original_max_position_embeddings < 1:
            raise ValueError(
                "rope_scaling.factor and original_max_position_embeddings must be at least 1, "
                f"got {self.factor} and {self.original_max_position_embeddings}"
            )
        if self.beta_fast <= 0 or self.beta_slow <= 0 or self.beta_fast < self.beta_slow:
            raise ValueError(
                "rope_scaling needs beta_fast >= beta_slow > 0, "
                f"got beta_fast {self.beta_fast} and beta_slow {self.beta_slow}"
            )
        if self.mscale != self.mscale_all_dim:
            raise ValueError(
                "rope_scaling.mscale must equal mscale_all_dim (cos and sin are not scaled), "
                f"got {self.mscale} and {self.mscale_all_dim}"
            )


@dataclass(kw_only=True, slots=True)
class K2Config:
    """The network, with the keys of the released config.json. Defaults: K2-Instruct (spec 1.1)."""

    vocab_size: int = 163840
    hidden_size: int = 7168
    intermediate_size: int = 18432
    moe_intermediate_size: int = 2048
    num_hidden_layers: int = 61
    num_attention_heads: int = 64
    num_key_value_heads: int = 64
    n_shared_experts: int = 1
    n_routed_experts: int = 384
    num_experts_per_tok: int = 8
    n_group: int = 1
    """Experts are chosen from `topk_group` of this many groups."""
    topk_group: int = 1
    first_k_dense_replace: int = 1
    """Number of leading dense layers in the whole model."""
    routed_scaling_factor: float = 2.827
    q_lora_rank: int | None = 1536
    """None: queries come straight from the hidden states, by `q_proj`."""
    kv_lora_rank: int = 512
    qk_nope_head_dim: int = 128
    qk_rope_head_dim: int = 64
    v_head_dim: int = 128
    rms_norm_eps: float = 1e-6
    rope_theta: float = 50000.0
    rope_scaling: RopeScaling | None = field(default_factory=RopeScaling)
    max_position_embeddings: int = 131072
    initializer_range: float = 0.02
    num_nextn_predict_layers: int = 0
    """Multi-token-prediction layers stored after the others; not part of this network."""
    bos_token_id: int | None = 163584
    eos_token_id: int | None = 163586
    """<|im_end|>: what ends a turn."""
    pad_token_id: int | None = 163839

    def __post_init__(self) -> None:
        """Refuse sizes that cannot be built, by name."""
        for item in fields(self):
            value = getattr(self, item.name)
            if item.name == "rope_scaling" or (value is None and _optional(item.name)):
                continue
            if value < 0 or (value == 0 and not _may_be_zero(item.name)):
                raise ValueError(f"{item.name} must be positive, got {value}")
        if self.num_key_value_heads != self.num_attention_heads:
            raise ValueError(
                f"num_key_value_heads must equal num_attention_heads ({self.num_attention_heads}), "
                f"got {self.num_key_value_heads}"
            )
        if self.first_k_dense_replace > self.num_hidden_layers:
            most = f"num_hidden_layers ({self.num_hidden_layers})"
            raise ValueError(
                f"first_k_dense_replace must be at most {most}, got {self.first_k_dense_replace}"
            )
        if self.qk_rope_head_dim % 2:
            raise ValueError(f"qk_rope_head_dim must be even, got {self.qk_rope_head_dim}")
        for name in ("bos_token_id", "eos_token_id", "pad_token_id"):
            value = getattr(self, name)
            if value is not None and value >= self.vocab_size:
                raise ValueError(f"{name} must be below vocab_size {self.vocab_size}, got {value}")
        self._check_routing()

    def _check_routing(self) -> None:
        """Every token must find its experts in the groups that are left to it."""
        if self.num_experts_per_tok > self.n_routed_experts:
            raise ValueError(
                f"num_experts_per_tok must be at most n_routed_experts ({self.n_routed_experts}), "
                f"got {self.num_experts_per_tok}"
            )
        if self.n_group == 1 and self.topk_group == 1:
            return
        size = self.n_routed_experts // self.n_group
        if self.n_routed_experts % self.n_group or size < 2:
            raise ValueError(
                f"n_group must divide n_routed_experts ({self.n_routed_experts}) into groups of "
                f"at least 2, got {self.n_group}"
            )
        if not self.num_experts_per_tok / size <= self.topk_group <= self.n_group:
            raise ValueError(
                f"topk_group must be at most n_group ({self.n_group}) and leave "
                f"num_experts_per_tok ({self.num_experts_per_tok}) experts, got {self.topk_group}"
            )

    @property
    def mtp_prefixes(self) -> tuple[str, ...]:
        """What the names of stored tensors begin with that this network passes over."""
        first = self.num_hidden_layers
        return tuple(f"model.layers.{first + i}." for i in range(self.num_nextn_predict_layers))

    @classmethod
    def from_json(cls, path: str | Path) -> "K2Config":
        """Read a config.json, as released or as transformers 5 writes it (`rope_parameters`).

        Raises ValueError naming the file and the key.
        """
        try:
            return cls(**_values(text_settings(path)))
        except (TypeError, ValueError) as error:
            known = str(error).startswith(("cannot read", str(path)))
            raise ValueError(str(error) if known else f"{path}: {error}") from error

    def to_json(self, path: str | Path, dtype: str = "bfloat16") -> None:
        """Write a config.json that vLLM and transformers load unchanged.

        model_type is deepseek_v3, not kimi_k2: vLLM treats both alike, transformers knows only the
        former. Multi-token-prediction layers are not exported, so none are announced.
        """
        raw = {
            "architectures": [ARCHITECTURES[0]],
            "model_type": "deepseek_v3",
            **asdict(self),
            **ONLY_VALUES,
            "num_nextn_predict_layers": 0,
            "dtype": dtype,
        }
        Path(path).write_text(json.dumps(raw, indent=2) + "\n", encoding="utf-8")


def tensor_prefix(path: str | Path) -> str:
    """What stands before the names of this network's tensors in the files beside a config.json.

    Nothing or, in K2.5, "language_model."; its tensors without that belong to the vision part.
    """
    return NESTED_PREFIX if NESTED in _json_object(path) else ""


def text_settings(path: str | Path) -> dict[str, Any]:
    """The JSON object that describes the text network; refuses another architecture."""
    raw = _json_object(path)
    nested = raw.get(NESTED)
    text = nested if isinstance(nested, dict) else raw
    if text.get("model_type") not in MODEL_TYPES:
        raise ValueError(
            f"model_type must be one of {', '.join(MODEL_TYPES)}, got {text.get('model_type')!r}: "
            "another architecture"
        )
    for name in raw.get("architectures") or ():
        if name not in ARCHITECTURES:
            raise ValueError(f"architectures must be {ARCHITECTURES[0]!r}, got {name!r}")
    return text


def _json_object(path: str | Path) -> dict[str, Any]:
    try:
        raw = json.loads(Path(path).read_text(encoding="utf-8"))
    except OSError as error:
        raise ValueError(f"cannot read {path}: {error.strerror}") from error
    except ValueError as error:
        raise ValueError(f"{path} is not valid JSON: {error}") from error
    if not isinstance(raw, dict):
        raise ValueError(f"{path} must hold a JSON object, got {type(raw).__name__}")
    return raw


def _optional(name: str) -> bool:
    return name == "q_lora_rank" or name.endswith("_token_id")


def _may_be_zero(name: str) -> bool:
    counts = ("first_k_dense_replace", "num_nextn_predict_layers")
    return name in counts or name.endswith("_token_id")


def _values(raw: dict[str, Any]) -> dict[str, Any]:
    """Arguments of K2Config. Refuses every key that would be ignored though it says something."""
    names = [item.name for item in fields(K2Config)]
    rope = dict(raw.get("rope_parameters") or raw.get("rope_scaling") or {})
    values = {name: raw[name] for name in names if name in raw}
    values["rope_theta"] = rope.pop("rope_theta", None) or raw.get("rope_theta")
    mtp = raw.get("num_nextn_predict_layers") or raw.get("num_mtp_layers")
    values["num_nextn_predict_layers"] = mtp or 0
    values |= {name: raw.get(name) for name in names if name.endswith("_token_id")}
    # Libraries differ in their defaults: whatever makes the network must be said.
    said = {name for name, value in values.items() if value is not None or _optional(name)}
    if missing := [name for name in names if name not in {*said, "rope_scaling"}]:
        raise ValueError(f"missing keys: {', '.join(missing)}")
    for name, value in values.items():
        if name != "rope_scaling" and value is not None:
            _check_number(name, value)
    _refuse_ignored(raw, {*names, "rope_parameters", "num_mtp_layers"}, values)
    return values | {"rope_scaling": _rope_scaling(rope)}


def _check_number(name: str, value: object) -> None:
    whole = K2Config.__annotations__[name] is not float
    if isinstance(value, bool) or not isinstance(value, int if whole else int | float):
        raise ValueError(f"{name} must be a {'whole ' * whole}number, got {value!r}")


def _refuse_ignored(raw: dict[str, Any], known: set[str], values: dict[str, Any]) -> None:
    """Raise ValueError for a key that this network does not follow."""
    follows = ONLY_VALUES | {
        "head_dim": values["qk_rope_head_dim"],
        "qk_head_dim": values["qk_nope_head_dim"] + values["qk_rope_head_dim"],
    }
    for key, value in raw.items():
        if key in follows and value is not None and value != follows[key]:
            raise ValueError(
                f"{key} must be {follows[key]!r}, got {value!r}: not implemented by this network"
            )
        if key not in {*known, *follows, *IDLE_KEYS} and value not in (None, False, 0, "", [], {}):
            raise ValueError(
                f"{key} = {value!r} is not known to this network: remove it if it changes nothing"
            )


def _rope_scaling(rope: dict[str, Any]) -> RopeScaling | None:
    """YaRN settings from `rope_scaling` (key `type`) or `rope_parameters` (key `rope_type`)."""
    kind = rope.pop("rope_type", None) or rope.pop("type", None) or "default"
    rope.pop("type", None)
    if kind == "default":
        return None
    known = {item.name for item in fields(RopeScaling)}
    unknown = sorted(key for key, value in rope.items() if key not in known and value is not None)
    if unknown:
        raise ValueError(
            f"rope_scaling.{unknown[0]} = {rope[unknown[0]]!r} is not implemented by this network"
        )
    absent = sorted(known - {"type"} - {key for key, value in rope.items() if value is not None})
    if absent:
        raise ValueError(
            f"rope_scaling lacks {', '.join(absent)}: libraries differ in these defaults"
        )
    return RopeScaling(type=kind, **{key: rope[key] for key in known - {"type"}})
