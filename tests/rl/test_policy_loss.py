"""Which log-probs are pi_old, what corrects for the rest, and that parts add up to the whole."""

import math

import pytest
import torch
from torch import Tensor

from model.policy import PolicyOutput
from rl.batch import Batch, micro_batches, pack
from rl.objective_config import Correction, Kind, Level, ObjectiveConfig, OldLogprobs
from rl.policy_loss import POLICY_TOTALS, PolicyLoss, policy_metrics
from rl.sample import Sample
from rollout.episode import Completion, StopReason

CPU = torch.device("cpu")
VERSION = 5
ROLLOUT = ObjectiveConfig(old_logprobs=OldLogprobs.rollout, correction=Correction.none)
UNCORRECTED = ObjectiveConfig(correction=Correction.none)


def _sample(recorded: list[float], versions: list[int], advantage: float) -> Sample:
    completion = Completion(
        prompt_ids=[1, 2],
        token_ids=list(range(3, 3 + len(recorded))),
        logprobs=recorded,
        versions=versions,
        stop_reason=StopReason.stop,
        temperature=1.0,
    )
    return Sample(completion=completion, oldest=0, advantage=advantage)


BATCH = pack(
    [
        _sample([-1.0, -2.0, -0.5], [5, 5, 5], 0.5),
        _sample([-0.3], [4], -0.5),
        _sample([-1.0, -1.5], [3, 4], 1.0),
    ]
)
RECORDED = torch.tensor([-1.0, -2.0, -0.5, -0.3, -1.0, -1.5])
SEQUENCE = torch.tensor([0, 0, 0, 1, 2, 2])
ADVANTAGES = torch.tensor([0.5, -0.5, 1.0])[SEQUENCE]
START = RECORDED + torch.tensor([0.0, math.log(4.0), math.log(0.25), 0.1, 0.0, -0.1])
NOW = START + torch.tensor([0.05, -0.02, 0.0, 0.1, -0.1, 0.0])


def _output(logprobs: Tensor) -> PolicyOutput:
    entropy = torch.full_like(logprobs, 2.0)
    return PolicyOutput(logprobs.requires_grad_(), entropy, torch.zeros(1, 1))


def _later(
    config: ObjectiveConfig, part: Batch = BATCH, now: Tensor = NOW, start: Tensor = START
) -> tuple[Tensor, Tensor, dict[str, float]]:
    """Loss, gradient and totals of a minibatch after the first."""
    output = _output(now.clone())
    loss, totals = PolicyLoss(config, VERSION, CPU).later(part, output, start)
    (gradient,) = torch.autograd.grad(loss, output.logprobs)
    return loss.detach(), gradient, totals


def _k2(now: Tensor, old: Tensor, weights: Tensor) -> Tensor:
    """The gradient of the default objective."""
    rho = torch.zeros(3).index_add(0, SEQUENCE, weights * (now - old))[SEQUENCE]
    return -weights * (ADVANTAGES - 0.1 * rho) / 3


def test_rollout_holds_everything_in_the_ratio() -> None:
    _, gradient, totals = _later(ROLLOUT)
    torch.testing.assert_close(gradient, _k2(NOW, RECORDED, torch.ones(6)))
    rho = torch.zeros(3).index_add(0, SEQUENCE, NOW - RECORDED).abs().mean().item()
    assert totals["objective/rho"] == pytest.approx(rho)
    assert (totals["correction/cut"], totals["correction/weight"]) == (0.0, 1.0)


def test_learner_measures_the_iterations_own_movement_and_weighs_the_rest() -> None:
    _, gradient, totals = _later(ObjectiveConfig())
    weights = (START - RECORDED).exp().clamp(max=2.0)
    torch.testing.assert_close(gradient, _k2(NOW, START, weights))
    assert totals["correction/cut"] == pytest.approx(1 / 6)
    assert totals["correction/weight"] == pytest.approx(weights.mean().item())
    metrics = policy_metrics(totals)
    expected = weights.mean().square() / weights.square().mean()
    assert metrics["correction/ess"] == pytest.approx(expected.item())
    assert "correction/weight_square" not in metrics


def test_without_a_correction_the_rollouts_numbers_are_not_used() -> None:
    _, gradient, _ = _later(UNCORRECTED)
    torch.testing.assert_close(gradient, _k2(NOW, START, torch.ones(6)))


def test_a_mask_drops_tokens_or_whole_sequences() -> None:
    _, gradient, totals = _later(ObjectiveConfig(correction=Correction.mask))
    assert gradient[[1, 2]].tolist() == [0.0, 0.0] and gradient[[0, 3, 4, 5]].all()
    assert totals["correction/cut"] == pytest.approx(2 / 6)
    start = START.clone()
    start[2] = RECORDED[2]  # now the product of the first sequence's ratios leaves the interval
    config = ObjectiveConfig(correction=Correction.mask, correction_level=Level.sequence)
    _, gradient, totals = _later(config, start=start)
    assert gradient[:3].tolist() == [0.0] * 3 and gradient[3:].all()
    assert totals["correction/cut"] == pytest.approx(3 / 6)


def test_old_tokens_weigh_less_if_asked() -> None:
    config = ObjectiveConfig(correction=Correction.none, staleness_power=1.0)
    _, gradient, _ = _later(config)
    weights = torch.tensor([1, 1, 1, 1 / 2, 1 / 3, 1 / 2])
    torch.testing.assert_close(gradient, _k2(NOW, START, weights))


def test_trust_in_old_tokens_multiplies_the_importance_weight() -> None:
    _, gradient, _ = _later(ObjectiveConfig(staleness_power=1.0))
    importance = (START - RECORDED).exp().clamp(max=2.0)
    trust = torch.tensor([1, 1, 1, 1 / 2, 1 / 3, 1 / 2])
    torch.testing.assert_close(gradient, _k2(NOW, START, importance * trust))


@pytest.mark.parametrize("kind", Kind)
def test_the_first_minibatch_is_on_policy_against_the_learner(kind: Kind) -> None:
    """Its own log-probs are pi_old: no ratio to clip, whatever the rollout recorded."""
    config = ObjectiveConfig(kind=kind, correction=Correction.none)
    objective, output = PolicyLoss(config, VERSION, CPU), _output(START.clone())
    loss, totals = objective.first(BATCH, output)
    (gradient,) = torch.autograd.grad(loss, output.logprobs)
    lengths = torch.tensor([3, 3, 3, 1, 2, 2])
    sums, means = torch.full((6,), 3), 3 * lengths
    over = {Kind.k2: sums, Kind.dr_grpo: sums, Kind.grpo: means, Kind.gspo: means}
    expected = -ADVANTAGES / over.get(kind, torch.full((6,), 6))
    torch.testing.assert_close(gradient, expected)
    assert (totals["objective/rho"], totals["objective/clipped"]) == (0.0, 0.0)
    tokens_by_lag = objective.mismatch.sums[:, 0].tolist()
    assert tokens_by_lag[:4] == [3.0, 2.0, 1.0, 0.0]
    assert objective.mismatch.largest[0].item() == pytest.approx(math.log(4.0))
    assert objective.mismatch.largest[1].item() == pytest.approx(0.1)


@pytest.mark.parametrize("kind", Kind)
def test_micro_batches_add_up(kind: Kind) -> None:
    config = ObjectiveConfig(kind=kind, staleness_power=0.5)
    whole, gradient, totals = _later(config)
    loss, gradients, sums, first = torch.zeros(()), [], dict.fromkeys(POLICY_TOTALS, 0.0), 0
    for part in micro_batches(BATCH, 5):
        span = slice(first, first + int(part.loss_mask.sum()))
        value, mine, found = _later(config, part, NOW[span], START[span])
        loss, first = loss + value, span.stop
        gradients.append(mine)
        sums = {name: sums[name] + found[name] for name in sums}
    assert len(gradients) == 3
    torch.testing.assert_close(loss, whole)
    torch.testing.assert_close(torch.cat(gradients), gradient)
    assert sums == pytest.approx(totals, abs=1e-6)
    assert totals["objective/entropy"] == pytest.approx(2.0)


@pytest.mark.parametrize("kind", Kind)
def test_a_step_whose_tokens_are_all_too_old_is_no_error(kind: Kind) -> None:
    part = pack([_sample([], [], 0.5)])
    output = _output(torch.zeros(0))
    loss, totals = PolicyLoss(ObjectiveConfig(kind=kind), VERSION, CPU).first(part, output)
    assert loss.item() == 0.0 and all(value == 0.0 for value in totals.values())
