import math

from rl.evaluate import pass_at_k, pass_rate


def test_wilson_interval_of_known_numbers() -> None:
    rate = pass_rate([1.0] * 10 + [0.0] * 10)
    assert math.isclose(rate.value, 0.5)
    # Wilson, n = 20, p = 0.5: (0.2993, 0.7007), as statsmodels computes it.
    assert math.isclose(rate.low, 0.2993, abs_tol=1e-4)
    assert math.isclose(rate.high, 0.7007, abs_tol=1e-4)


def test_interval_stays_inside_zero_and_one() -> None:
    assert pass_rate([0.0] * 5).low == 0.0
    assert pass_rate([1.0] * 5).high <= 1.0


def test_pass_at_k_equals_enumeration() -> None:
    # 4 samples, 1 right: of the 6 pairs, 3 hold the right one.
    assert pass_at_k(4, 1, 2) == 0.5
    assert pass_at_k(4, 0, 4) == 0.0
    assert pass_at_k(4, 4, 1) == 1.0
