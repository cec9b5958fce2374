"""What a config.json may say, and what is refused by name."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from transformers import AutoConfig

from model.config import K2Config, RopeScaling
from model.k2_config import tensor_prefix
from model.releases import deepseek_v3, kimi_k2_instruct, kimi_k2_thinking, kimi_k2p5, moonlight_16b
from model.tiny import tiny_config

# What the released files say beside the sizes.
RELEASED = {
    "architectures": ["DeepseekV3ForCausalLM"],
    "attention_bias": False,
    "attention_dropout": 0.0,
    "auto_map": {"AutoConfig": "configuration_deepseek.DeepseekV3Config"},
    "aux_loss_alpha": 0.001,
    "ep_size": 1,
    "hidden_act": "silu",
    "initializer_range": 0.02,
    "model_type": "kimi_k2",
    "moe_layer_freq": 1,
    "norm_topk_prob": True,
    "num_nextn_predict_layers": 0,
    "pretraining_tp": 1,
    "quantization_config": {"quant_method": "fp8", "weight_block_size": [128, 128]},
    "scoring_func": "sigmoid",
    "seq_aux": True,
    "tie_word_embeddings": False,
    "topk_method": "noaux_tc",
    "torch_dtype": "bfloat16",
    "transformers_version": "4.48.3",
    "use_cache": True,
}


def _written(path: Path, **changes: Any) -> Path:
    """The tiny network's config.json with some keys changed, or left out by `...`."""
    tiny_config(512).to_json(path / "config.json")
    raw = json.loads((path / "config.json").read_text())
    for key, value in changes.items():
        raw.pop(key, None) if value is ... else raw.update({key: value})
    (path / "config.json").write_text(json.dumps(raw))
    return path / "config.json"


def _sizes(config: K2Config, path: Path) -> dict[str, Any]:
    """The keys of K2Config as JSON has them."""
    config.to_json(path / "sizes.json")
    raw = json.loads((path / "sizes.json").read_text())
    return {key: raw[key] for key in K2Config.__annotations__}


@pytest.mark.parametrize(
    "release", [kimi_k2_instruct, kimi_k2_thinking, kimi_k2p5, moonlight_16b, deepseek_v3]
)
def test_round_trip(release: Callable[[], K2Config], tmp_path: Path) -> None:
    release().to_json(tmp_path / "config.json")
    loaded = K2Config.from_json(tmp_path / "config.json")
    # What is exported has no multi-token-prediction layers.
    assert loaded.num_nextn_predict_layers == 0
    loaded.num_nextn_predict_layers = release().num_nextn_predict_layers
    assert loaded == release()


@pytest.mark.parametrize("release", [kimi_k2_instruct, moonlight_16b, deepseek_v3])
def test_transformers_reads_the_same_and_writes_it_back(
    release: Callable[[], K2Config], tmp_path: Path
) -> None:
    release().to_json(tmp_path / "config.json")
    AutoConfig.from_pretrained(tmp_path).save_pretrained(tmp_path / "again")
    again = K2Config.from_json(tmp_path / "again" / "config.json")
    again.num_nextn_predict_layers = release().num_nextn_predict_layers
    assert again == release()


def test_released_files(tmp_path: Path) -> None:
    path = tmp_path / "config.json"
    path.write_text(json.dumps(_sizes(kimi_k2_instruct(), tmp_path) | RELEASED))
    assert K2Config.from_json(path) == kimi_k2_instruct()
    assert tensor_prefix(path) == ""
    moonlight = RELEASED | {"model_type": "deepseek_v3", "pad_token_id": None}
    path.write_text(json.dumps(_sizes(moonlight_16b(), tmp_path) | moonlight))
    assert K2Config.from_json(path).q_lora_rank is None
    assert K2Config.from_json(path).rope_scaling is None


def test_the_text_part_of_k2p5(tmp_path: Path) -> None:
    path = tmp_path / "config.json"
    outer = {
        "architectures": ["KimiK25ForConditionalGeneration"],
        "model_type": "kimi_k25",
        "media_placeholder_token_id": 163605,
        "vision_config": {"hidden_size": 1152},
        "text_config": _sizes(kimi_k2p5(), tmp_path) | RELEASED,
    }
    path.write_text(json.dumps(outer))
    assert K2Config.from_json(path) == kimi_k2p5()
    assert tensor_prefix(path) == "language_model."


def test_the_mtp_layers_of_deepseek_v3_are_passed_over(tmp_path: Path) -> None:
    path = tmp_path / "config.json"
    mtp = {"model_type": "deepseek_v3", "num_nextn_predict_layers": 1}
    path.write_text(json.dumps(_sizes(deepseek_v3(), tmp_path) | RELEASED | mtp))
    config = K2Config.from_json(path)
    assert config == deepseek_v3()
    assert config.mtp_prefixes == ("model.layers.61.",)
    assert kimi_k2_instruct().mtp_prefixes == ()


def test_reads_what_transformers_5_writes(tmp_path: Path) -> None:
    rope = {"rope_type": "yarn", "type": "yarn", "rope_theta": 50000.0, "factor": 32.0}
    rope |= {"beta_fast": 1.0, "beta_slow": 1.0, "mscale": 1.0, "mscale_all_dim": 1.0}
    path = _written(
        tmp_path,
        rope_scaling=...,
        rope_theta=...,
        scoring_func=...,
        topk_method=...,
        rope_parameters=rope | {"original_max_position_embeddings": 4096},
        head_dim=64,
        qk_head_dim=128,
    )
    assert K2Config.from_json(path) == tiny_config(512)


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"scoring_func": "softmax"}, "scoring_func must be 'sigmoid', got 'softmax'"),
        ({"topk_method": "greedy"}, "topk_method must be 'noaux_tc', got 'greedy'"),
        ({"tie_word_embeddings": True}, "tie_word_embeddings must be False, got True"),
        ({"attention_dropout": 0.1}, "attention_dropout must be 0.0, got 0.1"),
        ({"head_dim": 32}, "head_dim must be 64, got 32"),
        ({"index_topk": 2048}, "index_topk = 2048 is not known"),
        ({"sliding_window": 4096}, "sliding_window = 4096 is not known"),
        ({"hidden_size": ...}, "missing keys: hidden_size"),
        ({"q_lora_rank": ...}, "missing keys: q_lora_rank"),
        ({"n_group": ..., "topk_group": None}, "missing keys: n_group, topk_group"),
        ({"hidden_size": "wide"}, "hidden_size must be a whole number, got 'wide'"),
        ({"hidden_size": 256.0}, "hidden_size must be a whole number, got 256.0"),
        ({"rms_norm_eps": "small"}, "rms_norm_eps must be a number, got 'small'"),
        ({"q_lora_rank": 0}, "q_lora_rank must be positive, got 0"),
        ({"num_experts_per_tok": 17}, "num_experts_per_tok must be at most n_routed_experts"),
        ({"n_group": 3, "topk_group": 2}, "n_group must divide n_routed_experts (16)"),
        ({"n_group": 16, "topk_group": 2}, "into groups of at least 2, got 16"),
        ({"n_group": 8, "topk_group": 9}, "topk_group must be at most n_group (8)"),
        ({"n_group": 8, "topk_group": 1, "num_experts_per_tok": 3}, "leave num_experts_per_tok"),
        ({"rope_scaling": {"type": "linear", "factor": 2}}, "rope_scaling"),
        ({"rope_scaling": {"type": "yarn", "factor": 32}}, "rope_scaling lacks beta_fast"),
        ({"vocab_size": 100}, "below vocab_size 100"),
        ({"model_type": "qwen3_moe"}, "must be one of kimi_k2, deepseek_v3, got 'qwen3_moe'"),
        ({"model_type": ...}, "got None: another architecture"),
        ({"architectures": ["Qwen3MoeForCausalLM"]}, "got 'Qwen3MoeForCausalLM'"),
    ],
)
def test_refuses_by_name(tmp_path: Path, changes: dict[str, Any], says: str) -> None:
    with pytest.raises(ValueError) as caught:
        K2Config.from_json(_written(tmp_path, **changes))
    assert says in str(caught.value) and "config.json" in str(caught.value)


@pytest.mark.parametrize(
    "changes",
    [
        {"quantization_config": {"quant_method": "fp8"}},
        {"sliding_window": None},
        {"eos_token_id": 1},
    ],
)
def test_keys_that_change_nothing_here_are_read_over(
    tmp_path: Path, changes: dict[str, Any]
) -> None:
    loaded = K2Config.from_json(_written(tmp_path, **changes))
    assert loaded.hidden_size == 256 and loaded.num_hidden_layers == 3


def test_missing_and_corrupt_files(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"^cannot read .*config.json"):
        K2Config.from_json(tmp_path / "config.json")
    (tmp_path / "config.json").write_text('{"vocab_size": 5')
    with pytest.raises(ValueError, match="not valid JSON"):
        K2Config.from_json(tmp_path / "config.json")
    (tmp_path / "config.json").write_text("[]")
    with pytest.raises(ValueError, match=r"config.json must hold a JSON object, got list"):
        K2Config.from_json(tmp_path / "config.json")


def test_the_ramp_must_rise() -> None:
    with pytest.raises(ValueError, match="beta_fast >= beta_slow"):
        RopeScaling(beta_fast=0.5)
