"""What choosing among N responses by a judge's scores is worth.

Shapes: R rows of N responses each; scores [R, N], correct [R, N] of 0 and 1.
"""

import math
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from rewards.preference.agreement import Floats, Interval, bootstrap, sigmoid
from rewards.preference.records import Row


@dataclass(frozen=True, slots=True, kw_only=True)
class Point:
    """The same with k of the N responses, drawn without replacement."""

    k: int
    rm_at_k: float  # the best-scored of the k is right
    pass_at_k: float  # one of the k is right


@dataclass(frozen=True, slots=True, kw_only=True)
class BestOfN:
    """Rates over rows. Where several responses share the best score, each is taken as likely."""

    n: int  # responses of a row; the most where rows differ
    rows: int
    pass_at_1: Interval  # a response drawn at random
    rm_at_n: Interval  # the best-scored response
    rm_at_n_first: float  # the same if the first of equal scores is taken
    tied_rows: int  # rows where the best score is shared
    pass_at_n: Interval  # any response: what a perfect judge would reach
    majority: float | None  # the most frequent answer
    weighted_majority: float | None  # the answer with the highest sum of weights
    curve: tuple[Point, ...]  # for k = 1, 2, 4, ... up to the fewest responses of a row


def chosen_credit(scores: Floats, correct: Floats, k: int) -> Floats:
    """Chance [R] that the best-scored of `k` responses, drawn without replacement, is right.

    The response of rank i (from 0, the best first) is the best of the k with probability
    C(N - 1 - i, k - 1) / C(N, k); responses of equal score share theirs.
    """
    rows, n = scores.shape
    order = np.argsort(-scores, axis=1, kind="stable")
    ranked = np.take_along_axis(scores, order, axis=1)
    right = np.take_along_axis(correct, order, axis=1)
    new = np.ones((rows, n), dtype=np.int64)
    new[:, 1:] = ranked[:, 1:] != ranked[:, :-1]
    block = np.cumsum(new, axis=1) - 1 + np.arange(rows)[:, None] * n
    sizes = np.bincount(block.ravel(), minlength=rows * n)
    sums = np.bincount(block.ravel(), right.ravel(), minlength=rows * n)
    shared = (sums / np.maximum(sizes, 1))[block]
    total = math.comb(n, k)
    chance = np.array([math.comb(n - 1 - i, k - 1) / total for i in range(n)])
    return np.asarray(shared @ chance)


def any_credit(correct: Floats, k: int) -> Floats:
    """Chance [R] that one of `k` responses is right: 1 - C(N - c, k) / C(N, k)."""
    n = correct.shape[1]
    table = np.array([1.0 - math.comb(n - c, k) / math.comb(n, k) for c in range(n + 1)])
    return np.asarray(table[correct.sum(axis=1).astype(np.int64)])


def majority_credit(answers: Sequence[str], correct: Floats, weights: Floats) -> float:
    """How right the answer with the highest sum of weights is; equal answers share the choice."""
    sums: dict[str, float] = defaultdict(float)
    marks: dict[str, list[float]] = defaultdict(list)
    for answer, mark, weight in zip(answers, correct, weights, strict=True):
        sums[answer] += float(weight)
        marks[answer].append(float(mark))
    best = max(sums.values())
    winners = [answer for answer, value in sums.items() if math.isclose(value, best, rel_tol=1e-12)]
    return float(np.mean([np.mean(marks[answer]) for answer in winners]))


def row_credits(rows: Sequence[Row], scores: Sequence[Floats]) -> Floats:
    """RM@N credit of each row."""
    credit = np.zeros(len(rows))
    for index, table, correct in _by_size(rows, scores):
        credit[index] = chosen_credit(table, correct, correct.shape[1])
    return credit


def best_of_n(rows: Sequence[Row], scores: Sequence[Floats]) -> BestOfN:
    """All rates of judged rows."""
    sizes = [len(row.responses) for row in rows]
    one, whole, first, tied = (np.zeros(len(rows)) for _ in range(4))
    points: dict[int, tuple[list[Floats], list[Floats]]] = defaultdict(lambda: ([], []))
    for index, table, correct in _by_size(rows, scores):
        one[index] = correct.mean(axis=1)
        whole[index] = correct.max(axis=1)
        first[index] = correct[np.arange(len(index)), table.argmax(axis=1)]
        tied[index] = (table == table.max(axis=1, keepdims=True)).sum(axis=1) > 1
        for k in _steps(min(sizes)):
            points[k][0].append(chosen_credit(table, correct, k))
            points[k][1].append(any_credit(correct, k))
    answered = [(row, each) for row, each in zip(rows, scores, strict=True) if row.answers]
    plain = [majority_credit(r.answers, _correct(r), np.ones(len(r.answers))) for r, _ in answered]
    weighted = [
        majority_credit(row.answers, _correct(row), weight)
        for (row, _), weight in zip(answered, _weights([s for _, s in answered]), strict=True)
    ]
    return BestOfN(
        n=max(sizes),
        rows=len(rows),
        pass_at_1=bootstrap(one),
        rm_at_n=bootstrap(row_credits(rows, scores)),
        rm_at_n_first=float(first.mean()),
        tied_rows=int(tied.sum()),
        pass_at_n=bootstrap(whole),
        majority=float(np.mean(plain)) if plain else None,
        weighted_majority=float(np.mean(weighted)) if weighted else None,
        curve=tuple(
            Point(
                k=k,
                rm_at_k=float(np.concatenate(chosen).mean()),
                pass_at_k=float(np.concatenate(whole_k).mean()),
            )
            for k, (chosen, whole_k) in sorted(points.items())
        ),
    )


def _weights(scores: Sequence[Floats]) -> list[Floats]:
    """Scores that are all in [0, 1] are weights as they are; others through a sigmoid."""
    if all(float(each.min()) >= 0.0 and float(each.max()) <= 1.0 for each in scores):
        return list(scores)
    return [sigmoid(each) for each in scores]


def _steps(most: int) -> list[int]:
    doubled = [2**power for power in range(most.bit_length()) if 2**power < most]
    return [*doubled, most]


def _correct(row: Row) -> Floats:
    return np.array(row.good, dtype=np.float64)


def _by_size(
    rows: Sequence[Row], scores: Sequence[Floats]
) -> list[tuple[NDArray[np.int64], Floats, Floats]]:
    """Rows of the same N as tables: their places, scores and correct."""
    places: dict[int, list[int]] = defaultdict(list)
    for place, row in enumerate(rows):
        places[len(row.responses)].append(place)
    return [
        (
            np.array(index),
            np.stack([scores[place] for place in index]),
            np.stack([_correct(rows[place]) for place in index]),
        )
        for _, index in sorted(places.items())
    ]
