import json
import math
from collections.abc import Sequence
from dataclasses import asdict

import pytest
from hypothesis import given
from hypothesis import strategies as st

from rewards.calibration import VerifiedPair
from rewards.comparison import PairOutcome
from rewards.critic_metrics import CriticWindow, JudgedPair

Says = float | None
NAMES = ("agreement", "order_consistency", "position_bias", "length_bias", "ece", "unreadable")


def pair(right: int = 5, wrong: int = 5) -> VerifiedPair:
    return VerifiedPair(
        task_id="t",
        family="sums",
        prompt=(),
        right="right",
        wrong="wrong",
        right_tokens=right,
        wrong_tokens=wrong,
        step=0,
    )


def outcome(right_first: Says, wrong_first: Says) -> PairOutcome:
    """What the critic says of the one shown as A, first with the right answer there."""
    preference = None
    if right_first is not None and wrong_first is not None:
        preference = right_first if right_first == 1.0 - wrong_first else 0.5
    return PairOutcome(
        first=None,
        second=None,
        says=(right_first, wrong_first),
        preference=preference,
        judgements=2,
        retries=0,
        tokens=0,
        prompt_tokens=0,
        problems=(),
    )


RIGHT, WRONG, TIE = outcome(1.0, 0.0), outcome(0.0, 1.0), outcome(0.5, 0.5)
ALWAYS_A, ALWAYS_B = outcome(1.0, 1.0), outcome(0.0, 0.0)
UNREADABLE = outcome(None, 1.0)


def metrics(rows: Sequence[tuple[VerifiedPair, PairOutcome]], size: int = 64) -> dict[str, float]:
    window = CriticWindow(size)
    for row in rows:
        window.add(*row)
    return window.metrics()


def test_nothing_is_said_of_nothing() -> None:
    window = CriticWindow(4)
    assert window.metrics() == {"critic/pairs": 0.0}
    assert window.agreement is None and window.judged == 0
    assert metrics([(pair(), UNREADABLE)]) == {
        "critic/pairs": 0.0,
        "critic/unreadable": 1.0,
        "critic/position_bias": 0.5,
    }


def test_a_right_critic() -> None:
    assert metrics([(pair(9, 4), RIGHT), (pair(4, 9), RIGHT)]) == {
        "critic/agreement": 1.0,
        "critic/order_consistency": 1.0,
        "critic/position_bias": 0.0,
        "critic/length_bias": 0.0,
        "critic/ece": 0.0,
        "critic/unreadable": 0.0,
        "critic/pairs": 2.0,
    }


def test_a_critic_that_always_says_a() -> None:
    assert metrics([(pair(9, 4), ALWAYS_A), (pair(4, 9), ALWAYS_A)]) == {
        "critic/agreement": 0.5,
        "critic/order_consistency": 0.0,
        "critic/position_bias": 0.5,
        "critic/length_bias": 0.0,
        "critic/ece": 0.0,  # it is never sure, and right half the time
        "critic/unreadable": 0.0,
        "critic/pairs": 2.0,
    }
    assert metrics([(pair(), ALWAYS_B)])["critic/position_bias"] == -0.5


def test_a_critic_that_prefers_the_longer() -> None:
    found = metrics([(pair(9, 4), RIGHT), (pair(4, 9), WRONG), (pair(5, 5), RIGHT)])
    assert found["critic/length_bias"] == 0.5  # equal lengths say nothing of it
    assert found["critic/agreement"] == 2 / 3
    assert metrics([(pair(9, 4), WRONG), (pair(4, 9), RIGHT)])["critic/length_bias"] == -0.5


def test_a_critic_that_is_always_wrong_is_badly_calibrated() -> None:
    assert metrics([(pair(), WRONG)] * 3)["critic/ece"] == 1.0


def test_calibration_by_hand() -> None:
    """Sure (1.0): right 3 of 4. Leaning (0.75): right 1 of 2. Undecided: half."""
    rows = [RIGHT] * 3 + [WRONG] + [outcome(1.0, 0.5), outcome(0.5, 1.0)] + [TIE] * 2
    expected = (4 * abs(0.75 - 1.0) + 2 * abs(0.5 - 0.75) + 2 * 0.0) / 8
    assert metrics([(pair(), each) for each in rows])["critic/ece"] == pytest.approx(expected)


def test_ties_and_disagreeing_orders_are_half_and_unreadable_ones_left_out() -> None:
    rows = [RIGHT, TIE, ALWAYS_A, outcome(1.0, 0.5), UNREADABLE]
    found = metrics([(pair(), each) for each in rows])
    assert found["critic/agreement"] == (1.0 + 0.5 + 0.5 + 0.5) / 4
    assert found["critic/order_consistency"] == 0.5  # the first two
    assert found["critic/unreadable"] == 0.2
    assert found["critic/pairs"] == 4.0
    assert found["critic/position_bias"] == pytest.approx(5 / 6 - 0.5)  # six words that are no tie


def test_the_window_keeps_the_last() -> None:
    window = CriticWindow(2)
    for each in (WRONG, WRONG, RIGHT, RIGHT):
        window.add(pair(), each)
    assert window.agreement == 1.0 and window.judged == 2


def test_a_resumed_window_goes_on_as_it_was() -> None:
    window = CriticWindow(3)
    for each in (WRONG, RIGHT, UNREADABLE, TIE):
        window.add(pair(9, 4), each)
    kept = json.loads(json.dumps([asdict(each) for each in window.state()]))
    resumed = CriticWindow(3, [JudgedPair(**each) for each in kept])
    assert resumed.metrics() == window.metrics()
    window.add(pair(4, 9), RIGHT)
    resumed.add(pair(4, 9), RIGHT)
    assert resumed.state() == window.state()


Words = st.sampled_from([0.0, 0.5, 1.0, None])
Rows = st.lists(st.tuples(st.integers(1, 4), st.integers(1, 4), Words, Words), max_size=40)


@given(rows=Rows, size=st.integers(1, 50))
def test_metrics_are_finite_and_as_the_plain_reference_counts(
    rows: list[tuple[int, int, Says, Says]], size: int
) -> None:
    found = metrics([(pair(r, w), outcome(a, b)) for r, w, a, b in rows], size)
    kept = rows[-size:]
    assert all(math.isfinite(value) for value in found.values())
    assert found.keys() <= {f"critic/{name}" for name in (*NAMES, "pairs")}
    readable = [(r, w, a, b) for r, w, a, b in kept if a is not None and b is not None]
    assert found["critic/pairs"] == len(readable)
    words = [word for _, _, a, b in kept for word in (a, b) if word in (0.0, 1.0)]
    assert ("critic/position_bias" in found) == bool(words)
    if words:
        assert found["critic/position_bias"] == pytest.approx(words.count(1.0) / len(words) - 0.5)
    assert ("critic/agreement" in found) == bool(readable)
    if readable:
        same = [a + b == 1.0 for _, _, a, b in readable]
        agree = [a if a + b == 1.0 else 0.5 for _, _, a, b in readable]
        assert found["critic/order_consistency"] == pytest.approx(sum(same) / len(same))
        assert found["critic/agreement"] == pytest.approx(sum(agree) / len(agree))
        assert 0.0 <= found["critic/ece"] <= 1.0
