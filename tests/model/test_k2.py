"""Our network against transformers' DeepSeek-V3, and against itself computed in other ways.

Tolerances in fp32: 1e-5 on logits of a few units, some ten roundings; 1e-5 of its norm on a
gradient.
"""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from transformers import AutoModelForCausalLM, PreTrainedModel

from kernels.int4 import fake_quantise
from kernels.logprob import token_logprobs
from model.config import K2Config, RopeScaling
from model.k2 import K2
from model.load import save_k2
from model.network import NetworkOutput

LENGTHS = [5, 1, 17, 60, 33]
LOGITS = 1e-5
GRADIENTS = 1e-5


def _ids(lengths: list[int]) -> Tensor:
    # No padding token: transformers gives its embedding no gradient.
    return torch.randint(3, 48, (sum(lengths),), generator=torch.Generator().manual_seed(1))


def _reference(model: K2, folder: Path, latent_eps: bool = True) -> PreTrainedModel:
    """The same weights in transformers, whose latent norms ignore rms_norm_eps unless told here."""
    save_k2(model, folder, torch.float32)
    reference = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    for layer in reference.model.layers if latent_eps else ():
        for name, module in layer.self_attn.named_children():
            if name.endswith("layernorm"):
                module.variance_epsilon = model.config.rms_norm_eps
    return reference


def _reference_logits(reference: PreTrainedModel, ids: Tensor, lengths: list[int]) -> Tensor:
    return torch.cat([reference(part[None]).logits[0] for part in ids.split(lengths)])


def _twin(model: K2, **options: Any) -> K2:
    """The same weights in a network built with other options."""
    twin = K2(model.config, model.compute_dtype, **options)
    twin.load_state_dict(model.state_dict())
    return twin


def _loss(output: NetworkOutput) -> Tensor:
    slope = torch.randn(output.hidden.shape, generator=torch.Generator().manual_seed(2))
    return (output.hidden * slope).sum()


@pytest.mark.parametrize(
    "changes",
    [
        {"rope_scaling": RopeScaling()},
        {"rope_scaling": RopeScaling(factor=64.0, beta_fast=32.0)},
        {"rope_scaling": None, "q_lora_rank": None},
        {"n_group": 4, "topk_group": 2, "first_k_dense_replace": 2},
    ],
    ids=["k2", "k2.5", "moonlight", "deepseek"],
)
def test_logits_and_gradients_equal_transformers(
    make_small: Callable[..., K2], tmp_path: Path, changes: dict[str, Any]
) -> None:
    model = make_small(rms_norm_eps=1e-5, **changes)
    reference = _reference(model, tmp_path / "k2")
    ids = _ids(LENGTHS)
    output = model(ids, LENGTHS)
    theirs = _reference_logits(reference, ids, LENGTHS)
    torch.testing.assert_close(model.lm_head(output.hidden), theirs, rtol=0, atol=LOGITS)

    targets = ids.roll(-1)
    ours, _ = token_logprobs(output.hidden, model.lm_head.weight, targets)
    their_logprobs = theirs.log_softmax(-1).gather(1, targets[:, None])[:, 0]
    torch.testing.assert_close(ours, their_logprobs, rtol=0, atol=LOGITS)
    slope = torch.randn(len(ids), generator=torch.Generator().manual_seed(2))
    (ours * slope).sum().backward()
    (their_logprobs * slope).sum().backward()
    expected = dict(reference.named_parameters())
    assert set(expected) == {name for name, _ in model.named_parameters()}
    for name, parameter in model.named_parameters():
        assert parameter.grad is not None and expected[name].grad is not None
        error = (parameter.grad - expected[name].grad).norm() / expected[name].grad.norm()
        assert error < GRADIENTS, f"{name}: {error}"


def test_latent_norms_take_rms_norm_eps_like_the_rollout_engine(
    make_small: Callable[..., K2], tmp_path: Path
) -> None:
    model = make_small(rms_norm_eps=0.3)
    ids = _ids([20])
    ours = model.lm_head(model(ids, [20]).hidden)
    mended = _reference_logits(_reference(model, tmp_path / "k2"), ids, [20])
    unmended = _reference_logits(_reference(model, tmp_path / "k2", latent_eps=False), ids, [20])
    torch.testing.assert_close(ours, mended, rtol=0, atol=LOGITS)
    assert (ours - unmended).abs().max() > 0.01


def test_packed_equals_separate(make_small: Callable[..., K2]) -> None:
    model, ids = make_small(), _ids(LENGTHS)
    packed = model(ids, LENGTHS)
    separate = [model(part, [len(part)]) for part in ids.split(LENGTHS)]
    torch.testing.assert_close(
        packed.hidden, torch.cat([one.hidden for one in separate]), rtol=0, atol=2e-5
    )
    largest = torch.stack([one.max_logits for one in separate]).amax(0)
    torch.testing.assert_close(packed.max_logits, largest, rtol=0, atol=2e-5)
    assert packed.max_logits.shape == (3, 4) and not packed.max_logits.requires_grad


def test_bfloat16_compute_stays_near_float32(make_small: Callable[..., K2]) -> None:
    # All experts are used: with a choice to make, rounding would flip some of them.
    exact, narrow = (
        make_small(dtype, num_experts_per_tok=8) for dtype in (torch.float32, torch.bfloat16)
    )
    ids = _ids(LENGTHS)
    hidden = narrow(ids, LENGTHS).hidden
    assert hidden.dtype == torch.bfloat16 and narrow.lm_head.weight.dtype == torch.float32
    error = (hidden.float() - exact(ids, LENGTHS).hidden).norm() / hidden.float().norm()
    assert error < 0.03


def test_a_router_scores_in_float32_in_a_bfloat16_network(make_small: Callable[..., K2]) -> None:
    router = make_small(torch.bfloat16).model.layers[1].mlp.gate
    x = torch.randn(50, 32, generator=torch.Generator().manual_seed(1)).bfloat16()
    narrow, wide = router(x), router(x.float())
    assert torch.equal(narrow.chosen, wide.chosen) and torch.equal(narrow.weights, wide.weights)


def _choices(model: K2, ids: Tensor, lengths: list[int]) -> Tensor:
    """The router's own choice in every MoE layer."""
    seen: list[Tensor] = []
    hooks = [
        layer.mlp.gate.register_forward_hook(lambda _module, _inputs, out: seen.append(out[0]))
        for layer in model.model.layers[model.config.first_k_dense_replace :]
    ]
    model(ids, lengths)
    for hook in hooks:
        hook.remove()
    return torch.stack(seen)


def test_replaying_the_own_choice_changes_nothing(make_small: Callable[..., K2]) -> None:
    model, ids = make_small(), _ids(LENGTHS)
    own = _choices(model, ids, LENGTHS)
    assert own.shape == (2, 116, 3)
    assert torch.equal(model(ids, LENGTHS).hidden, model(ids, LENGTHS, own.int()).hidden)


def test_replay_overrides_the_choice_and_not_the_scores(make_small: Callable[..., K2]) -> None:
    # What a router that prefers experts 2, 5 and 7 by its bias computes, is what one that prefers
    # others computes when it is told to take 2, 5 and 7: weights come from the unbiased scores.
    model, ids = make_small(), _ids(LENGTHS)
    before = model(ids, LENGTHS).hidden
    replay = torch.tensor([7, 2, 5]).expand(2, len(ids), 3)
    told = model(ids, LENGTHS, replay)
    biased = _twin(model)
    for layer in biased.model.layers[1:]:
        layer.mlp.gate.e_score_correction_bias.zero_()[[2, 5, 7]] = 10.0
    prefers = biased(ids, LENGTHS)
    torch.testing.assert_close(told.hidden, prefers.hidden, rtol=0, atol=1e-5)
    assert (told.hidden - before).abs().max() > 0.1
    _loss(told).backward()
    _loss(prefers).backward()
    gates = (
        model.model.layers[1].mlp.gate.weight.grad,
        biased.model.layers[1].mlp.gate.weight.grad,
    )
    assert gates[0].abs().max() > 0
    torch.testing.assert_close(*gates, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize(
    ("replay", "says"),
    [
        (torch.zeros(3, 4, 3, dtype=torch.long), r"\[2, 4, 3\], got torch.int64 .*\[3, 4, 3\]"),
        (torch.zeros(2, 4, 3), "must be integers of .*got torch.float32"),
        (torch.full((2, 4, 3), 8), "experts below 8, or .* got 8 to 8"),
        (torch.full((2, 4, 3), -2), "experts below 8, or .* got -2 to -2"),
    ],
)
def test_a_replay_that_does_not_fit_is_refused(
    make_small: Callable[..., K2], replay: Tensor, says: str
) -> None:
    with pytest.raises(ValueError, match=says):
        make_small()(_ids([4]), [4], replay)


def _saved_bytes(call: Callable[[], object]) -> int:
    """Bytes that autograd keeps for the backward pass of `call`, no storage counted twice."""
    kept: dict[int, int] = {}

    def pack(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        kept[storage.data_ptr()] = storage.nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        call()
    return sum(kept.values())


def test_checkpointing_gives_the_same_and_keeps_less(make_small: Callable[..., K2]) -> None:
    model, ids = make_small(), _ids(LENGTHS)
    lean = _twin(model, checkpoint_layers=True)
    replay = _choices(model, ids, LENGTHS).flip(0)
    outputs = [each(ids, LENGTHS, replay) for each in (model, lean)]
    assert torch.equal(outputs[0].hidden, outputs[1].hidden)
    assert torch.equal(outputs[0].max_logits, outputs[1].max_logits)
    for output in outputs:
        _loss(output).backward()
    for (name, one), other in zip(model.named_parameters(), lean.parameters(), strict=True):
        if one.grad is not None:  # the head is not part of this loss
            torch.testing.assert_close(one.grad, other.grad, rtol=1e-6, atol=1e-6, msg=name)
    # A layer keeps its input, 116 x 32 numbers, and what all share: rotation, lengths, replay.
    whole, kept = (_saved_bytes(lambda each=each: each(ids, LENGTHS)) for each in (model, lean))
    assert kept < whole / 10


def test_int4_experts_compute_with_what_export_stores(make_small: Callable[..., K2]) -> None:
    sizes = {"hidden_size": 64, "moe_intermediate_size": 32}
    model, ids = make_small(**sizes), _ids(LENGTHS)
    trained, served = _twin(model, int4_experts=True), _twin(model)
    for layer in served.model.layers[1:]:
        for weight in layer.mlp.experts.parameters():
            weight.data = fake_quantise(weight.data)
    outputs = [each(ids, LENGTHS) for each in (model, trained, served)]
    assert torch.equal(outputs[1].hidden, outputs[2].hidden)
    assert not torch.equal(outputs[0].hidden, outputs[1].hidden)
    for output in outputs[1:]:
        _loss(output).backward()
    for one, other in zip(trained.parameters(), served.parameters(), strict=True):
        assert one.grad is None or torch.equal(one.grad, other.grad)


def test_int4_wants_rows_of_whole_groups(make_small: Callable[..., K2]) -> None:
    with pytest.raises(ValueError, match="divisible by 32, got 32 and 12"):
        K2(make_small().config, int4_experts=True)


@pytest.mark.parametrize("q_lora_rank", [20, None])
def test_clip_rows_scale_exactly_the_chosen_heads(
    make_small: Callable[..., K2], q_lora_rank: int | None
) -> None:
    model, ids = make_small(q_lora_rank=q_lora_rank).double(), _ids(LENGTHS)
    model.compute_dtype = torch.float64
    before = model(ids, LENGTHS).max_logits
    gamma = torch.ones(3, 4, dtype=torch.float64)
    gamma[2, 1], gamma[2, 3] = 0.25, 0.9
    found = dict(model.clip_rows(gamma))
    query = "q_b_proj" if q_lora_rank else "q_proj"
    names = [f"model.layers.2.self_attn.{name}.weight" for name in (query, "kv_b_proj")]
    assert list(found) == names
    # Head 1 of the query: 16 rows without and 64 with positions. Of keys and values: 16 and 10.
    assert found[names[0]][80:160].tolist() == [0.5] * 16 + [0.25] * 64
    assert found[names[1]][26:52].tolist() == [0.5] * 16 + [1.0] * 10
    with torch.no_grad():
        for name, factors in found.items():
            model.get_parameter(name).mul_(factors[:, None])
    # The last layer: nothing else changes.
    after = model(ids, LENGTHS).max_logits
    torch.testing.assert_close(after, before * gamma, rtol=1e-12, atol=0)


def test_clip_rows_are_silent_below_the_threshold(make_small: Callable[..., K2]) -> None:
    assert list(make_small().clip_rows(torch.ones(3, 4))) == []


def test_load_is_counted_and_balanced(make_small: Callable[..., K2]) -> None:
    model, ids = make_small(), _ids(LENGTHS)
    counting = _twin(model, count_load=True, checkpoint_layers=True)
    own = _choices(model, ids, LENGTHS)
    expected = torch.stack([layer.flatten().bincount(minlength=8) for layer in own])
    for _ in range(2):
        _loss(counting(ids, LENGTHS)).backward()  # the second pass of a layer is not counted
    assert counting.load is not None and torch.equal(counting.load, 2 * expected)
    gate = counting.model.layers[2].mlp.gate
    before = gate.e_score_correction_bias.clone()
    counting.balance_(0.001)
    signs = (expected[1].double().mean() - expected[1]).sign()
    torch.testing.assert_close(
        gate.e_score_correction_bias, before + 0.001 * (signs - signs.mean()).float()
    )
    assert counting.load is None and model.load is None
    with pytest.raises(ValueError, match="count_load=True"):
        model.balance_(0.001)


def test_lengths_must_cover_the_tokens(make_small: Callable[..., K2]) -> None:
    for lengths in ([3], [4, 0], []):
        with pytest.raises(ValueError, match="must be positive and sum to 4 tokens"):
            make_small()(_ids([4]), lengths)


def test_a_sequence_longer_than_the_context_is_refused() -> None:
    # On the meta device nothing can be computed: the check comes first.
    with torch.device("meta"):
        model = K2(K2Config(num_hidden_layers=1))
    with pytest.raises(ValueError, match="131073 tokens is longer than max_position_embeddings"):
        model(torch.empty(131075, device="meta"), [2, 131073])
