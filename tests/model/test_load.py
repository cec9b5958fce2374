"""Checkpoints survive the round trip, and a bad one is refused by name."""

import json
import resource
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from model.formats import CheckpointError
from model.k2 import K2
from model.load import export_tensors, load_k2, save_k2


def _change(folder: Path, change: Callable[[dict[str, torch.Tensor]], object]) -> None:
    tensors = load_file(folder / "model.safetensors")
    change(tensors)
    save_file(tensors, folder / "model.safetensors")


@pytest.fixture
def folder(make_small: Callable[..., K2], tmp_path: Path) -> Path:
    save_k2(make_small(), tmp_path / "k2", torch.float32)
    return tmp_path / "k2"


@pytest.mark.parametrize("shard_bytes", [10**9, 40_000])
def test_round_trip(make_small: Callable[..., K2], tmp_path: Path, shard_bytes: int) -> None:
    model = make_small()
    save_k2(model, tmp_path / "k2", torch.float32, shard_bytes=shard_bytes)
    assert (len(list(tmp_path.glob("k2/*.safetensors"))) > 1) == (shard_bytes == 40_000)
    loaded = load_k2(tmp_path / "k2")
    assert loaded.config == model.config
    for name, tensor in model.state_dict().items():
        assert torch.equal(tensor, loaded.state_dict()[name]), name


def test_released_names_and_precisions(make_small: Callable[..., K2]) -> None:
    model = make_small()
    exported = dict(export_tensors(model, torch.bfloat16))
    assert len(exported) == 3 + 3 * 9 + 3 + 2 * (2 + 3 + 3 * 8)
    experts = model.state_dict()["model.layers.1.mlp.experts.gate_up_proj"]
    up = exported["model.layers.1.mlp.experts.7.up_proj.weight"]
    assert torch.equal(up, experts[7, 12:].bfloat16())
    wide = [name for name, tensor in exported.items() if tensor.dtype != torch.bfloat16]
    assert wide == [f"model.layers.{layer}.mlp.gate.e_score_correction_bias" for layer in (1, 2)]


def test_bfloat16_round_trip_keeps_the_router_bias(
    make_small: Callable[..., K2], tmp_path: Path
) -> None:
    model = make_small()
    save_k2(model, tmp_path / "k2")
    loaded = load_k2(tmp_path / "k2", dtype=torch.bfloat16).state_dict()
    assert loaded["lm_head.weight"].dtype == torch.bfloat16
    bias = "model.layers.2.mlp.gate.e_score_correction_bias"
    assert torch.equal(loaded[bias], model.state_dict()[bias])


@pytest.mark.parametrize(
    ("change", "says"),
    [
        (lambda t: t.pop("lm_head.weight"), "missing tensors: lm_head.weight"),
        (lambda t: t.update(surprise=torch.ones(1)), "does not have: surprise"),
        (
            lambda t: t.update({"model.norm.weight": torch.ones(31)}),
            r"model.norm.weight has shape \[31\], the config asks for \[32\]",
        ),
        (lambda t: t.update({"model.norm.weight": torch.ones(32, dtype=torch.int8)}), "quantised"),
    ],
)
def test_bad_tensors_are_named(
    folder: Path, change: Callable[[dict[str, torch.Tensor]], object], says: str
) -> None:
    _change(folder, change)
    with pytest.raises(CheckpointError, match=says):
        load_k2(folder)


def test_derived_rotary_frequencies_are_passed_over(folder: Path) -> None:
    before = load_k2(folder).state_dict()
    _change(
        folder, lambda t: t.update({"model.layers.0.self_attn.rotary_emb.inv_freq": torch.ones(32)})
    )
    after = load_k2(folder).state_dict()
    assert after.keys() == before.keys()
    assert all(torch.equal(after[name], before[name]) for name in before)


@pytest.mark.parametrize("keep", [0, 5, 1000, -100])
def test_truncated_file(folder: Path, keep: int) -> None:
    file = folder / "model.safetensors"
    file.write_bytes(file.read_bytes()[:keep])
    with pytest.raises(CheckpointError, match=r"model.safetensors is truncated or corrupt"):
        load_k2(folder)


def test_missing_folder_files_and_shards(
    make_small: Callable[..., K2], folder: Path, tmp_path: Path
) -> None:
    with pytest.raises(CheckpointError, match="no checkpoint folder at"):
        load_k2(tmp_path / "nowhere")
    (folder / "model.safetensors").unlink()
    with pytest.raises(CheckpointError, match="no weights in"):
        load_k2(folder)
    (folder / "config.json").unlink()
    with pytest.raises(CheckpointError, match=r"cannot read .*config.json"):
        load_k2(folder)
    save_k2(make_small(), folder, shard_bytes=40_000)
    (folder / "model-00002-of-00003.safetensors").unlink(missing_ok=True)
    next(folder.glob("*.safetensors")).unlink()
    with pytest.raises(CheckpointError, match=r"lacks .*safetensors"):
        load_k2(folder)
    (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": 3}))
    with pytest.raises(CheckpointError, match="not a safetensors index"):
        load_k2(folder)


@pytest.fixture
def little_disk() -> Iterator[None]:
    """No file may grow past 50 kB."""
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (50_000, limits[1]))
    yield
    resource.setrlimit(resource.RLIMIT_FSIZE, limits)


@pytest.mark.usefixtures("little_disk")
def test_failed_write_leaves_the_previous_checkpoint(
    make_small: Callable[..., K2], tmp_path: Path
) -> None:
    model = make_small()
    save_k2(model, tmp_path / "k2", torch.float32, shard_bytes=30_000)
    other = make_small(vocab_size=49)
    with pytest.raises(CheckpointError, match=r"cannot write checkpoint .*k2"):
        save_k2(other, tmp_path / "k2", torch.float32)
    assert [entry.name for entry in tmp_path.iterdir()] == ["k2"]
    assert load_k2(tmp_path / "k2").config == model.config


def test_replaces_an_older_checkpoint(make_small: Callable[..., K2], folder: Path) -> None:
    (folder / "tokenizer.json").write_text("{}")
    save_k2(make_small(vocab_size=50), folder, tokenizer_from=folder)
    assert load_k2(folder).config.vocab_size == 50
    assert (folder / "tokenizer.json").read_text() == "{}"
    assert [entry.name for entry in folder.parent.iterdir()] == ["k2"]
