"""Networks of transformers, packed: against transformers itself, one sequence at a time."""

import copy
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from transformers import AttentionInterface, AutoConfig, AutoModelForCausalLM, PreTrainedModel

from model.allocate import allocate
from model.causal_lm import CausalLM
from model.checkpoint_reader import WeightReader
from model.formats import CheckpointError, released_tensors
from model.muonclip import parameter_groups

SIZES: dict[str, Any] = {
    "vocab_size": 48,
    "hidden_size": 32,
    "intermediate_size": 40,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 64,
    "initializer_range": 0.2,
}
LLAMA3_ROPE = {
    "rope_type": "llama3",
    "rope_theta": 10000.0,
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 16,
}
EXPERTS = {"moe_intermediate_size": 12, "num_experts": 8, "num_experts_per_tok": 3}
KINDS: dict[str, dict[str, Any]] = {
    "qwen3": {"model_type": "qwen3", "head_dim": 16, "tie_word_embeddings": True},
    "qwen3_moe": {"model_type": "qwen3_moe", "head_dim": 16, "norm_topk_prob": True} | EXPERTS,
    "llama": {"model_type": "llama", "rope_parameters": LLAMA3_ROPE},
    "llama_mha": {"model_type": "llama", "num_key_value_heads": 4},
    "qwen2": {"model_type": "qwen2"},  # biases on query, key and value
    "olmo2": {"model_type": "olmo2", "pad_token_id": 0},  # norms after the sublayers
    "glm4_moe": {"model_type": "glm4_moe", "pad_token_id": 0, "partial_rotary_factor": 0.5}
    | {"moe_intermediate_size": 12, "n_routed_experts": 8, "num_experts_per_tok": 3},
}
LENGTHS = [7, 1, 12]


def _torch_model(kind: str) -> PreTrainedModel:
    """transformers' model with random weights, nothing at its neutral value."""
    config = AutoConfig.for_model(**(SIZES | KINDS[kind]))
    model = AutoModelForCausalLM.from_config(
        config, attn_implementation="eager", experts_implementation="eager", dtype=torch.float32
    )
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            shift = 1.0 if "norm" in name else 0.0
            parameter.copy_(torch.randn(parameter.shape, generator=generator) * 0.2 + shift)
    return model


@pytest.fixture
def ids() -> Tensor:
    return torch.randint(0, 48, (20,), generator=torch.Generator().manual_seed(1))


@pytest.fixture
def make_folder(tmp_path: Path) -> Callable[..., Path]:
    """Saves a kind of model as transformers does, with any key of its config.json changed."""

    def make(kind: str, **changes: Any) -> Path:
        folder = tmp_path / kind
        _torch_model(kind).save_pretrained(folder)
        file = folder / "config.json"
        file.write_text(json.dumps(json.loads(file.read_text()) | changes))
        return folder

    return make


def _load(folder: Path, weights: torch.dtype = torch.float32, **options: Any) -> CausalLM:
    """Described first and then read module by module, as a learner does it."""
    with torch.device("meta"):
        network = CausalLM.from_config(folder, weights, **options)
    reader, made = WeightReader(folder, network), dict[nn.Parameter, nn.Parameter]()
    for name, module in network.named_modules():
        fresh = allocate(module, weights, torch.device("cpu"), made)
        network.derive_(module)
        reader.read({f"{name}.{key}": tensor for key, tensor in fresh.items()}, 0)
    return network


def _logits(model: PreTrainedModel, ids: Tensor) -> Tensor:
    """Of every sequence alone: [T, V]."""
    return torch.cat([model(part[None]).logits[0] for part in ids.split(LENGTHS)])


def _gradients(network: torch.nn.Module, logits: Tensor) -> dict[str, Tensor]:
    weights = torch.randn(logits.shape, generator=torch.Generator().manual_seed(2))
    (logits * weights).sum().backward()
    return {name: p.grad for name, p in network.named_parameters() if p.grad is not None}


@pytest.mark.parametrize("checkpoint_layers", [False, True])
@pytest.mark.parametrize("kind", KINDS)
def test_logits_and_gradients_are_those_of_transformers(
    make_folder: Callable[..., Path], ids: Tensor, kind: str, checkpoint_layers: bool
) -> None:
    reference = _torch_model(kind)
    network = _load(make_folder(kind), checkpoint_layers=checkpoint_layers)
    expected, found = _logits(reference, ids), network.lm_head(network(ids, LENGTHS).hidden)
    # fp32 sums of 32 to 64 terms in another order; logits reach 4.
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-5)
    wanted, gradients = _gradients(reference, expected), _gradients(network, found)
    assert gradients.keys() == wanted.keys()
    for name, gradient in wanted.items():
        atol = 1e-5 * float(gradient.abs().max())
        torch.testing.assert_close(gradients[name], gradient, rtol=0, atol=atol, msg=name)


def test_positions_start_anew_in_every_sequence(
    make_folder: Callable[..., Path], ids: Tensor
) -> None:
    network, seen = _load(make_folder("llama")), []
    network.get_submodule("model.rotary_emb").register_forward_hook(
        lambda _module, _args, given, _result: seen.append(given["position_ids"]),
        with_kwargs=True,
    )
    network(ids, [3, 1, 4, 12])
    # Rotary angles see differences only; far from 0 their fp32 is coarse.
    assert seen[0].tolist() == [[0, 1, 2, 0, 0, 1, 2, 3, *range(12)]]


def _capture(module: Any, q: Tensor, k: Tensor, v: Tensor, mask: Any, **given: Any) -> Any:
    """Attention by the book that keeps each head's largest logit on the module."""
    k, v = (x.repeat_interleave(q.shape[1] // k.shape[1], dim=1) for x in (k, v))
    logits = q @ k.mT * given["scaling"]
    logits = logits.masked_fill(torch.ones(logits.shape[-2:]).triu(1).bool(), -torch.inf)
    here = logits.detach().amax((0, 2, 3))
    module.largest = torch.maximum(getattr(module, "largest", here), here)
    return (logits.softmax(-1) @ v).transpose(1, 2), None


@pytest.mark.parametrize("checkpoint_layers", [False, True])
@pytest.mark.parametrize("kind", ["qwen3", "llama"])
def test_largest_logit_of_every_head(
    make_folder: Callable[..., Path], ids: Tensor, kind: str, checkpoint_layers: bool
) -> None:
    AttentionInterface.register("capture", _capture)
    reference = _torch_model(kind)
    reference.set_attn_implementation("capture")
    _logits(reference, ids)
    expected = torch.stack([layer.self_attn.largest for layer in reference.model.layers])
    network = _load(make_folder(kind), checkpoint_layers=checkpoint_layers)
    output = network(ids, LENGTHS)
    output.hidden.sum().backward()  # a recomputed layer must not leave other maxima
    assert output.max_logits.shape == (3, 4)
    assert not output.max_logits.requires_grad
    torch.testing.assert_close(output.max_logits, expected, rtol=1e-5, atol=1e-5)


class _Largest(TorchDispatchMode):
    """Numbers in the largest tensor that any operation makes."""

    def __init__(self) -> None:
        super().__init__()
        self.numbers = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        for x in result if isinstance(result, tuple | list) else (result,):
            if isinstance(x, Tensor):
                self.numbers = max(self.numbers, x.numel())
        return result


def test_no_tensor_is_as_large_as_a_mask_of_all_tokens(make_folder: Callable[..., Path]) -> None:
    network = _load(make_folder("llama"))
    tokens = 64 * 64
    with _Largest() as largest:
        network(torch.zeros(tokens, dtype=torch.int64), [64] * 64).hidden.sum().backward()
    # [T, T] has 16.8 M. Blocks of logits hold half a million, and [T, widest layer] 0.2 M.
    assert largest.numbers < tokens * tokens / 16


@pytest.mark.parametrize("kind", ["qwen3", "qwen3_moe", "llama"])
def test_bfloat16_is_as_close_as_transformers_own(
    make_folder: Callable[..., Path], ids: Tensor, kind: str
) -> None:
    reference = _torch_model(kind)
    narrow = _torch_model(kind).to(torch.bfloat16)
    network = _load(make_folder(kind), compute_dtype=torch.bfloat16)
    ours, theirs = [], []
    for shift in range(10):
        batch = (ids + shift) % 48
        exact = _logits(reference, batch).log_softmax(-1)
        output = network(batch, LENGTHS)
        found = network.lm_head(output.hidden.float()).log_softmax(-1)
        ours.append((found - exact).abs().mean().item())
        found = _logits(narrow, batch).float().log_softmax(-1)
        theirs.append((found - exact).abs().mean().item())
    assert output.hidden.dtype == torch.bfloat16
    # Products with 8 bits of mantissa; logits reach 4. Weights, router and angles that stay fp32
    # leave no more of an error than a network that is narrow throughout. With experts chance has a
    # part: a token near a tie between two of them is routed otherwise in one of the networks.
    assert sum(ours) / 10 < 0.03
    assert sum(ours) < (1.5 if kind == "qwen3_moe" else 1.05) * sum(theirs)
    output.hidden.float().sum().backward()
    assert {p.grad.dtype for p in network.parameters() if p.grad is not None} == {torch.float32}


@pytest.mark.parametrize("weights", [torch.float32, torch.bfloat16])
def test_router_and_angles_stay_in_fp32(
    make_folder: Callable[..., Path], ids: Tensor, weights: torch.dtype
) -> None:
    folder = make_folder("qwen3_moe")
    network = _load(folder, weights, compute_dtype=torch.bfloat16)
    seen: dict[str, Any] = {}
    norm, experts = "model.layers.1.post_attention_layernorm", "model.layers.1.mlp.experts"
    for name in ("model.layers.1.mlp.gate", "model.rotary_emb", norm, experts):
        network.get_submodule(name).register_forward_hook(
            lambda _module, _inputs, result, name=name: seen.update({name: result})
        )
    handed = list[Tensor]()
    gate = network.get_submodule("model.layers.1.mlp.gate")
    gate.register_forward_pre_hook(lambda _module, inputs: handed.append(inputs[0]))
    network(ids, LENGTHS).hidden.float().sum().backward()
    logits, scores, _ = seen["model.layers.1.mlp.gate"]
    assert logits.dtype == scores.dtype == torch.float32
    exact = handed[0].double().flatten(0, -2) @ gate.weight.double().T
    torch.testing.assert_close(logits.double(), exact, rtol=1e-5, atol=1e-6)
    assert gate.weight.dtype == gate.weight.grad.dtype == weights
    assert gate.weight.grad.any()
    assert {x.dtype for x in seen["model.rotary_emb"]} == {torch.float32}
    assert seen[norm].dtype == seen[experts].dtype == torch.bfloat16


def test_a_copy_has_its_own_router(make_folder: Callable[..., Path], ids: Tensor) -> None:
    network = _load(make_folder("qwen3_moe"))
    before, twin = network(ids, LENGTHS).hidden, copy.deepcopy(network)
    with torch.no_grad():
        twin.get_parameter("model.layers.0.mlp.gate.weight").neg_()
    assert not torch.allclose(twin(ids, LENGTHS).hidden, before)
    torch.testing.assert_close(network(ids, LENGTHS).hidden, before, rtol=0, atol=0)


@pytest.mark.parametrize("kind", KINDS)
def test_what_we_export_loads_in_transformers(
    make_folder: Callable[..., Path], ids: Tensor, tmp_path: Path, kind: str
) -> None:
    network = _load(make_folder(kind))
    released = {name: x.detach().clone() for name, x in released_tensors(network)}
    (tmp_path / "out").mkdir()
    save_file(released, tmp_path / "out" / "model.safetensors", metadata={"format": "pt"})
    network.config.to_json(tmp_path / "out" / "config.json", "float32")
    reference = AutoModelForCausalLM.from_pretrained(tmp_path / "out", attn_implementation="eager")
    logits = network.lm_head(network(ids, LENGTHS).hidden)
    torch.testing.assert_close(logits, _logits(reference, ids), rtol=0, atol=1e-5)


def test_experts_have_released_names(make_folder: Callable[..., Path]) -> None:
    folder = make_folder("qwen3_moe")
    network = _load(folder)
    stored, ours = load_file(folder / "model.safetensors"), dict(released_tensors(network))
    assert ours.keys() == stored.keys()
    assert all(torch.equal(ours[name], tensor) for name, tensor in stored.items())


def _change(folder: Path, change: Callable[[dict[str, Tensor]], object]) -> Path:
    tensors = load_file(folder / "model.safetensors")
    change(tensors)
    save_file(tensors, folder / "model.safetensors")
    return folder


def test_tied_head_may_be_repeated(make_folder: Callable[..., Path], ids: Tensor) -> None:
    embedding = "model.embed_tokens.weight"
    folder = make_folder("qwen3")
    plain = _load(folder)
    assert plain.lm_head.weight is plain.embedding.weight
    _change(folder, lambda t: t.update({"lm_head.weight": t[embedding].clone()}))
    repeated = _load(folder)
    assert torch.equal(repeated(ids, LENGTHS).hidden, plain(ids, LENGTHS).hidden)
    _change(folder, lambda t: t.update({"lm_head.weight": t[embedding] + 1}))
    with pytest.raises(CheckpointError, match=r"lm_head.weight is not the embedding"):
        _load(folder)


@pytest.mark.parametrize(
    ("change", "says"),
    [
        (lambda t: t.pop("model.norm.weight"), "missing tensors: model.norm.weight"),
        (lambda t: t.update(surprise=torch.ones(1)), "does not have: surprise"),
        (
            lambda t: t.update({"model.layers.0.mlp.experts.3.up_proj.weight": torch.ones(12, 31)}),
            r"experts.3.up_proj.weight has shape \[12, 31\], the config asks for \[12, 32\]",
        ),
    ],
)
def test_bad_tensors_are_named(
    make_folder: Callable[..., Path], change: Callable[[dict[str, Tensor]], object], says: str
) -> None:
    with pytest.raises(CheckpointError, match=says):
        _load(_change(make_folder("qwen3_moe"), change))


def _clip(network: CausalLM, gamma: Tensor) -> list[str]:
    names = []
    with torch.no_grad():
        for name, factors in network.clip_rows(gamma):
            parameter = network.get_parameter(name)
            parameter.mul_(factors.view(-1, *[1] * (parameter.dim() - 1)))
            names.append(name.removeprefix("model.layers."))
    return names


@pytest.mark.parametrize(
    ("kind", "clipped"),
    [
        ("llama_mha", ["q_proj.weight", "k_proj.weight"]),
        ("llama", ["q_proj.weight"]),
        ("qwen2", ["q_proj.weight", "q_proj.bias"]),
    ],
)
@pytest.mark.parametrize("layer", [0, 2])
def test_clip_scales_the_logits_of_a_head(
    make_folder: Callable[..., Path], ids: Tensor, kind: str, clipped: list[str], layer: int
) -> None:
    network = _load(make_folder(kind))
    assert network.qk_clip_note is None
    before, gamma = network(ids, LENGTHS).max_logits, torch.ones(3, 4)
    gamma[layer, 1], gamma[layer, 2] = 0.3, 0.7
    assert _clip(network, gamma) == [f"{layer}.self_attn.{part}" for part in clipped]
    after = network(ids, LENGTHS).max_logits
    # Layers after the clipped one see other inputs. 1e-6: roundings of the factor in fp32.
    torch.testing.assert_close(
        after[: layer + 1], (gamma * before)[: layer + 1], rtol=1e-6, atol=1e-6
    )


def test_clip_leaves_normalised_heads_alone(make_folder: Callable[..., Path]) -> None:
    network = _load(make_folder("qwen3"))
    assert "q_norm and k_norm of Qwen3Attention" in str(network.qk_clip_note)
    assert _clip(network, torch.full((3, 4), 0.5)) == []


SLIDING = {"use_sliding_window": True, "sliding_window": 8, "max_window_layers": 1}
FULL = ["full_attention"] * 3


@pytest.mark.parametrize(
    ("settings", "says"),
    [
        ({"model_type": "no_such"}, "model_type no_such is not a causal language model"),
        ({"model_type": "t5"}, "model_type t5 is not a causal language model"),
        ({"model_type": "bert"}, "key num_key_value_heads is unknown .*hidden_dropout_prob = 0.1"),
        ({"model_type": "llama", "hidden_size": "wide"}, "hidden_size"),
        ({"model_type": "llama", "num_attention_heads": 5}, "multiple of the number of attention"),
        ({"model_type": "llama", "attention_dropout": 0.1}, "attention_dropout = 0.1"),
        ({"model_type": "llama", "noise": 3}, "key noise is unknown to transformers' llama"),
        ({"model_type": "llama", "rope_scaling": {"type": "dynamic", "factor": 2.0}}, "dynamic"),
        ({"model_type": "llama", "rope_scaling": {"type": "yarn"}}, "factor"),
        ({"model_type": "qwen2"} | SLIDING, "sliding_attention over 8 tokens"),
        ({"model_type": "mistral", "sliding_window": 8}, "sliding_attention over 8 tokens"),
        (
            {"model_type": "mistral", "sliding_window": 8, "layer_types": FULL},
            "attention with a sliding window of 8 tokens",
        ),
        ({"model_type": "llama4_text"}, "layers of type chunked_attention"),
        ({"model_type": "qwen3_next"}, "layers of type linear_attention"),
        ({"model_type": "gemma2"}, "attn_logit_softcapping = 50.0 .*final_logit_softcapping"),
        ({"model_type": "granite", "logits_scaling": 8.0}, "logits_scaling = 8.0"),
        ({"model_type": "cohere"}, "logit_scale = 0.0625"),
        ({"model_type": "gpt_oss", "layer_types": FULL}, "tensors of GptOss.* have other names"),
        ({"model_type": "gemma", "head_dim": 8}, "computes model.embed_tokens.embed_scale"),
        ({"model_type": "mamba"}, "key num_attention_heads is unknown to transformers' mamba"),
        (
            {"model_type": "qwen3_moe", "hidden_act": "gelu"},
            "experts of Qwen3Moe.* do not use silu",
        ),
        ({"model_type": "mixtral"}, "tensors of MixtralForCausalLM have other names"),
    ],
)
def test_refused_by_name(tmp_path: Path, settings: dict[str, Any], says: str) -> None:
    (tmp_path / "config.json").write_text(json.dumps(SIZES | settings))
    with pytest.raises(CheckpointError, match=says):
        _load(tmp_path)


@pytest.mark.parametrize("model_type", ["smollm3", "mistral", "phi3", "olmoe"])
def test_other_architectures_have_our_attention(tmp_path: Path, model_type: str) -> None:
    settings = SIZES | {"model_type": model_type, "sliding_window": None, "pad_token_id": 0}
    (tmp_path / "config.json").write_text(json.dumps(settings))
    network = CausalLM.from_config(tmp_path)
    assert network(torch.arange(20), LENGTHS).max_logits.shape == (3, 4)


def test_muon_leaves_embeddings_alone_whatever_they_are_called(tmp_path: Path) -> None:
    gpt2 = {"model_type": "gpt2", "n_embd": 32, "n_head": 4, "n_layer": 2, "n_positions": 64}
    none = {"attn_pdrop": 0.0, "embd_pdrop": 0.0, "resid_pdrop": 0.0}
    (tmp_path / "config.json").write_text(json.dumps(gpt2 | none | {"vocab_size": 48}))
    network = CausalLM.from_config(tmp_path)
    named = dict(network.named_parameters())
    groups = parameter_groups(named.items(), embeddings=network.embeddings())
    (by_muon,) = (set(group["names"]) for group in groups if group["muon"])
    tables = {"transformer.wte.weight", "transformer.wpe.weight"}
    assert network.embeddings() == tables
    assert by_muon == {n for n, p in named.items() if p.dim() > 1} - tables - {"lm_head.weight"}


def test_bad_batches(make_folder: Callable[..., Path], ids: Tensor) -> None:
    network = _load(make_folder("llama"))
    with pytest.raises(ValueError, match="sum to 20 tokens"):
        network(ids, [7, 12])
    with pytest.raises(ValueError, match="max_position_embeddings = 64"):
        network(torch.zeros(65, dtype=torch.int64), [65])
    with pytest.raises(ValueError, match="replay is not implemented for llama"):
        network(ids, LENGTHS, torch.zeros(3, 20, 2, dtype=torch.int64))
    with pytest.raises(
        ValueError, match=r"compute in torch.float32 with weights in torch.bfloat16"
    ):
        _load(make_folder("llama"), torch.bfloat16)


@pytest.mark.parametrize("kind", ["qwen3", "qwen3_moe"])
def test_shapes_without_weights(make_folder: Callable[..., Path], kind: str) -> None:
    folder = make_folder(kind)
    with torch.device("meta"):
        network = CausalLM.from_config(folder, compute_dtype=torch.bfloat16)
        output = network(torch.zeros(20, dtype=torch.int64), LENGTHS)
    assert {p.device.type for p in network.parameters()} == {"meta"}
    assert output.hidden.shape == (20, 32)
    assert output.max_logits.shape == (3, 4)


def test_config_is_exported_as_it_was_read(
    make_folder: Callable[..., Path], tmp_path: Path
) -> None:
    folder = make_folder("qwen3_moe", quantization_config={"quant_method": "fp8"})
    with torch.device("meta"):
        network = CausalLM.from_config(folder)
    network.config.to_json(tmp_path / "config.json", "bfloat16")
    read, written = (json.loads((f / "config.json").read_text()) for f in (folder, tmp_path))
    assert written.pop("dtype") == "bfloat16"
    assert written == {k: v for k, v in read.items() if k not in ("dtype", "quantization_config")}
