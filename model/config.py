"""Settings of the K2 network and of its optimiser. Light: imports nothing heavy."""

import json
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import Any

# What a config.json may say of parts that have one form only in our network. Any other value is
# refused, not ignored.
ONLY_VALUES: dict[str, Any] = {
    "attention_bias": False,
    "hidden_act": "silu",
    "moe_layer_freq": 1,
    "n_group": 1,
    "norm_topk_prob": True,
    "num_mtp_layers": 0,
    "num_nextn_predict_layers": 0,
    "quantization_config": None,
    "rope_interleave": True,
    "scoring_func": "sigmoid",
    "tie_word_embeddings": False,
    "topk_group": 1,
    "topk_method": "noaux_tc",
}


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
        """Refuse what `model.k2.rope_frequencies` does not compute."""
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
    first_k_dense_replace: int = 1
    """Number of leading dense layers in the whole model."""
    routed_scaling_factor: float = 2.827
    q_lora_rank: int = 1536
    kv_lora_rank: int = 512
    qk_nope_head_dim: int = 128
    qk_rope_head_dim: int = 64
    v_head_dim: int = 128
    rms_norm_eps: float = 1e-6
    rope_theta: float = 50000.0
    rope_scaling: RopeScaling | None = field(default_factory=RopeScaling)
    max_position_embeddings: int = 131072
    initializer_range: float = 0.02
    bos_token_id: int = 163584
    eos_token_id: int = 163586
    """<|im_end|>: what ends a turn."""
    pad_token_id: int = 163839

    def __post_init__(self) -> None:
        """Refuse sizes that cannot be built, by name."""
        may_be_zero = ("first_k_dense_replace", "bos_token_id", "eos_token_id", "pad_token_id")
        for item in fields(self):
            value = getattr(self, item.name)
            if item.name == "rope_scaling":
                continue
            if value < 0 or (value == 0 and item.name not in may_be_zero):
                raise ValueError(f"{item.name} must be positive, got {value}")
        if self.num_key_value_heads != self.num_attention_heads:
            raise ValueError(
                f"num_key_value_heads must equal num_attention_heads ({self.num_attention_heads}), "
                f"got {self.num_key_value_heads}"
            )
        if self.num_experts_per_tok > self.n_routed_experts:
            raise ValueError(
                f"num_experts_per_tok must be at most n_routed_experts ({self.n_routed_experts}), "
                f"got {self.num_experts_per_tok}"
            )
        if self.first_k_dense_replace > self.num_hidden_layers:
            raise ValueError(
                "first_k_dense_replace must be at most num_hidden_layers "
                f"({self.num_hidden_layers}), got {self.first_k_dense_replace}"
            )
        if self.qk_rope_head_dim % 2:
            raise ValueError(f"qk_rope_head_dim must be even, got {self.qk_rope_head_dim}")
        for name in ("bos_token_id", "eos_token_id", "pad_token_id"):
            if getattr(self, name) >= self.vocab_size:
                raise ValueError(
                    f"{name} must be below vocab_size {self.vocab_size}, got {getattr(self, name)}"
                )

    @classmethod
    def from_json(cls, path: str | Path) -> "K2Config":
        """Read a config.json, as released or as transformers 5 writes it (`rope_parameters`)."""
        path = Path(path)
        try:
            raw = json.loads(path.read_text(encoding="utf-8"))
        except OSError as error:
            raise ValueError(f"cannot read {path}: {error.strerror}") from error
        except ValueError as error:
            raise ValueError(f"{path} is not valid JSON: {error}") from error
        if not isinstance(raw, dict):
            raise ValueError(f"{path} must hold a JSON object, got {type(raw).__name__}")
        try:
            return cls._from_dict(raw)
        except (TypeError, ValueError) as error:
            raise ValueError(f"{path}: {error}") from error

    @classmethod
    def _from_dict(cls, raw: dict[str, Any]) -> "K2Config":
        for key, only in ONLY_VALUES.items():
            if raw.get(key, only) != only:
                raise ValueError(
                    f"{key} must be {only!r}, got {raw[key]!r}: not implemented by this network"
                )
        rope = dict(raw.get("rope_parameters") or raw.get("rope_scaling") or {})
        values: dict[str, Any] = {
            item.name: raw[item.name] for item in fields(cls) if raw.get(item.name) is not None
        }
        values["rope_theta"] = rope.pop("rope_theta", None) or raw.get("rope_theta")
        needed = [item.name for item in fields(cls) if not item.name.endswith("_token_id")]
        missing = [key for key in needed if key != "rope_scaling" and values.get(key) is None]
        if missing:
            raise ValueError(f"missing keys: {', '.join(missing)}")
        for key, value in values.items():
            if key != "rope_scaling" and (
                isinstance(value, bool) or not isinstance(value, int | float)
            ):
                raise ValueError(f"{key} must be a number, got {value!r}")
        values["rope_scaling"] = _rope_scaling(rope)
        return cls(**values)

    def to_json(self, path: str | Path, dtype: str = "bfloat16") -> None:
        """Write a config.json that vLLM and transformers load unchanged.

        model_type is deepseek_v3, not kimi_k2: vLLM treats both alike, transformers knows only the
        former.
        """
        raw = {
            "architectures": ["DeepseekV3ForCausalLM"],
            "model_type": "deepseek_v3",
            **asdict(self),
            **{
                key: value
                for key, value in ONLY_VALUES.items()
                if value is not None and key != "num_mtp_layers"
            },
            "dtype": dtype,
        }
        Path(path).write_text(json.dumps(raw, indent=2) + "\n", encoding="utf-8")


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


@dataclass(kw_only=True, slots=True)
class MuonClipConfig:
    """MuonClip (spec 2). Learning rate and decay are shared by its Muon and its AdamW part."""

    learning_rate: float = 2e-6
    weight_decay: float = 0.1
    momentum: float = 0.95
    ns_steps: int = 5
    """Newton-Schulz iterations; more than 5 bring nothing."""
    adam_betas: list[float] = field(default_factory=lambda: [0.9, 0.95])
    adam_eps: float = 1e-8
    qk_clip_tau: float = 100.0
    """Largest attention logit a head may reach before its query and key weights are scaled down."""

    def __post_init__(self) -> None:
        """Refuse values that would diverge or do nothing, by name."""
        for name in ("learning_rate", "weight_decay"):
            if getattr(self, name) < 0:
                raise ValueError(f"muonclip.{name} must not be negative, got {getattr(self, name)}")
        for name in ("ns_steps", "adam_eps", "qk_clip_tau"):
            if getattr(self, name) <= 0:
                raise ValueError(f"muonclip.{name} must be positive, got {getattr(self, name)}")
        if not 0 <= self.momentum < 1:
            raise ValueError(f"muonclip.momentum must be in [0, 1), got {self.momentum}")
        if len(self.adam_betas) != 2 or not all(0 <= beta < 1 for beta in self.adam_betas):
            raise ValueError(
                f"muonclip.adam_betas must be two numbers in [0, 1), got {self.adam_betas}"
            )
