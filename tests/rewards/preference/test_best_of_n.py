"""Best-of-N rates against enumeration."""

import itertools

import numpy as np
import pytest

from rewards.preference.best_of_n import any_credit, best_of_n, chosen_credit, majority_credit
from rewards.preference.records import Row
from rewards.task import Message


def row(correct: list[int], answers: tuple[str, ...] = ()) -> Row:
    return Row(
        id="x",
        line=1,
        prompt=(Message(role="user", content="?"),),
        responses=tuple(f"r{i}" for i in range(len(correct))),
        quality=tuple(float(mark) for mark in correct),
        answers=answers,
    )


def naive_chosen(scores: list[float], correct: list[int], k: int) -> float:
    """Over all subsets of k, the mean correctness of the best-scored, draws shared."""
    found = []
    for subset in itertools.combinations(range(len(scores)), k):
        best = max(scores[i] for i in subset)
        found.append(np.mean([correct[i] for i in subset if scores[i] == best]))
    return float(np.mean(found))


def test_every_k_against_all_subsets() -> None:
    random = np.random.default_rng(0)
    scores = random.integers(0, 4, (12, 6)).astype(float)  # many draws
    correct = random.integers(0, 2, (12, 6)).astype(float)
    for k in range(1, 7):
        expected = [
            naive_chosen(s, c, k) for s, c in zip(scores.tolist(), correct.tolist(), strict=True)
        ]
        assert chosen_credit(scores, correct, k) == pytest.approx(expected)
        any_of = [
            np.mean([max(c[i] for i in each) for each in itertools.combinations(range(6), k)])
            for c in correct.tolist()
        ]
        assert any_credit(correct, k) == pytest.approx(any_of)


def test_best_of_eight_by_hand() -> None:
    rows = [row([1, 0, 0, 0, 0, 0, 0, 0]), row([0, 0, 0, 0, 0, 0, 1, 1]), row([0] * 8)]
    scores = [
        np.array([0.9, 0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7]),  # right
        np.array([0.5, 0.1, 0.1, 0.1, 0.1, 0.1, 0.5, 0.5]),  # three share the best, two right
        np.arange(8.0),
    ]
    found = best_of_n(rows, scores)
    assert found.n == 8 and found.rows == 3
    assert found.pass_at_1.value == pytest.approx((1 / 8 + 2 / 8) / 3)
    assert found.rm_at_n.value == pytest.approx((1 + 2 / 3) / 3)
    assert found.rm_at_n_first == pytest.approx(1 / 3)
    assert found.tied_rows == 1
    assert found.pass_at_n.value == pytest.approx(2 / 3)
    assert [point.k for point in found.curve] == [1, 2, 4, 8]
    assert found.curve[0].rm_at_k == pytest.approx(found.pass_at_1.value)
    assert found.curve[-1].rm_at_k == pytest.approx(found.rm_at_n.value)
    assert found.curve[-1].pass_at_k == pytest.approx(found.pass_at_n.value)
    assert found.majority is None


def test_rows_of_different_sizes() -> None:
    found = best_of_n([row([1, 0]), row([0, 0, 1])], [np.array([1.0, 0.0]), np.array([0, 1.0, 0])])
    assert found.n == 3
    assert found.rm_at_n.value == 0.5
    assert [point.k for point in found.curve] == [1, 2]


def test_majorities() -> None:
    right = np.array([1.0, 0.0, 0.0, 1.0])
    answers = ["4", "5", "5", "4"]
    assert majority_credit(answers, right, np.ones(4)) == 0.5
    assert majority_credit(answers, right, np.array([0.9, 0.1, 0.2, 0.1])) == 1.0
    made = row([1, 0, 0], ("4", "5", "5"))
    found = best_of_n([made], [np.array([0.9, 0.1, 0.2])])
    assert found.majority == 0.0 and found.weighted_majority == 1.0
    # Logits are no weights: through a sigmoid, 0.88 against 0.50 + 0.05.
    logits = best_of_n([made], [np.array([2.0, 0.0, -3.0])])
    assert logits.weighted_majority == 1.0
