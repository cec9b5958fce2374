"""Our network against transformers' DeepSeek-V3, and against the numbers of the specification."""

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import Tensor
from transformers import AutoModelForCausalLM, PreTrainedModel

from kernels.logprob import token_logprobs
from model.config import K2Config, RopeScaling
from model.k2 import K2, rope_frequencies, softmax_scale, yarn_corrections
from model.load import save_k2

LENGTHS = [5, 1, 17, 60, 33]


def _ids(lengths: list[int]) -> Tensor:
    # No padding token: transformers gives its embedding no gradient.
    return torch.randint(3, 48, (sum(lengths),), generator=torch.Generator().manual_seed(1))


def _reference(model: K2, folder: Path, latent_eps: bool = True) -> PreTrainedModel:
    """The same weights in transformers, whose latent norms ignore rms_norm_eps unless told here."""
    save_k2(model, folder, torch.float32)
    reference = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    for layer in reference.model.layers if latent_eps else ():
        layer.self_attn.q_a_layernorm.variance_epsilon = model.config.rms_norm_eps
        layer.self_attn.kv_a_layernorm.variance_epsilon = model.config.rms_norm_eps
    return reference


def _reference_logprobs(
    reference: PreTrainedModel, ids: Tensor, lengths: list[int], targets: Tensor
) -> Tensor:
    logits = torch.cat([reference(part[None]).logits[0] for part in ids.split(lengths)])
    return logits.log_softmax(-1).gather(1, targets[:, None])[:, 0]


@pytest.mark.parametrize(
    "rope_scaling", [RopeScaling(), RopeScaling(factor=64.0, beta_fast=32.0), None]
)
def test_logprobs_and_gradients_equal_transformers(
    make_small: Callable[..., K2], tmp_path: Path, rope_scaling: RopeScaling | None
) -> None:
    model = make_small(rope_scaling=rope_scaling, rms_norm_eps=1e-5)
    reference = _reference(model, tmp_path / "k2")
    ids = _ids(LENGTHS)
    output = model(ids, LENGTHS)
    ours, _ = token_logprobs(output.hidden, model.lm_head.weight, ids.roll(-1))
    theirs = _reference_logprobs(reference, ids, LENGTHS, ids.roll(-1))
    torch.testing.assert_close(ours, theirs, rtol=0, atol=2e-5)
    slope = torch.randn(len(ids), generator=torch.Generator().manual_seed(2))
    (ours * slope).sum().backward()
    (theirs * slope).sum().backward()
    expected = dict(reference.named_parameters())
    assert set(expected) == {name for name, _ in model.named_parameters()}
    for name, parameter in model.named_parameters():
        assert parameter.grad is not None and expected[name].grad is not None
        error = (parameter.grad - expected[name].grad).norm() / expected[name].grad.norm()
        assert error < 1e-4, f"{name}: {error}"


def test_latent_norms_take_rms_norm_eps_like_the_rollout_engine(
    make_small: Callable[..., K2], tmp_path: Path
) -> None:
    model = make_small(rms_norm_eps=0.3)
    ids = _ids([20])
    ours, _ = token_logprobs(model(ids, [20]).hidden, model.lm_head.weight, ids)
    mended = _reference_logprobs(_reference(model, tmp_path / "k2"), ids, [20], ids)
    unmended = _reference_logprobs(
        _reference(model, tmp_path / "k2", latent_eps=False), ids, [20], ids
    )
    torch.testing.assert_close(ours, mended, rtol=0, atol=2e-5)
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


def test_yarn_numbers_of_the_specification() -> None:
    config = K2Config()
    assert softmax_scale(config) == pytest.approx(0.130861, abs=5e-7)
    assert softmax_scale(K2Config(rope_scaling=RopeScaling(factor=64.0))) == pytest.approx(
        0.144680, abs=5e-7
    )
    assert softmax_scale(K2Config(rope_scaling=None)) == pytest.approx(0.072169, abs=5e-7)
    assert yarn_corrections(RopeScaling(), 64, 50000.0) == (19, 20)
    assert yarn_corrections(RopeScaling(beta_fast=32.0), 64, 50000.0) == (8, 20)
    plain = 50000.0 ** (-torch.arange(32) / 32)
    # The hard switch: pairs up to 19 as they are, from 20 on slowed 32 times.
    torch.testing.assert_close(rope_frequencies(config)[:20], plain[:20])
    torch.testing.assert_close(rope_frequencies(config)[20:], plain[20:] / 32)


def test_parameter_count_of_k2() -> None:
    with torch.device("meta"):
        model = K2(K2Config())
    stored = sum(tensor.numel() for tensor in model.state_dict().values())
    assert round(stored / 1e6) == 1_026_408


def test_lengths_must_cover_the_tokens(make_small: Callable[..., K2]) -> None:
    for lengths in ([3], [4, 0], []):
        with pytest.raises(ValueError, match="must be positive and sum to 4 tokens"):
            make_small()(_ids([4]), lengths)
