"""Checkpoints survive the round trip, and a bad one is refused by name."""

import json
import resource
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor
from transformers import AutoModelForCausalLM

from kernels.int4 import fake_quantise
from model.formats import CheckpointError, Quantised, quantisation_config
from model.k2 import K2
from model.load import export_tensors, load_k2, save_k2

# Sizes that INT4 can store, and that transformers can dequantise from FP8: it takes blocks to be of
# equal size.
SIZES = {
    "moe_intermediate_size": 32,
    "num_attention_heads": 8,
    "num_key_value_heads": 8,
    "v_head_dim": 16,
}


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
        (
            lambda t: t.update({"model.norm.weight": torch.ones(32, dtype=torch.int8)}),
            "stored as I8, not as BF16",
        ),
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


def _logits(model: K2, ids: Tensor) -> Tensor:
    return model.lm_head(model(ids, [len(ids)]).hidden)


def _ids() -> Tensor:
    # No padding token: transformers would mask it.
    return torch.randint(3, 48, (70,), generator=torch.Generator().manual_seed(1))


@pytest.mark.parametrize("quantised", list(Quantised))
def test_quantised_round_trip(
    make_small: Callable[..., K2], tmp_path: Path, quantised: Quantised
) -> None:
    model = make_small(**SIZES)
    save_k2(model, tmp_path / "once", torch.float32, quantised=quantised, shard_bytes=20_000)
    loaded = load_k2(tmp_path / "once")
    assert loaded.config == model.config
    expected = dict(export_tensors(model, torch.float32, quantised, unpacked=True))
    found = dict(export_tensors(loaded, torch.float32))
    assert found.keys() == expected.keys()
    for name, tensor in expected.items():
        assert torch.equal(found[name], tensor), name
    save_k2(loaded, tmp_path / "twice", torch.float32, quantised=quantised, shard_bytes=20_000)
    files = sorted(file.name for file in (tmp_path / "once").iterdir())
    assert files == sorted(file.name for file in (tmp_path / "twice").iterdir())
    for file in files:
        assert (tmp_path / "once" / file).read_bytes() == (tmp_path / "twice" / file).read_bytes()


@pytest.mark.parametrize("compute", [torch.float32, torch.bfloat16])
def test_int4_training_computes_what_is_exported(
    make_small: Callable[..., K2], tmp_path: Path, compute: torch.dtype
) -> None:
    trained = make_small(**SIZES)
    save_k2(trained, tmp_path / "masters", torch.float32)
    trained = load_k2(tmp_path / "masters", compute_dtype=compute, int4_experts=True)
    # The weights move off any grid that they were on.
    _logits(trained, _ids()).square().mean().backward()
    with torch.no_grad():
        for parameter in trained.parameters():
            parameter -= 0.3 * parameter.grad
    save_k2(trained, tmp_path / "int4", torch.float32, quantised=Quantised.int4)
    served = load_k2(tmp_path / "int4", compute_dtype=compute)
    for name, weight in trained.named_parameters():
        stored = dict(served.named_parameters())[name]
        if ".experts." in name:
            used = fake_quantise(weight, dtype=compute)
            assert not torch.equal(used, weight.to(compute))
            assert torch.equal(used, stored.to(compute)), name
        else:
            assert torch.equal(weight, stored), name
    with torch.no_grad():
        assert torch.equal(_logits(trained, _ids()), _logits(served, _ids()))


def test_int4_gradients_pass_straight_through(
    make_small: Callable[..., K2], tmp_path: Path
) -> None:
    save_k2(make_small(**SIZES), tmp_path / "masters", torch.float32)
    trained = load_k2(tmp_path / "masters", int4_experts=True)
    save_k2(trained, tmp_path / "int4", torch.float32, quantised=Quantised.int4)
    served = load_k2(tmp_path / "int4")
    for model in (trained, served):
        _logits(model, _ids()).square().mean().backward()
    gradients = {name: parameter.grad for name, parameter in served.named_parameters()}
    for name, parameter in trained.named_parameters():
        assert parameter.grad.abs().max() > 0
        assert torch.equal(parameter.grad, gradients[name]), name


@pytest.mark.parametrize("quantised", [None, *Quantised])
def test_transformers_reads_the_export(
    make_small: Callable[..., K2], tmp_path: Path, quantised: Quantised | None
) -> None:
    save_k2(make_small(**SIZES), tmp_path / "k2", quantised=quantised)
    # In bfloat16 transformers dequantises as an engine does; then both compute in fp32.
    theirs = AutoModelForCausalLM.from_pretrained(tmp_path / "k2", dtype=torch.bfloat16)
    for parameter in theirs.parameters():
        parameter.data = parameter.data.float()
    ours = load_k2(tmp_path / "k2", torch.bfloat16)
    with torch.no_grad():
        expected = theirs(_ids()[None]).logits[0].log_softmax(-1)
        found = _logits(ours, _ids()).log_softmax(-1)
    # Equal weights: what is left are some ten roundings of fp32 in numbers of a few units.
    assert torch.allclose(found, expected, atol=2e-5, rtol=0)
    weights = dict(theirs.named_parameters())
    for name, parameter in ours.named_parameters():
        assert torch.equal(parameter.float(), weights[name]), name


def test_int4_needs_rows_of_whole_groups(make_small: Callable[..., K2], tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match=r"experts.0.down_proj.weight has rows of 12, INT4"):
        save_k2(make_small(), tmp_path / "k2", quantised=Quantised.int4)
    assert list(tmp_path.iterdir()) == []
    save_k2(make_small(), tmp_path / "k2")
    with pytest.raises(CheckpointError, match="divisible by 32, got 32 and 12"):
        load_k2(tmp_path / "k2", int4_experts=True)


def test_config_of_a_quantised_checkpoint(make_small: Callable[..., K2], tmp_path: Path) -> None:
    save_k2(make_small(**SIZES), tmp_path / "k2", quantised=Quantised.int4)
    raw = json.loads((tmp_path / "k2" / "config.json").read_text())
    assert raw["dtype"] == "bfloat16"
    assert raw["quantization_config"] == quantisation_config(Quantised.int4)
    raw["quantization_config"]["config_groups"]["group_0"]["weights"]["group_size"] = 128
    (tmp_path / "k2" / "config.json").write_text(json.dumps(raw))
    with pytest.raises(CheckpointError, match=r"weights.group_size must be 32, got 128"):
        load_k2(tmp_path / "k2")


def test_text_core_of_a_larger_checkpoint(make_small: Callable[..., K2], tmp_path: Path) -> None:
    """K2.5: settings under text_config, names under language_model., a vision part beside it."""
    folder = tmp_path / "k2"
    model = make_small(**SIZES)
    save_k2(model, folder, torch.float32, quantised=Quantised.int4)
    raw = json.loads((folder / "config.json").read_text())
    outer = {"architectures": ["KimiK25ForConditionalGeneration"], "model_type": "kimi_k25"}
    (folder / "config.json").write_text(json.dumps(outer | {"text_config": raw}))
    tensors = load_file(folder / "model.safetensors")
    renamed = {f"language_model.{name}": tensor for name, tensor in tensors.items()}
    renamed["vision_tower.patch_embed.weight"] = torch.ones(3)
    save_file(renamed, folder / "model.safetensors")
    expected = dict(export_tensors(model, torch.float32, Quantised.int4, unpacked=True))
    for name, tensor in export_tensors(load_k2(folder), torch.float32):
        assert torch.equal(tensor, expected[name]), name
