import torch
from hypothesis import given
from hypothesis import strategies as st

from rl.corrections import (
    effective_sample_size,
    masked_weights,
    sequence_log_ratios,
    staleness_weights,
    truncated_weights,
)

RATIOS = torch.tensor([0.25, 0.5, 1.0, 1.9, 2.0, 3.0], dtype=torch.float64)


def test_truncation_holds_down_what_is_over_the_cap() -> None:
    weights = truncated_weights(RATIOS.log(), 2.0 + 1e-12)
    torch.testing.assert_close(weights.values, RATIOS.clamp(max=2.0))
    assert weights.cut.tolist() == [False] * 5 + [True]


def test_a_mask_drops_what_leaves_the_interval_on_either_side() -> None:
    weights = masked_weights(RATIOS.log(), 2.0 + 1e-12)
    kept = torch.tensor([0, 0.5, 1.0, 1.9, 2.0, 0], dtype=torch.float64)
    torch.testing.assert_close(weights.values, kept)
    assert weights.cut.tolist() == [True, False, False, False, False, True]


def test_a_mask_is_as_wide_below_1_as_above() -> None:
    log_ratio = torch.tensor([1 / 5, 1 / 3, 3, 5], dtype=torch.float64).log()
    assert masked_weights(log_ratio, 4.0).cut.tolist() == [True, False, False, True]


def test_equal_policies_weigh_1_exactly_and_meet_no_bound() -> None:
    for weights_of in (truncated_weights, masked_weights):
        weights = weights_of(torch.zeros(3), 1.0)
        assert weights.values.tolist() == [1.0, 1.0, 1.0]
        assert not weights.cut.any()


@given(st.lists(st.floats(allow_nan=False, width=32), min_size=1, max_size=5))
def test_any_ratio_gives_a_finite_weight(log_ratios: list[float]) -> None:
    for weights_of in (truncated_weights, masked_weights):
        values = weights_of(torch.tensor(log_ratios), 2.0).values
        assert values.isfinite().all() and values.min() >= 0 and values.max() <= 2


def test_a_sequences_ratio_is_the_product_of_its_tokens() -> None:
    log_ratio = torch.tensor([2.0, 3.0, 0.5]).log()
    found = sequence_log_ratios(log_ratio, torch.tensor([0, 0, 2]), 3).exp()
    torch.testing.assert_close(found, torch.tensor([6.0, 6.0, 0.5]))


def test_trust_falls_with_age() -> None:
    lags = torch.tensor([0, 1, 3])
    assert staleness_weights(lags, 1.0).tolist() == [1.0, 0.5, 0.25]
    assert staleness_weights(lags, 0.0).tolist() == [1.0, 1.0, 1.0]


def test_the_expected_weight_under_the_rollout_is_1() -> None:
    """What makes the weights right: sum over tokens of pi_rollout * ratio, without a cap met."""
    rollout = torch.tensor([0.5, 0.3, 0.2], dtype=torch.float64)
    learner = torch.tensor([0.4, 0.25, 0.35], dtype=torch.float64)
    weights = truncated_weights(learner.log() - rollout.log(), 2.0)
    assert abs((rollout * weights.values).sum().item() - 1) < 1e-12


def test_effective_sample_size() -> None:
    assert effective_sample_size(1.0, 1.0) == 1.0
    assert effective_sample_size(0.5, 1.0) == 0.25  # one token in four has all the weight
    assert effective_sample_size(0.0, 0.0) == 0.0
