"""Asks a judge about rows: which questions, and what its answers mean for each response."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from itertools import combinations

import numpy as np

from rewards.preference.agreement import Floats
from rewards.preference.judgements import JudgementFile, ask
from rewards.preference.judges import Failure, Judge, Judgement, Question
from rewards.preference.records import Problem, ProblemKind, Row


@dataclass(frozen=True, slots=True, kw_only=True)
class Comparison:
    """What a comparing judge said of two responses of a row."""

    row: int
    first: int  # the response that it was shown first, in the first order
    second: int
    preference: float  # for `first`, in [0, 1]
    swapped: float | None  # for `first`, when it was shown second; None: asked in one order


@dataclass(frozen=True, slots=True, kw_only=True)
class Verdicts:
    """What a judge said of every row."""

    scores: tuple[Floats | None, ...]  # by row [N], higher is better; None: not judged
    problems: tuple[Problem, ...]
    comparisons: tuple[Comparison, ...] = ()  # of a comparing judge
    words: tuple[str, ...] = ()  # by row: what it said, if it spoke
    votes: tuple[int, ...] = ()
    """Of a comparing judge, by row, judged or not: its judgements for the first response less those
    against it. A tie and a failure are neither."""

    @property
    def first_order(self) -> tuple[Floats | None, ...]:
        """The scores if each pair had been shown in its first order only."""
        once = [replace(each, swapped=None) for each in self.comparisons]
        return tuple(_win_rates([each is not None for each in self.scores], once, self.scores))


def recorded_verdicts(rows: Sequence[Row]) -> Verdicts:
    """The scores that came with the rows."""
    problems = [
        Problem(
            kind=ProblemKind.no_scores,
            line=row.line,
            id=row.id,
            why="no usable scores: it is in no figure",
        )
        for row in rows
        if row.recorded is None
    ]
    scores = tuple(None if row.recorded is None else np.array(row.recorded) for row in rows)
    return Verdicts(scores=scores, problems=tuple(problems))


def hear(
    judge: Judge,
    rows: Sequence[Row],
    kept: JudgementFile,
    progress: Callable[[int, int], None],
    *,
    both_orders: bool = True,
) -> Verdicts:
    """Ask a judge about every row.

    A comparing judge sees every two responses of a row in both orders; orders whose verdicts differ
    make a tie. A row is judged only if all of its questions are answered.
    """
    if judge.compares:
        return _compare(judge, rows, kept, progress, both_orders=both_orders)
    places = [(place, each) for place, row in enumerate(rows) for each in row.responses]
    questions = [
        Question(prompt=rows[place].prompt, responses=(each,), reference=rows[place].reference)
        for place, each in places
    ]
    said = ask(judge, questions, kept, progress)
    problems = _problems(rows, [place for place, _ in places], said)
    values = np.array([each.value if isinstance(each, Judgement) else np.nan for each in said])
    ends = np.cumsum([len(row.responses) for row in rows])
    scores = tuple(None if np.isnan(each).any() else each for each in np.split(values, ends[:-1]))
    return Verdicts(scores=scores, problems=problems)


def _compare(
    judge: Judge,
    rows: Sequence[Row],
    kept: JudgementFile,
    progress: Callable[[int, int], None],
    *,
    both_orders: bool,
) -> Verdicts:
    shown: list[tuple[int, int, int]] = []  # row, first, second
    for place, row in enumerate(rows):
        for one, other in combinations(range(len(row.responses)), 2):
            shown.append((place, other, one) if row.swapped else (place, one, other))
    asked = shown + [(place, other, one) for place, one, other in shown if both_orders]
    questions = [
        Question(
            prompt=rows[place].prompt,
            responses=(rows[place].responses[one], rows[place].responses[other]),
        )
        for place, one, other in asked
    ]
    said = ask(judge, questions, kept, progress)
    problems = _problems(rows, [place for place, _, _ in asked], said)
    judged = [True] * len(rows)
    votes = [0] * len(rows)
    for (place, one, other), answer in zip(asked, said, strict=True):
        if not isinstance(answer, Judgement):
            judged[place] = False
        elif 0 in (one, other):
            votes[place] += _vote(answer.value) * (1 if one == 0 else -1)
    comparisons = []
    words = [""] * len(rows)
    for index, (place, one, other) in enumerate(shown):
        first, second = said[index], said[index + len(shown)] if both_orders else None
        if not judged[place] or not isinstance(first, Judgement):
            continue
        words[place] = words[place] or first.text
        swapped = 1.0 - second.value if isinstance(second, Judgement) else None
        comparisons.append(
            Comparison(row=place, first=one, second=other, preference=first.value, swapped=swapped)
        )
    sizes = [np.zeros(len(row.responses)) for row in rows]
    return Verdicts(
        scores=tuple(_win_rates(judged, comparisons, sizes)),
        problems=problems,
        comparisons=tuple(comparisons),
        words=tuple(words),
        votes=tuple(votes),
    )


def _win_rates(
    judged: Sequence[bool], comparisons: Sequence[Comparison], like: Sequence[Floats | None]
) -> list[Floats | None]:
    """The mean preference for each response over its comparisons."""
    sums = [np.zeros_like(each) if each is not None else None for each in like]
    for each in comparisons:
        preference = _settle(each)
        table = sums[each.row]
        assert table is not None
        table[each.first] += preference
        table[each.second] += 1.0 - preference
    return [
        table / max(1, table.size - 1) if yes and table is not None else None
        for yes, table in zip(judged, sums, strict=True)
    ]


def _settle(made: Comparison) -> float:
    """The preference for `first`: the mean of both orders, or 1/2 if their verdicts differ.

    So it is in training: a verdict that the order decides is none, and a tie in one order differs
    from a verdict in the other.
    """
    if made.swapped is None:
        return made.preference
    if _vote(made.preference) != _vote(made.swapped):
        return 0.5
    return (made.preference + made.swapped) / 2


def _vote(preference: float) -> int:
    """1 for the response that is preferred, -1 for the other, 0 for a tie."""
    return (preference > 0.5) - (preference < 0.5)


def _problems(
    rows: Sequence[Row], places: Sequence[int], said: Sequence[Judgement | Failure]
) -> tuple[Problem, ...]:
    """Failures and truncations, one for each question."""
    found = []
    for place, answer in zip(places, said, strict=True):
        row = rows[place]
        if isinstance(answer, Failure):
            found.append(Problem(kind=answer.kind, line=row.line, id=row.id, why=answer.why))
        elif answer.truncated:
            why = "judged all the same, on less than the whole"
            found.append(Problem(kind=ProblemKind.truncated, line=row.line, id=row.id, why=why))
    return tuple(found)
