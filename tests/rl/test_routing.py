"""Experts on their way from completions to the learner's passes."""

import pickle
from collections.abc import Sequence
from dataclasses import replace
from typing import Any, cast

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from model.k2 import K2
from model.parallel import Shard, StepReport
from model.policy import Policy, PolicyOutput
from model.tiny import tiny_config
from rl.batch import Batch, micro_batches, pack, shares_of
from rl.learner_passes import Pass, Passes
from rl.mismatch import experts_metrics
from rl.sample import Sample, supervised_sample
from rollout.episode import Completion, StopReason

SHAPE = (2, 3)  # MoE layers, experts per token


def _sample(prompt: int, response: int, routing: np.ndarray[Any, Any] | None) -> Sample:
    done = Completion(
        prompt_ids=list(range(1, 1 + prompt)),
        token_ids=list(range(20, 20 + response)),
        logprobs=[-1.0] * response,
        versions=[0] * response,
        stop_reason=StopReason.stop,
        temperature=1.0,
        routing=routing,
    )
    return Sample(completion=done, oldest=0, advantage=1.0)


@st.composite
def _sampled(draw: st.DrawFn) -> Sample:
    """Some without a record; some cut after they were recorded."""
    prompt, response = draw(st.integers(1, 4)), draw(st.integers(0, 5))
    if not draw(st.booleans()):
        return _sample(prompt, response, None)
    rows = prompt + response - 1 + draw(st.integers(0, 2))
    numbers = draw(st.lists(st.integers(0, 383), min_size=rows * 6, max_size=rows * 6))
    return _sample(prompt, response, np.array(numbers, np.uint16).reshape(rows, *SHAPE))


def _naive(samples: Sequence[Sample]) -> list[Any]:
    nothing = [[-1] * SHAPE[1]] * SHAPE[0]
    packed = []
    for sample in samples:
        rows = sample.completion.routing
        for place in range(sample.length):
            last = place == sample.length - 1
            packed.append(nothing if rows is None or last else rows[place].tolist())
    return packed


def _listed(batch: Batch) -> list[Any]:
    """Without any record the learner is told of none."""
    if batch.routing is None:
        assert all(sample.completion.routing is None for sample in batch.samples)
        return _naive(batch.samples)
    assert batch.routing.dtype == torch.int16
    return batch.routing.tolist()


@given(st.lists(_sampled(), min_size=1, max_size=8), st.integers(1, 3), st.integers(1, 12))
def test_experts_stay_with_their_tokens(samples: list[Sample], shards: int, most: int) -> None:
    batch = pickle.loads(pickle.dumps(pack(samples)))
    assert _listed(batch) == _naive(samples)
    for share in shares_of(batch, shards):
        for part in micro_batches(share, most) if share is not None else ():
            assert _listed(part) == _naive(part.samples)
            assert len(_listed(part)) == len(part.ids)


def test_a_batch_without_a_record_has_none() -> None:
    assert pack([supervised_sample([1, 2], [3, 4]), _sample(2, 2, None)]).routing is None


def test_the_share_of_differing_choices() -> None:
    assert experts_metrics(3.0, 40.0) == {"mismatch/experts": 0.075}
    assert experts_metrics(0.0, 0.0) == {}, "nothing was recorded"


class OneShard:
    """A shard that is alone and keeps its gradients, over a real policy."""

    rank, size = 0, 1
    device = torch.device("cpu")

    def __init__(self, network: K2) -> None:
        self.policy = Policy(network)

    def forward(self, *arguments: Any) -> PolicyOutput:
        return self.policy(*arguments)

    def backward(self, loss: Tensor, *, last: bool) -> None:
        loss.backward()

    def step(self, logits: Tensor, rate: float, *, finite: bool) -> StepReport:
        assert finite
        return StepReport(max_logit=0.0, clipped_heads=0, update_rms=0.0, grad_norm=0.0)

    def total(self, values: list[float]) -> list[float]:
        return values

    def largest(self, values: Tensor) -> Tensor:
        return values


@pytest.fixture(scope="module")
def network() -> K2:
    network = K2(tiny_config(64))
    network.initialize_(0)
    return network


def _passes(network: K2, most: int) -> Passes:
    shard = cast(Shard, OneShard(network))
    return Passes(shard, network, micro_batch_tokens=most, router_bias_rate=0.0)


def _recorded() -> Batch:
    """Two recorded completions and one without, with experts that no router chose."""
    random = np.random.default_rng(0)
    samples = []
    for prompt, response in ((3, 4), (2, 9), (5, 2)):
        rows = random.permuted(np.tile(np.arange(16), (prompt + response - 1, 2, 1)), axis=-1)
        samples.append(_sample(prompt, response, rows[..., :2].astype(np.uint8)))
    done = replace(samples[1].completion, routing=None)
    return pack([samples[0], replace(samples[1], completion=done), samples[2]])


def _gradient(network: K2, batch: Batch, most: int) -> tuple[Tensor, list[float]]:
    passes = _passes(network, most)
    network.zero_grad()

    def loss(part: Batch, output: PolicyOutput) -> tuple[Tensor, dict[str, float]]:
        return -output.logprobs.sum() / part.total_loss_tokens, {}

    parts = passes.cut(batch)
    passes.step([Pass(part=part, loss=loss, totals=()) for part in parts], 0.0)
    gradient = network.model.layers[1].mlp.gate.weight.grad
    assert gradient is not None
    return gradient.clone(), passes.take_choices()


def test_steps_and_logprobs_follow_the_record_however_it_is_cut(network: K2) -> None:
    batch = _recorded()
    assert batch.routing is not None
    mask = batch.loss_mask
    replay = batch.routing.movedim(1, 0)
    arguments = (batch.ids.long(), mask, batch.lengths, batch.temperatures)
    with torch.no_grad():
        expected, own = (Policy(network)(*arguments, r).logprobs for r in (replay, None))
    assert (expected - own).abs().max() > 1e-3
    for most in (8, 1000):
        passes = _passes(network, most)
        for told, wanted in ((True, expected), (False, own)):
            parts = passes.logprobs(passes.cut(batch), replay=told)
            found = torch.cat([part for part in parts if part is not None])
            torch.testing.assert_close(found, wanted, rtol=0, atol=1e-5)
    whole, (differing, recorded) = _gradient(network, batch, 1000)
    assert recorded == (6 + 6) * 2 * 2
    assert recorded / 2 < differing <= recorded
    pieces, counted = _gradient(network, batch, 8)
    assert counted == [differing, recorded]
    torch.testing.assert_close(whole, pieces, rtol=1e-4, atol=1e-7)
    blind = [replace(s, completion=replace(s.completion, routing=None)) for s in batch.samples]
    other, counted = _gradient(network, pack(blind), 1000)
    assert counted == [0.0, 0.0]
    assert (other - whole).norm() > 0.1 * whole.norm()
