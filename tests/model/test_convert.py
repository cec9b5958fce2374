"""A checkpoint in another format, without building the network."""

import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from model.convert import convert_checkpoint
from model.formats import CheckpointError, Quantised
from model.k2 import K2
from model.load import load_k2, save_k2


@pytest.fixture
def masters(make_small: Callable[..., K2], tmp_path: Path) -> Path:
    model = make_small(moe_intermediate_size=32)
    save_k2(model, tmp_path / "masters", torch.float32, shard_bytes=30_000)
    (tmp_path / "masters" / "tokenizer.json").write_text("{}")
    return tmp_path / "masters"


def _tensors(folder: Path) -> dict[str, torch.Tensor]:
    return {n: t for file in folder.glob("*.safetensors") for n, t in load_file(file).items()}


@pytest.mark.parametrize("quantised", [None, *Quantised])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_is_what_the_network_would_write(
    masters: Path, tmp_path: Path, quantised: Quantised | None, dtype: torch.dtype
) -> None:
    convert_checkpoint(masters, tmp_path / "new", dtype, quantised=quantised, shard_bytes=10_000)
    save_k2(load_k2(masters), tmp_path / "saved", dtype, quantised=quantised)
    found, expected = _tensors(tmp_path / "new"), _tensors(tmp_path / "saved")
    assert found.keys() == expected.keys()
    for name, tensor in expected.items():
        assert found[name].dtype == tensor.dtype
        assert torch.equal(found[name].float(), tensor.float()), name
    settings = [json.loads((tmp_path / f / "config.json").read_text()) for f in ("new", "saved")]
    assert settings[0] == settings[1]
    assert (tmp_path / "new" / "tokenizer.json").read_text() == "{}"
    assert sorted(entry.name for entry in tmp_path.iterdir()) == ["masters", "new", "saved"]


@pytest.mark.parametrize("quantised", list(Quantised))
def test_there_and_back(masters: Path, tmp_path: Path, quantised: Quantised) -> None:
    convert_checkpoint(masters, tmp_path / "few", quantised=quantised, dtype=torch.float32)
    convert_checkpoint(tmp_path / "few", tmp_path / "plain", dtype=torch.float32)
    assert "quantization_config" not in json.loads((tmp_path / "plain/config.json").read_text())
    convert_checkpoint(tmp_path / "plain", tmp_path / "again", torch.float32, quantised=quantised)
    first, again = _tensors(tmp_path / "few"), _tensors(tmp_path / "again")
    assert first.keys() == again.keys()
    for name, tensor in first.items():
        assert torch.equal(tensor.float(), again[name].float()), name


def test_refuses_what_cannot_be_stored(make_small: Callable[..., K2], tmp_path: Path) -> None:
    save_k2(make_small(first_k_dense_replace=3, moe_intermediate_size=32), tmp_path / "dense")
    with pytest.raises(CheckpointError, match="no tensor of this network is stored in int4"):
        convert_checkpoint(tmp_path / "dense", tmp_path / "new", quantised=Quantised.int4)
    save_k2(make_small(), tmp_path / "narrow")
    with pytest.raises(CheckpointError, match=r"down_proj.weight has rows of 12, INT4 needs"):
        convert_checkpoint(tmp_path / "narrow", tmp_path / "new", quantised=Quantised.int4)
    assert not (tmp_path / "new").exists()


def test_damage_is_named_and_leaves_nothing(masters: Path, tmp_path: Path) -> None:
    convert_checkpoint(masters, tmp_path / "fp8", quantised=Quantised.fp8)
    tensors = load_file(tmp_path / "fp8/model.safetensors")
    del tensors["model.layers.0.self_attn.o_proj.weight_scale_inv"]
    save_file(tensors, tmp_path / "fp8/model.safetensors")
    with pytest.raises(CheckpointError, match=r"missing tensors: .*o_proj.weight_scale_inv$"):
        convert_checkpoint(tmp_path / "fp8", tmp_path / "new")
    with pytest.raises(CheckpointError, match="no checkpoint folder at"):
        convert_checkpoint(tmp_path / "nowhere", tmp_path / "new")
    assert sorted(entry.name for entry in tmp_path.iterdir()) == ["fp8", "masters"]
