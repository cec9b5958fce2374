"""Pairs to compare, win rates, Bradley-Terry: against plain references."""

import math
import random
from collections import Counter
from collections.abc import Sequence

import pytest
from hypothesis import given
from hypothesis import strategies as st

from rewards.ranking import Outcome, bradley_terry, connected, schedule, win_rates


@pytest.mark.parametrize(("count", "pairs"), [(0, 0), (1, 0), (2, 1), (3, 3), (8, 28)])
def test_small_groups_meet_all(count: int, pairs: int) -> None:
    made = schedule(count, 7)
    assert len(made) == len(set(made)) == pairs
    assert all(0 <= i < j < count for i, j in made)


@given(st.integers(1, 60), st.integers(1, 20))
def test_every_answer_meets_about_so_many_others(count: int, partners: int) -> None:
    pairs = schedule(count, partners)
    assert len(set(pairs)) == len(pairs) and all(0 <= i < j < count for i, j in pairs)
    met = Counter(place for pair in pairs for place in pair)
    wanted = min(max(partners, 2), count - 1)
    degrees = [met[place] for place in range(count)]
    assert max(degrees) - min(degrees) <= 1
    assert max(degrees) == wanted and sum(degrees) >= wanted * count - 1
    assert connected(count, [(i, j, 0.5) for i, j in pairs])


def test_a_large_group_is_linear_in_its_size() -> None:
    assert len(schedule(12, 7)) == 12 * 7 // 2
    assert len(schedule(32, 7)) == 32 * 7 // 2
    assert len(schedule(33, 7)) == (33 * 7 - 1) // 2  # one of them meets six
    assert schedule(9, 2) == [
        (0, 1), (0, 8), (1, 2), (2, 3), (3, 4), (4, 5), (5, 6), (6, 7), (7, 8)
    ]  # fmt: skip


def test_what_is_connected() -> None:
    assert connected(0, []) and connected(1, [])
    assert connected(3, [(0, 1, 1.0), (1, 2, 0.0)])
    assert not connected(2, [])
    assert not connected(4, [(0, 1, 1.0), (2, 3, 0.0)])


def test_win_rates_of_few() -> None:
    assert win_rates(3, [(0, 1, 1.0), (0, 2, 0.5)]) == [0.75, 0.0, 0.5]
    assert win_rates(3, [(0, 1, 0.0)]) == [0.0, 1.0, None]
    assert win_rates(0, []) == []


@given(st.integers(2, 12), st.randoms(use_true_random=False))
def test_the_mean_of_win_rates_is_a_half(count: int, rng: random.Random) -> None:
    outcomes = [(i, j, rng.choice([0.0, 0.5, 1.0])) for i, j in schedule(count, 11)]
    rates = [rate for rate in win_rates(count, outcomes) if rate is not None]
    assert len(rates) == count and sum(rates) / count == pytest.approx(0.5)


def ascend(count: int, outcomes: Sequence[Outcome]) -> list[float]:
    """The documented likelihood, climbed in small steps."""
    strengths = [0.0] * count
    for _ in range(20_000):
        slopes = [0.5 - sigmoid(own) for own in strengths]
        for i, j, score in outcomes:
            surprise = score - sigmoid(strengths[i] - strengths[j])
            slopes[i] += surprise
            slopes[j] -= surprise
        if max(map(abs, slopes)) < 1e-11:
            break
        rate = 2.0 / max(Counter(p for i, j, _ in outcomes for p in (i, j)).values())
        strengths = [own + rate * slope for own, slope in zip(strengths, slopes, strict=True)]
    return [sigmoid(own) for own in strengths]


def sigmoid(x: float) -> float:
    return 1 / (1 + math.exp(-x))


@pytest.mark.parametrize("seed", range(12))
def test_bradley_terry_is_the_maximum_of_its_likelihood(seed: int) -> None:
    rng = random.Random(seed)
    count = rng.randint(2, 9)
    pairs = schedule(count, rng.choice([2, 3, 8]))
    outcomes = [(i, j, rng.choice([0.0, 0.5, 1.0, 1.0])) for i, j in pairs]
    found = bradley_terry(count, outcomes)
    assert found == pytest.approx(ascend(count, outcomes), abs=1e-8)


def test_two_answers_by_hand() -> None:
    """By symmetry s = -t, and 1 - sigmoid(2 s) = sigmoid(s) - 1/2 at the maximum."""
    best, worst = bradley_terry(2, [(0, 1, 1.0)])
    assert best is not None and worst is not None
    strength = math.log(best / (1 - best))
    assert 1 - sigmoid(2 * strength) == pytest.approx(best - 0.5)
    assert best + worst == pytest.approx(1.0)


def test_who_wins_all_is_finite_and_who_meets_nobody_has_no_chance_to_tell() -> None:
    found = bradley_terry(4, [(0, 1, 1.0)] * 1000)
    assert found[2:] == [None, None]
    assert found[0] is not None and 0.9 < found[0] < 1.0
    assert bradley_terry(3, [(0, 1, 0.5), (1, 2, 0.5)]) == pytest.approx([0.5] * 3)
    assert bradley_terry(0, []) == []


@pytest.mark.parametrize("seed", range(10))
def test_overwhelming_wins_do_not_throw_it_off(seed: int) -> None:
    """On such a ring, where the first of two wins up to 1000 times, whole Newton steps diverge."""
    rng = random.Random(seed)
    ring = [(i, j, 1.0) for i, j in schedule(12, 2) for _ in range(rng.randint(1, 1000))]
    found = [chance or 0.0 for chance in bradley_terry(12, ring)]
    assert found[0] > 0.9 and found[-1] < 0.1
    assert sum(found) == pytest.approx(6.0)


@given(st.integers(2, 10), st.randoms(use_true_random=False))
def test_names_do_not_matter_and_the_mean_is_a_half(count: int, rng: random.Random) -> None:
    outcomes = [(i, j, rng.choice([0.0, 0.5, 1.0])) for i, j in schedule(count, 4)]
    order = list(range(count))
    rng.shuffle(order)
    renamed = [(order[j], order[i], 1.0 - score) for i, j, score in reversed(outcomes)]
    for rate in (win_rates, bradley_terry):
        plain, moved = rate(count, outcomes), rate(count, renamed)
        assert [moved[place] for place in order] == pytest.approx(plain, abs=1e-9)
    chances = [chance for chance in bradley_terry(count, outcomes) if chance is not None]
    assert sum(chances) / len(chances) == pytest.approx(0.5, abs=1e-9)


@given(st.integers(2, 8), st.randoms(use_true_random=False))
def test_bradley_terry_orders_a_whole_table_as_win_rates_do(count: int, rng: random.Random) -> None:
    outcomes = [(i, j, rng.choice([0.0, 0.5, 1.0])) for i, j in schedule(count, 7)]
    rates, chances = win_rates(count, outcomes), bradley_terry(count, outcomes)
    for i in range(count):
        for j in range(count):
            if rates[i] < rates[j] - 1e-9:  # type: ignore[operator]
                assert chances[i] < chances[j]  # type: ignore[operator]


def test_a_win_more_is_a_chance_more() -> None:
    pairs = schedule(12, 7)
    rng = random.Random(3)
    outcomes = [(i, j, rng.choice([0.0, 0.5, 1.0])) for i, j in pairs]
    for place, (i, j, score) in enumerate(outcomes):
        if score == 1.0:
            continue
        better = [*outcomes[:place], (i, j, 1.0), *outcomes[place + 1 :]]
        for rate in (win_rates, bradley_terry):
            assert rate(12, better)[i] > rate(12, outcomes)[i]  # type: ignore[operator]
            assert rate(12, better)[j] < rate(12, outcomes)[j]  # type: ignore[operator]
