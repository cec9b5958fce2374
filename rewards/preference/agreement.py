"""Statistics of a judge against labels, and of two judges: pure functions on arrays.

Shapes: C comparisons, R rows.
"""

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]

DRAWS = 10_000
MOST_CELLS = 20_000_000  # of one bootstrap's table held at once
BINS = 10


@dataclass(frozen=True, slots=True, kw_only=True)
class Interval:
    """A value with its 95 % interval."""

    value: float
    low: float
    high: float


def bootstrap(values: Floats, draws: int = DRAWS, seed: int = 0) -> Interval:
    """Percentile interval of the mean of `values` [R], rows drawn with replacement.

    Equal values are drawn together: how often each is drawn is multinomial, which is the same
    distribution at the cost of the distinct values instead of the rows.
    """
    if values.size == 0:
        return Interval(value=math.nan, low=math.nan, high=math.nan)
    distinct, counts = np.unique(values, return_counts=True)
    random = np.random.default_rng(seed)
    step = max(1, MOST_CELLS // distinct.size)
    sizes = [min(step, draws - start) for start in range(0, draws, step)]
    weights = counts / values.size
    means = [random.multinomial(values.size, weights, size=size) @ distinct for size in sizes]
    low, high = np.quantile(np.concatenate(means) / values.size, [0.025, 0.975])
    return Interval(value=float(values.mean()), low=float(low), high=float(high))


def mcnemar(only_first: int, only_second: int) -> float:
    """Exact two-sided p that two judges are right equally often (McNemar 1947).

    Rows on which just one is right are a coin that falls either way: p = P(X <= the smaller) * 2
    for X ~ Binomial(n, 1/2), at most 1.
    """
    total, smaller = only_first + only_second, min(only_first, only_second)
    if total == 0:
        return 1.0
    logs = [
        math.lgamma(total + 1) - math.lgamma(k + 1) - math.lgamma(total - k + 1)
        for k in range(smaller + 1)
    ]
    top = max(logs)
    tail = math.exp(top - total * math.log(2)) * math.fsum(math.exp(each - top) for each in logs)
    return min(1.0, 2 * tail)


def cohen_kappa(first: Ints, second: Ints) -> float | None:
    """Agreement of two judges beyond chance (Cohen 1960): (p_o - p_e) / (1 - p_e).

    None where chance alone agrees always, as when both say A every time.
    """
    if first.size == 0:
        return None
    seen = np.mean(first == second)
    kinds = np.union1d(first, second)
    by_chance = sum(np.mean(first == kind) * np.mean(second == kind) for kind in kinds)
    return None if by_chance >= 1.0 else float((seen - by_chance) / (1.0 - by_chance))


@dataclass(frozen=True, slots=True, kw_only=True)
class Bin:
    """Comparisons of about the same confidence."""

    low: float
    high: float
    count: int
    confidence: float  # mean
    right: float  # share; a tie is half


@dataclass(frozen=True, slots=True, kw_only=True)
class Calibration:
    """How sure a judge is, beside how often it is right."""

    ece: float  # expected calibration error
    brier: float
    slope: float  # of the logistic link: P(first is better) = 1 / (1 + exp(-slope * difference))
    bins: tuple[Bin, ...]


def calibrate(margins: Floats, slope: float | None) -> Calibration:
    """Confidence against truth over comparisons [C]: `margins` are score(good) - score(bad).

    With a slope, P(good is better) = sigmoid(slope * margin); with None the margins are
    probabilities already, 2p - 1. The confidence is that of the side the judge prefers, in
    [0.5, 1], cut into ten equal bins; ECE = sum over bins of share * |right - confidence|
    (Naeini et al. 2015); Brier = mean of (1 - p)^2.
    """
    p = (margins + 1) / 2 if slope is None else sigmoid(slope * margins)
    confidence = np.maximum(p, 1 - p)
    right = np.where(margins > 0, 1.0, np.where(margins < 0, 0.0, 0.5))
    index = np.minimum(((confidence - 0.5) * 2 * BINS).astype(np.int64), BINS - 1)
    counts = np.bincount(index, minlength=BINS)
    sure = np.bincount(index, confidence, BINS) / np.maximum(counts, 1)
    true = np.bincount(index, right, BINS) / np.maximum(counts, 1)
    bins = tuple(
        Bin(
            low=0.5 + each / (2 * BINS),
            high=0.5 + (each + 1) / (2 * BINS),
            count=int(counts[each]),
            confidence=float(sure[each]),
            right=float(true[each]),
        )
        for each in range(BINS)
        if counts[each]
    )
    error = float(np.abs(true - sure) @ counts / margins.size)
    brier = float(np.mean((1 - p) ** 2))
    return Calibration(ece=error, brier=brier, slope=1.0 if slope is None else slope, bins=bins)


def fit_slope(margins: Floats) -> float:
    """The slope >= 0 of the logistic link under which the labels are likeliest.

    It solves mean(m * sigmoid(-slope * m)) = 0, which falls with the slope; 0 where the judge is
    wrong on balance, at most 1e6 / mean|m| where it is never wrong.
    """
    scale = float(np.mean(np.abs(margins)))
    if scale == 0.0 or float(np.mean(margins)) <= 0.0:
        return 0.0
    unit = margins / scale
    low, high = 0.0, 1e6
    for _ in range(80):
        middle = (low + high) / 2
        if float(np.mean(unit * sigmoid(-middle * unit))) > 0.0:
            low = middle
        else:
            high = middle
    return (low + high) / 2 / scale


def sigmoid(x: Floats) -> Floats:
    """1 / (1 + exp(-x)), without overflow."""
    return 0.5 * (1 + np.tanh(x / 2))


def ranks(values: Floats) -> Floats:
    """Ranks from 1, the mean rank for equal values."""
    _, inverse, counts = np.unique(values, return_inverse=True, return_counts=True)
    last = np.cumsum(counts)
    return (last - (counts - 1) / 2)[inverse]


def correlation(first: Floats, second: Floats) -> float | None:
    """Pearson's r; None where one of them does not vary."""
    if first.size < 2 or np.ptp(first) == 0.0 or np.ptp(second) == 0.0:
        return None
    return float(np.corrcoef(first, second)[0, 1])


def area_under_curve(scores: Floats, good: NDArray[np.bool_]) -> float | None:
    """The chance that a good response scores above a bad one, ties half (Mann-Whitney)."""
    positives = int(good.sum())
    negatives = good.size - positives
    if positives == 0 or negatives == 0:
        return None
    above = ranks(scores)[good].sum() - positives * (positives + 1) / 2
    return float(above / (positives * negatives))
