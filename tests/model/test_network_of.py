"""Which network a folder gets."""

import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from transformers import Qwen3Config, Qwen3ForCausalLM

from model.causal_lm import CausalLM
from model.checkpoint_reader import empty_network
from model.formats import CheckpointError
from model.k2 import K2
from model.load import save_k2
from model.network_of import is_k2


def test_k2_is_ours(make_small: Callable[..., K2], tmp_path: Path) -> None:
    save_k2(make_small(), tmp_path / "k2", torch.float32)
    assert is_k2(tmp_path / "k2")
    network = empty_network(tmp_path / "k2", compute_dtype=torch.float32, checkpoint_layers=True)
    assert isinstance(network, K2)
    assert network.checkpoint_layers


def test_others_are_of_transformers(tmp_path: Path) -> None:
    config = Qwen3Config(
        vocab_size=48,
        hidden_size=32,
        intermediate_size=40,
        num_hidden_layers=1,
        num_attention_heads=2,
        num_key_value_heads=2,
        head_dim=16,
    )
    Qwen3ForCausalLM(config).save_pretrained(tmp_path)
    assert not is_k2(tmp_path)
    network = empty_network(tmp_path, compute_dtype=torch.bfloat16)
    assert isinstance(network, CausalLM)
    assert network.compute_dtype == torch.bfloat16


@pytest.mark.parametrize(
    ("text", "says"),
    [
        (None, r"cannot read .*config.json"),
        ("{", "not valid JSON"),
        ("{}", "with a model_type"),
        (json.dumps({"model_type": "no_such"}), "model_type no_such is not"),
    ],
)
def test_bad_config(tmp_path: Path, text: str | None, says: str) -> None:
    if text is not None:
        (tmp_path / "config.json").write_text(text)
    with pytest.raises(CheckpointError, match=says):
        empty_network(tmp_path, compute_dtype=torch.float32)


def test_no_folder(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="no checkpoint folder at"):
        empty_network(tmp_path / "nowhere", compute_dtype=torch.float32)
