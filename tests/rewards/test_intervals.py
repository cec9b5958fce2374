import pytest

from rewards.intervals import rate


@pytest.mark.parametrize(
    ("count", "of", "low", "high"),
    [
        (10, 20, 0.2993, 0.7007),
        (0, 20, 0.0, 0.1611),
        (20, 20, 0.8389, 1.0),
        (3, 120, 0.0085, 0.0709),
    ],
)
def test_wilson_intervals_of_known_numbers(count: int, of: int, low: float, high: float) -> None:
    found = rate(count, of)
    assert (found.value, found.low, found.high) == pytest.approx((count / of, low, high), abs=1e-4)


def test_nothing_says_nothing() -> None:
    found = rate(0, 0)
    assert (found.value, found.low, found.high) == (0.0, 0.0, 1.0)
    assert str(rate(3, 120)) == "3/120 = 2.5 % [0.9, 7.1]"
