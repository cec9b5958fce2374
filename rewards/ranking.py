"""From comparisons of answers to a number for each: whom to compare, and who won how much.

An outcome `(i, j, score)` is one comparison of the answers i and j: 1 if i won, 0 if j did, 0.5 for
a tie.
"""

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

Outcome = tuple[int, int, float]
Floats = NDArray[np.float64]

_STEPS = 100  # of Newton's method; a group takes less than ten
_CLOSE = 1e-10  # of the strengths


def schedule(count: int, partners: int) -> list[tuple[int, int]]:
    """Pairs (i, j), i < j, of `count` answers to compare.

    All pairs if nobody then has more than `partners`. Else the circulant design: each answer meets
    its neighbours on a ring, `partners // 2` on each side, and for an odd number the one opposite.
    It is connected, and the numbers of partners differ by one at most. A ring needs two partners,
    so fewer are taken as two.
    """
    if count - 1 <= partners:
        return [(i, j) for i in range(count) for j in range(i + 1, count)]
    reach = max(partners, 2) // 2
    pairs = {(i, (i + step) % count) for step in range(1, reach + 1) for i in range(count)}
    if partners > 2 and partners % 2:
        half = count // 2
        pairs |= {(i, i + half) for i in range(half)}
    return sorted((min(pair), max(pair)) for pair in pairs)


def connected(count: int, outcomes: Sequence[Outcome]) -> bool:
    """Whether a chain of comparisons leads from every answer to every other."""
    near: list[set[int]] = [set() for _ in range(count)]
    for i, j, _ in outcomes:
        near[i].add(j)
        near[j].add(i)
    seen = {0} if count else set()
    waiting = list(seen)
    while waiting:
        fresh = near[waiting.pop()] - seen
        seen |= fresh
        waiting.extend(fresh)
    return len(seen) == count


def win_rates(count: int, outcomes: Sequence[Outcome]) -> list[float | None]:
    """Share of its comparisons that each answer won, a tie half; None without comparisons.

    The mean is 0.5 where all have been compared equally often.
    """
    won, met = [0.0] * count, [0] * count
    for i, j, score in outcomes:
        won[i] += score
        won[j] += 1.0 - score
        met[i] += 1
        met[j] += 1
    return [points / times if times else None for points, times in zip(won, met, strict=True)]


def bradley_terry(count: int, outcomes: Sequence[Outcome]) -> list[float | None]:
    """Chance of each answer to beat an average one; None without comparisons.

    P(i beats j) = sigmoid(s_i - s_j) (Bradley and Terry 1952), where an average answer has s = 0.
    The strengths s maximise the likelihood of the outcomes, a tie being half a win for each, with
    one virtual tie against an average answer for everybody: without it one that always wins
    would be infinitely strong. The mean is 0.5.
    """
    wins = np.zeros((count, count))
    for i, j, score in outcomes:
        wins[i, j] += score
        wins[j, i] += 1.0 - score
    strengths = np.zeros(count)
    for _ in range(_STEPS):
        step = _newton_step(wins, strengths)
        strengths = strengths + step
        if not step.size or np.abs(step).max() < _CLOSE:
            break
    met = (wins + wins.T).sum(axis=1) > 0
    chances = _sigmoid(strengths)
    return [float(chance) if some else None for chance, some in zip(chances, met, strict=True)]


def _newton_step(wins: Floats, strengths: Floats) -> Floats:
    """Towards the maximum of the likelihood, which is concave.

    A whole step may lead away from it. One that is damped by log(1 + d) / d, where no difference of
    strengths changes by more than d, always leads up (Sun and Tran-Dinh 2019, for the logistic
    likelihood).
    """
    beats = _sigmoid(strengths[:, None] - strengths[None, :])
    average = _sigmoid(strengths)
    games = wins + wins.T
    slope = (wins - games * beats).sum(axis=1) + 0.5 - average
    curve = -games * beats * (1.0 - beats)
    np.fill_diagonal(curve, 0.0)
    np.fill_diagonal(curve, average * (1.0 - average) - curve.sum(axis=1))
    step = np.linalg.solve(curve, slope)
    change = max(2.0 * np.abs(step).max(initial=0.0), _CLOSE)
    return step * (np.log1p(change) / change)


def _sigmoid(x: Floats) -> Floats:
    return np.exp(-np.logaddexp(0.0, -x))
