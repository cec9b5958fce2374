"""Released names, and which numbers a checkpoint stores under them."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from compressed_tensors.quantization import QuantizationConfig

from kernels import fp8, int4
from model.formats import (
    CheckpointError,
    Quantised,
    is_quantised,
    quantisation_config,
    release,
    store,
    stored_quantisation,
)

LAYER = "model.layers.1."
EXPERT = f"{LAYER}mlp.experts.0.up_proj.weight"


def _folder(tmp_path: Path, **config: Any) -> Path:
    (tmp_path / "config.json").write_text(json.dumps(config))
    return tmp_path


def test_experts_are_released_one_by_one() -> None:
    gate_up = torch.arange(24.0).view(2, 4, 3)
    released = dict(release(f"{LAYER}mlp.experts.gate_up_proj", gate_up, first_expert=6))
    assert list(released) == [
        f"{LAYER}mlp.experts.{place}_proj.weight" for place in ("6.gate", "6.up", "7.gate", "7.up")
    ]
    assert torch.equal(released[f"{LAYER}mlp.experts.7.up_proj.weight"], gate_up[1, 2:])
    released[f"{LAYER}mlp.experts.6.gate_proj.weight"].zero_()  # a view: this is how they are read
    assert gate_up[0, :2].abs().max() == 0
    down = torch.ones(2, 3, 2)
    assert [name for name, _ in release(f"{LAYER}mlp.experts.down_proj", down)] == [
        f"{LAYER}mlp.experts.0.down_proj.weight",
        f"{LAYER}mlp.experts.1.down_proj.weight",
    ]
    assert list(release("lm_head.weight", down)) == [("lm_head.weight", down)]


@pytest.mark.parametrize(
    ("name", "formats"),
    [
        ("mlp.experts.383.down_proj.weight", ["fp8", "int4"]),
        ("mlp.shared_experts.gate_proj.weight", ["fp8"]),
        ("mlp.up_proj.weight", ["fp8"]),
        ("self_attn.q_a_proj.weight", ["fp8"]),
        ("self_attn.q_b_proj.weight", ["fp8"]),
        ("self_attn.kv_a_proj_with_mqa.weight", ["fp8"]),
        ("self_attn.kv_b_proj.weight", ["fp8"]),
        ("self_attn.o_proj.weight", ["fp8"]),
        ("self_attn.q_a_layernorm.weight", []),
        ("mlp.gate.weight", []),
        ("mlp.gate.e_score_correction_bias", []),
        ("self_attn.q_proj.bias", []),
        ("input_layernorm.weight", []),
    ],
)
def test_what_is_quantised(name: str, formats: list[str]) -> None:
    found = [each.value for each in Quantised if is_quantised(LAYER + name, each)]
    assert found == formats
    assert not is_quantised(LAYER + name, None)


@pytest.mark.parametrize("name", ["model.embed_tokens.weight", "lm_head.weight"])
def test_embedding_and_head_are_not_quantised(name: str) -> None:
    assert not any(is_quantised(name, each) for each in Quantised)


def test_parts_of_an_int4_tensor() -> None:
    weight = torch.randn(3, 64, generator=torch.Generator().manual_seed(0))
    parts = dict(store(EXPERT, weight, torch.bfloat16, Quantised.int4))
    expected = {"_packed": torch.int32, "_scale": torch.bfloat16, "_shape": torch.int32}
    assert {name: part.dtype for name, part in parts.items()} == {
        EXPERT + end: dtype for end, dtype in expected.items()
    }
    assert [list(part.shape) for part in parts.values()] == [[3, 8], [3, 2], [2]]
    assert parts[f"{EXPERT}_shape"].tolist() == [3, 64]
    ((name, unpacked),) = store(EXPERT, weight, torch.bfloat16, Quantised.int4, unpacked=True)
    stored = int4.Int4(parts[f"{EXPERT}_packed"], parts[f"{EXPERT}_scale"])
    assert name == EXPERT
    assert torch.equal(unpacked, int4.dequantise(stored, torch.bfloat16))


def test_parts_of_an_fp8_tensor() -> None:
    weight = torch.randn(130, 64, generator=torch.Generator().manual_seed(0))
    parts = dict(store(EXPERT, weight, torch.bfloat16, Quantised.fp8))
    assert list(parts) == [EXPERT, f"{EXPERT}_scale_inv"]
    assert [part.dtype for part in parts.values()] == [torch.float8_e4m3fn, torch.float32]
    assert list(parts[f"{EXPERT}_scale_inv"].shape) == [2, 1]
    ((name, unpacked),) = store(EXPERT, weight, torch.float32, Quantised.fp8, unpacked=True)
    assert name == EXPERT
    assert torch.equal(unpacked, fp8.dequantise(fp8.Fp8(*parts.values()), torch.float32))


@pytest.mark.parametrize("quantised", [None, *Quantised])
def test_other_tensors_are_plain(quantised: Quantised | None) -> None:
    bias = f"{LAYER}mlp.gate.e_score_correction_bias"
    for name, dtype in (("model.norm.weight", torch.bfloat16), (bias, torch.float32)):
        ((same, tensor),) = store(name, torch.ones(4), torch.bfloat16, quantised)
        assert (same, tensor.dtype) == (name, dtype)


@pytest.mark.parametrize("quantised", list(Quantised))
@pytest.mark.parametrize("nested", [False, True])
def test_our_formats_are_recognised(tmp_path: Path, quantised: Quantised, nested: bool) -> None:
    settings = {"quantization_config": quantisation_config(quantised)}
    folder = _folder(tmp_path, **({"text_config": settings} if nested else settings))
    assert stored_quantisation(folder) is quantised


def test_plain_checkpoints_name_no_format(tmp_path: Path) -> None:
    assert stored_quantisation(_folder(tmp_path, text_config={"hidden_size": 3})) is None
    assert stored_quantisation(_folder(tmp_path, quantization_config=None)) is None


def test_compressed_tensors_understands_our_settings() -> None:
    config = QuantizationConfig.model_validate(quantisation_config(Quantised.int4))
    weights = config.config_groups["group_0"].weights
    assert (config.format, weights.num_bits, weights.group_size) == ("pack-quantized", 4, 32)
    assert (weights.symmetric, weights.strategy, weights.type) == (True, "group", "int")


@pytest.mark.parametrize(
    ("settings", "says"),
    [
        ({"quant_method": "awq"}, r"quant_method must be 'fp8' or .*, got 'awq'"),
        ({"quant_method": "fp8"}, r"weight_block_size must be \[128, 128\], got None"),
        (
            {"quant_method": "fp8", "weight_block_size": [1, 32]},
            r"weight_block_size must be \[128, 128\], got \[1, 32\]",
        ),
        (
            {"quant_method": "fp8", "fmt": "e5m2", "weight_block_size": [128, 128]},
            "fmt must be 'e4m3' or None, got 'e5m2'",
        ),
        (
            {"quant_method": "compressed-tensors", "format": "float-quantized"},
            "format must be 'pack-quantized', got 'float-quantized'",
        ),
        ("int4", "quantization_config must be an object, got 'int4'"),
    ],
)
def test_unknown_formats_are_refused_by_name(tmp_path: Path, settings: Any, says: str) -> None:
    folder = _folder(tmp_path, quantization_config=settings)
    with pytest.raises(CheckpointError, match=rf"config.json: .*{says}"):
        stored_quantisation(folder)


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("num_bits", 8),
        ("type", "float"),
        ("symmetric", False),
        ("strategy", "channel"),
        ("group_size", 128),
        ("actorder", "group"),
    ],
)
def test_unknown_int4_weights_are_refused_by_name(tmp_path: Path, key: str, value: Any) -> None:
    settings = quantisation_config(Quantised.int4)
    settings["config_groups"]["group_0"]["weights"][key] = value
    folder = _folder(tmp_path, quantization_config=settings)
    with pytest.raises(CheckpointError, match=rf"config_groups.group_0.weights.{key} must be"):
        stored_quantisation(folder)


def test_quantised_activations_and_caches_are_refused(tmp_path: Path) -> None:
    settings = quantisation_config(Quantised.int4)
    settings["config_groups"]["group_0"]["input_activations"] = {"num_bits": 8}
    with pytest.raises(CheckpointError, match=r"group_0.input_activations must be None"):
        stored_quantisation(_folder(tmp_path, quantization_config=settings))
    settings = quantisation_config(Quantised.int4) | {"kv_cache_scheme": {"num_bits": 8}}
    with pytest.raises(CheckpointError, match="kv_cache_scheme must be None"):
        stored_quantisation(_folder(tmp_path, quantization_config=settings))


def test_no_groups_are_refused(tmp_path: Path) -> None:
    settings = quantisation_config(Quantised.int4) | {"config_groups": {}}
    with pytest.raises(CheckpointError, match="config_groups must name a group"):
        stored_quantisation(_folder(tmp_path, quantization_config=settings))
