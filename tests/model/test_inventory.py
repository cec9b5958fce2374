"""The list of tensors against the networks themselves, built on the meta device, and spec 1.5."""

from collections.abc import Callable

import pytest
import torch
from transformers import (
    LlamaConfig,
    LlamaForCausalLM,
    MistralConfig,
    MistralForCausalLM,
    Qwen2Config,
    Qwen2ForCausalLM,
    Qwen3Config,
    Qwen3ForCausalLM,
    Qwen3MoeConfig,
    Qwen3MoeForCausalLM,
)

from model.gqa import GqaConfig, qwen3_0p6b
from model.inventory import (
    Architecture,
    Role,
    active_count,
    inventory,
    kv_values_per_token,
    parameter_count,
)
from model.k2 import K2
from model.k2_config import K2Config
from model.releases import deepseek_v3, kimi_k2_instruct, moonlight_16b
from model.tiny import tiny_config


def _listed(config: Architecture, *, buffers: bool = False) -> dict[str, tuple[int, ...]]:
    return {w.name: w.shape for w in inventory(config) if (w.role is Role.buffer) == buffers}


@pytest.mark.parametrize(
    "make", [kimi_k2_instruct, moonlight_16b, deepseek_v3, lambda: tiny_config(512)]
)
def test_k2_tensors_are_those_of_the_network(make: Callable[[], K2Config]) -> None:
    config = make()
    with torch.device("meta"):
        network = K2(config)
    assert _listed(config) == {n: tuple(p.shape) for n, p in network.named_parameters()}
    assert _listed(config, buffers=True) == {
        name: tuple(buffer.shape) for name, buffer in network.named_buffers()
    }


def test_gqa_tensors_are_those_of_transformers() -> None:
    sizes = {
        "vocab_size": 96, "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2,
        "num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 16,
    }  # fmt: skip
    dense = [
        GqaConfig(model_type=name, max_position_embeddings=64, **sizes)
        for name in ("qwen3", "qwen2", "llama", "mistral")
    ]
    experts = {"num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 24}
    moe = GqaConfig(model_type="qwen3_moe", max_position_embeddings=64, **sizes, **experts)
    with torch.device("meta"):
        networks = (
            Qwen3ForCausalLM(Qwen3Config(**sizes)),
            Qwen2ForCausalLM(Qwen2Config(**sizes)),
            LlamaForCausalLM(LlamaConfig(**sizes)),
            MistralForCausalLM(MistralConfig(**sizes)),
            Qwen3MoeForCausalLM(Qwen3MoeConfig(**sizes, **experts)),
        )
    for config, network in zip((*dense, moe), networks, strict=True):
        assert _listed(config) == {n: tuple(p.shape) for n, p in network.named_parameters()}


def test_k2_counts_are_those_of_the_table() -> None:
    config = kimi_k2_instruct()
    assert parameter_count(config) == 1_026_408_232_448
    assert active_count(config) == 32_861_500_928  # "32.86 B"
    parts = {role: sum(w.elements for w in inventory(config) if w.role is role) for role in Role}
    assert parts[Role.expert] == 60 * 384 * 3 * 7168 * 2048
    assert parts[Role.buffer] == 60 * 384
    assert parts[Role.adamw] == 2 * 163840 * 7168 + 61 * (2 * 7168 + 1536 + 512) + 7168
    assert sum(w.elements for w in inventory(config) if w.layer == 0) == (
        11_010_048 + 18_874_368 + 4_128_768 + 8_388_608 + 58_720_256  # MLA
        + 2048 + 14_336 + 3 * 7168 * 18432
    )  # fmt: skip
    assert kv_values_per_token(config) * 2 == 70_272  # bytes in bfloat16


def test_other_releases_have_their_known_sizes() -> None:
    assert parameter_count(qwen3_0p6b()) == 596_049_920
    assert kv_values_per_token(qwen3_0p6b()) == 28 * 2 * 8 * 128
    assert parameter_count(moonlight_16b()) == 15_960_110_208
    assert round(parameter_count(deepseek_v3()) / 1e9) == 671


def test_matrices_of_a_stack_are_counted_one_by_one() -> None:
    (gate_up,) = (
        w
        for w in inventory(tiny_config(512))
        if w.name == "model.layers.1.mlp.experts.gate_up_proj"
    )
    assert (gate_up.shape, gate_up.stacked, gate_up.matrix_elements) == ((16, 384, 256), 2, 49_152)
