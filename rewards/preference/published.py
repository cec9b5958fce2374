"""The figures that benchmarks publish, by their own rules for ties, weights and averages."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np

from rewards.preference.agreement import Floats
from rewards.preference.comparisons import Comparisons
from rewards.preference.records import Row, Shape
from rewards.preference.shapes import REWARD_BENCH_SECTIONS, RM_BENCH_STYLES

REWARD_BENCH_WEIGHTS = {"math-prm": 984.0}
"""In RewardBench's Reasoning the 447 math rows weigh as much as the 6 x 164 code rows."""

TIES = "Ties"  # the subset of RewardBench 2 in which several answers are equally right


@dataclass(frozen=True, slots=True, kw_only=True)
class Published:
    """One figure with its parts, comparable to a leaderboard."""

    name: str
    value: float
    rule: str
    parts: Mapping[str, float] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Judged:
    """Judged rows, and all that were asked about."""

    rows: Sequence[Row]
    scores: Sequence[Floats]
    credit: Floats  # [R]
    comparisons: Comparisons
    asked: Sequence[Row]  # judged or not
    votes: Sequence[int] = ()  # by row of `asked`, of a comparing judge; see `Verdicts.votes`


def published(shape: Shape, judged: Judged) -> Published | None:
    """The benchmark's own figure, for shapes that have one."""
    made = _RULES.get(shape)
    return made(judged) if made and judged.rows else None


def _judgebench(judged: Judged) -> Published | None:
    """Scores decide for B unless A's is higher; comparisons by the votes of their orders.

    (arXiv 2410.12784 and its code.) It is of all pairs. An order without a verdict has no vote;
    for a pair without scores there is no rule, so then there is no figure.
    """
    if judged.votes:
        good = np.array([row.quality[0] > row.quality[1] for row in judged.asked])
        right = np.where(good, 1, -1) * np.array(judged.votes) > 0
    elif len(judged.rows) == len(judged.asked):
        margin, good_first = judged.comparisons.margin, judged.comparisons.good_first
        right = (margin > 0) | ((margin == 0) & ~good_first)
    else:
        return None
    parts = {subset: float(right[rows].mean()) for subset, rows in _by_subset(judged.asked).items()}
    return Published(
        name="JudgeBench" if judged.votes else "JudgeBench, first order",
        value=float(right.mean()),
        rule="of all pairs, right if more orders are right than wrong; a tie and a failure are none"
        if judged.votes
        else "score A > score B says A, anything else says B: a tie counts as B",
        parts=parts,
    )


def _reward_bench(judged: Judged) -> Published | None:
    """Mean of sections, each the mean of its subsets weighted by rows (arXiv 2403.13787)."""
    strict = (judged.comparisons.margin > 0).astype(float)
    subsets = _by_subset(judged.rows)
    parts = {}
    for section, names in REWARD_BENCH_SECTIONS.items():
        there = [name for name in names if name in subsets]
        if there:
            weights = [REWARD_BENCH_WEIGHTS.get(name, len(subsets[name])) for name in there]
            means = [float(strict[subsets[name]].mean()) for name in there]
            parts[section] = float(np.average(means, weights=weights))
    if not parts:
        return None
    return Published(
        name="RewardBench",
        value=float(np.mean(list(parts.values()))),
        rule="a tie is wrong; mean of sections, subsets weighted by rows, math-prm by 984",
        parts=parts,
    )


def _reward_bench_2(judged: Judged) -> Published:
    """Mean of subsets; Ties by a rule of its own (arXiv 2506.01937)."""
    parts = {}
    for subset, rows in _by_subset(judged.rows).items():
        if subset.lower() == TIES.lower():
            parts[subset] = ties_score(
                [judged.rows[row] for row in rows], [judged.scores[row] for row in rows]
            )
        else:
            parts[subset] = float(judged.credit[rows].mean())
    return Published(
        name="RewardBench 2",
        value=float(np.mean(list(parts.values()))),
        rule="mean of subsets; k responses that share the best score earn 1/k for each chosen one",
        parts=parts,
    )


def ties_score(rows: Sequence[Row], scores: Sequence[Floats]) -> float:
    """RewardBench 2, Ties: 60 % accuracy, 40 % margins, 1 % to break draws.

    Rows are `tied:X` with several right answers and `ref:X` with one. A row is accurate if every
    right answer scores above every wrong one: gap = min(right) - max(wrong) > 0. With
    spread = max(right) - min(right) of `tied:X`, over the X that have both rows:
    0.3 accuracy(tied) + 0.3 accuracy(ref) + 0.2 mean(gap(tied) > spread)
    + 0.2 mean(low > spread) + 0.01 mean(tanh(low / spread - 1)), low = min(gap(ref), gap(tied)).
    """
    gaps: dict[str, dict[str, float]] = {"ref": {}, "tied": {}}
    spreads: dict[str, float] = {}
    for row, values in zip(rows, scores, strict=True):
        kind, _, number = row.id.partition(":")
        good = np.array(row.good)
        if kind not in gaps or good.all():
            continue
        gaps[kind][number] = float(values[good].min() - values[~good].max())
        if kind == "tied":
            spreads[number] = float(np.ptp(values[good]))
    accurate = [np.mean([gap > 0 for gap in each.values()] or [False]) for each in gaps.values()]
    both = [number for number in gaps["ref"] if number in gaps["tied"]]
    spread = np.array([spreads[number] for number in both])
    tied = np.array([gaps["tied"][number] for number in both])
    low = np.minimum(tied, np.array([gaps["ref"][number] for number in both]))
    if not both:
        return float(0.3 * sum(accurate))
    with np.errstate(divide="ignore", invalid="ignore"):
        draws = np.nan_to_num(np.tanh(low / spread - 1), nan=0.0)
    margins = 0.2 * np.mean(tied > spread) + 0.2 * np.mean(low > spread) + 0.01 * np.mean(draws)
    return float(0.3 * sum(accurate) + margins)


def _rm_bench(judged: Judged) -> Published:
    """Chosen style against rejected style (arXiv 2410.16184): three by three comparisons."""
    made = judged.comparisons
    style = made.bad - RM_BENCH_STYLES - made.good  # > 0: the rejected response is the fancier
    strict = made.margin > 0
    levels = {"hard": style > 0, "normal": style == 0, "easy": style < 0}
    parts = {
        f"{name}": float(strict[chosen].mean()) for name, chosen in levels.items() if chosen.any()
    }
    domains: dict[str, list[float]] = {}
    for subset, rows in _by_subset(judged.rows).items():
        here = strict[np.isin(made.row, rows)]
        domains.setdefault(subset.partition("-")[0], []).append(float(here.mean()))
    for name, means in domains.items():
        parts[name or "all"] = float(np.mean(means))
    value = float(np.mean([np.mean(means) for means in domains.values()]))
    return Published(
        name="RM-Bench",
        value=value,
        rule="a tie is wrong; mean of domains, safety the mean of its two; hard: the rejected "
        "response is the fancier one",
        parts=parts,
    )


def _by_subset(rows: Sequence[Row]) -> dict[str, list[int]]:
    found: dict[str, list[int]] = {}
    for place, row in enumerate(rows):
        found.setdefault(row.subset, []).append(place)
    return found


_RULES: Mapping[Shape, Callable[[Judged], Published | None]] = {
    Shape.judgebench: _judgebench,
    Shape.reward_bench: _reward_bench,
    Shape.reward_bench_2: _reward_bench_2,
    Shape.rm_bench: _rm_bench,
}
