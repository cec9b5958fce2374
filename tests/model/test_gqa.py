import json
from pathlib import Path

import pytest
from transformers import Qwen2Config, Qwen3Config, Qwen3MoeConfig

from model.gqa import GqaConfig, qwen3_0p6b
from model.inventory import parameter_count


def test_reads_what_transformers_writes(tmp_path: Path) -> None:
    Qwen3MoeConfig(num_experts=6, num_experts_per_tok=2, head_dim=32).save_pretrained(tmp_path)
    read = GqaConfig.from_json(tmp_path / "config.json")
    assert (read.num_experts, read.num_experts_per_tok, read.head_dim) == (6, 2, 32)
    assert read.qk_norm
    wide = Qwen3Config(hidden_size=1024, num_hidden_layers=28, head_dim=128, vocab_size=151936)
    wide.num_attention_heads, wide.num_key_value_heads = 16, 8
    wide.intermediate_size, wide.tie_word_embeddings = 3072, True
    wide.max_position_embeddings = 40960
    wide.save_pretrained(tmp_path)
    assert GqaConfig.from_json(tmp_path / "config.json") == qwen3_0p6b()


def test_qwen2_has_the_size_that_it_is_known_by(tmp_path: Path) -> None:
    Qwen2Config(
        vocab_size=151936,
        hidden_size=896,
        intermediate_size=4864,
        num_hidden_layers=24,
        num_attention_heads=14,
        num_key_value_heads=2,
        tie_word_embeddings=True,
    ).save_pretrained(tmp_path)
    read = GqaConfig.from_json(tmp_path / "config.json")
    assert (read.head_dim, read.qkv_bias, read.qk_norm) == (64, True, False)
    assert parameter_count(read) == 494_032_768  # Qwen2.5-0.5B


@pytest.mark.parametrize(
    ("key", "value", "message"),
    [
        ("model_type", "mamba", "model_type 'mamba' cannot be planned"),
        ("attention_bias", True, "attention_bias must be False, got True"),
        ("num_key_value_heads", 3, "must divide num_attention_heads 16, got 3"),
        ("hidden_size", 0, "hidden_size must be positive, got 0"),
        ("vocab_size", None, "missing keys: vocab_size"),
    ],
)
def test_what_the_arithmetic_does_not_know_is_refused(
    tmp_path: Path, key: str, value: object, message: str
) -> None:
    Qwen3Config(num_attention_heads=16, num_key_value_heads=8).save_pretrained(tmp_path)
    path = tmp_path / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {key: value}))
    with pytest.raises(ValueError, match=message) as caught:
        GqaConfig.from_json(path)
    assert str(path) in str(caught.value)
