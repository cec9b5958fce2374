"""What a config.json may say, and what is refused by name."""

import json
from pathlib import Path
from typing import Any

import pytest

from model.config import K2Config, MuonClipConfig, RopeScaling
from model.tiny import tiny_config


def _written(path: Path, **changes: Any) -> Path:
    tiny_config(512).to_json(path / "config.json")
    raw = json.loads((path / "config.json").read_text())
    for key, value in changes.items():
        raw.pop(key, None) if value is ... else raw.update({key: value})
    (path / "config.json").write_text(json.dumps(raw))
    return path / "config.json"


def test_round_trip(tmp_path: Path) -> None:
    assert K2Config.from_json(_written(tmp_path)) == tiny_config(512)


def test_reads_what_transformers_5_writes(tmp_path: Path) -> None:
    config = tiny_config(512)
    rope = {
        "rope_type": "yarn",
        "type": "yarn",
        "rope_theta": 50000.0,
        "factor": 32.0,
        "beta_fast": 1.0,
    }
    rope |= {
        "beta_slow": 1.0,
        "mscale": 1.0,
        "mscale_all_dim": 1.0,
        "original_max_position_embeddings": 4096,
    }
    path = _written(
        tmp_path,
        rope_scaling=...,
        rope_theta=...,
        scoring_func=...,
        topk_method=...,
        rope_parameters=rope,
    )
    assert K2Config.from_json(path) == config


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"scoring_func": "softmax"}, "scoring_func must be 'sigmoid', got 'softmax'"),
        ({"n_group": 8}, "n_group must be 1, got 8"),
        ({"tie_word_embeddings": True}, "tie_word_embeddings must be False, got True"),
        ({"num_nextn_predict_layers": 1}, "num_nextn_predict_layers must be 0, got 1"),
        ({"quantization_config": {"quant_method": "fp8"}}, "quantization_config must be None"),
        ({"hidden_size": ...}, "missing keys: hidden_size"),
        ({"hidden_size": "wide"}, "hidden_size must be a number, got 'wide'"),
        ({"num_experts_per_tok": 17}, "num_experts_per_tok must be at most n_routed_experts"),
        ({"q_lora_rank": None}, "missing keys: q_lora_rank"),
        ({"rope_scaling": {"type": "linear", "factor": 2}}, "rope_scaling"),
        ({"rope_scaling": {"type": "yarn", "factor": 32}}, "rope_scaling lacks beta_fast"),
        ({"vocab_size": 100}, "below vocab_size 100"),
    ],
)
def test_refuses_by_name(tmp_path: Path, changes: dict[str, Any], says: str) -> None:
    with pytest.raises(ValueError) as caught:
        K2Config.from_json(_written(tmp_path, **changes))
    assert says in str(caught.value) and "config.json" in str(caught.value)


def test_missing_and_corrupt_files(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"cannot read .*config.json"):
        K2Config.from_json(tmp_path / "config.json")
    (tmp_path / "config.json").write_text('{"vocab_size": 5')
    with pytest.raises(ValueError, match="not valid JSON"):
        K2Config.from_json(tmp_path / "config.json")


def test_settings_of_the_optimiser_and_the_rotation_are_checked() -> None:
    with pytest.raises(ValueError, match=r"muonclip.momentum must be in \[0, 1\), got 1.5"):
        MuonClipConfig(momentum=1.5)
    with pytest.raises(ValueError, match=r"muonclip\.adam_betas"):
        MuonClipConfig(adam_betas=[0.9])
    with pytest.raises(ValueError, match="beta_fast >= beta_slow"):
        RopeScaling(beta_fast=0.5)
