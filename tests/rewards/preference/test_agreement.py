"""Statistics against hand-worked numbers and naive versions."""

import itertools
import math

import numpy as np
import pytest

from rewards.preference.agreement import (
    area_under_curve,
    bootstrap,
    calibrate,
    cohen_kappa,
    correlation,
    fit_slope,
    mcnemar,
    ranks,
)


def test_mcnemar_by_hand() -> None:
    # 1 of 9 heads or fewer: (1 + 9) / 512, both tails.
    assert mcnemar(1, 8) == pytest.approx(20 / 512)
    assert mcnemar(8, 1) == mcnemar(1, 8)
    assert mcnemar(0, 0) == 1.0
    assert mcnemar(5, 5) == 1.0
    assert mcnemar(0, 10) == pytest.approx(2 / 1024)


@pytest.mark.parametrize(("first", "second"), [(3, 17), (40, 61), (0, 30)])
def test_mcnemar_is_the_binomial_tail(first: int, second: int) -> None:
    total = first + second
    tail = sum(math.comb(total, k) for k in range(min(first, second) + 1)) / 2**total
    assert mcnemar(first, second) == pytest.approx(min(1.0, 2 * tail), rel=1e-9)


def test_mcnemar_of_many_rows_does_not_overflow() -> None:
    assert 0.0 < mcnemar(40_000, 41_000) < 0.001


def test_kappa_by_hand() -> None:
    # 20 both A, 15 both B, 5 and 10 split: p_o = 0.7, p_e = 0.5 (Cohen's textbook table).
    first = np.array([0] * 25 + [1] * 25)
    second = np.array([0] * 20 + [1] * 5 + [0] * 10 + [1] * 15)
    assert cohen_kappa(first, second) == pytest.approx(0.4)
    assert cohen_kappa(first, first) == 1.0
    assert cohen_kappa(np.zeros(4, dtype=np.int64), np.zeros(4, dtype=np.int64)) is None


def test_bootstrap_is_that_of_drawing_rows() -> None:
    values = np.array([1.0] * 30 + [0.0] * 15 + [0.5] * 5)
    found = bootstrap(values)
    random = np.random.default_rng(7)
    drawn = random.choice(values, (20_000, values.size)).mean(axis=1)
    assert found.value == pytest.approx(values.mean())
    assert found.low == pytest.approx(np.quantile(drawn, 0.025), abs=0.011)
    assert found.high == pytest.approx(np.quantile(drawn, 0.975), abs=0.011)
    assert bootstrap(values) == found


def test_bootstrap_of_values_that_never_repeat() -> None:
    values = np.random.default_rng(0).normal(size=400)
    found = bootstrap(values, draws=4000)
    assert found.high - found.low == pytest.approx(2 * 1.96 / math.sqrt(400), rel=0.1)


def test_calibration_by_hand() -> None:
    # Sure of 0.75 four times and right three times; sure of 0.95 twice and right once.
    p = np.array([0.75, 0.75, 0.75, 0.25, 0.95, 0.05])
    found = calibrate(2 * p - 1, None)
    assert [each.count for each in found.bins] == [4, 2]
    assert [each.right for each in found.bins] == [0.75, 0.5]
    assert found.ece == pytest.approx(2 / 6 * 0.45)
    assert found.brier == pytest.approx((3 * 0.25**2 + 0.75**2 + 0.05**2 + 0.95**2) / 6)


def test_a_tie_is_half_right_at_even_odds() -> None:
    found = calibrate(np.zeros(8), 1.0)
    assert found.ece == 0.0 and found.brier == 0.25


def test_the_fitted_slope_is_the_likeliest() -> None:
    random = np.random.default_rng(3)
    size = np.abs(random.normal(0, 4, 5000))
    right = random.random(5000) < 1 / (1 + np.exp(-0.6 * size))
    margins = np.where(right, size, -size)
    slope = fit_slope(margins)

    def likelihood(k: float) -> float:
        return float(-np.log1p(np.exp(-k * margins)).sum())

    assert likelihood(slope) >= max(likelihood(slope * 0.99), likelihood(slope * 1.01))
    assert slope == pytest.approx(0.6, abs=0.05)
    assert calibrate(margins, slope).ece < calibrate(margins, 5.0).ece
    assert fit_slope(-np.ones(5)) == 0.0
    assert math.isfinite(fit_slope(np.ones(5)))


def test_ranks_and_correlations_with_ties() -> None:
    assert ranks(np.array([10.0, 20.0, 20.0, 5.0])).tolist() == [2.0, 3.5, 3.5, 1.0]
    assert correlation(np.array([1.0, 2.0, 3.0]), np.array([2.0, 4.0, 6.0])) == pytest.approx(1.0)
    assert correlation(np.array([1.0, 2.0]), np.array([1.0, 1.0])) is None


def test_area_under_curve_counts_pairs() -> None:
    random = np.random.default_rng(5)
    scores = random.integers(0, 6, 60).astype(float)
    good = random.random(60) < 0.4
    pairs = list(itertools.product(scores[good], scores[~good]))
    wins = sum(1.0 if a > b else 0.5 if a == b else 0.0 for a, b in pairs)
    assert area_under_curve(scores, good) == pytest.approx(wins / len(pairs))
    assert area_under_curve(scores, np.ones(60, dtype=bool)) is None
