"""What is found of a judge on labelled rows, as one record."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from rewards.intervals import Rate, rate
from rewards.preference.agreement import (
    Calibration,
    Floats,
    Interval,
    area_under_curve,
    bootstrap,
    calibrate,
    correlation,
    fit_slope,
    ranks,
)
from rewards.preference.best_of_n import BestOfN, best_of_n
from rewards.preference.biases import (
    LengthBias,
    Orders,
    PositionBias,
    length_bias,
    order_effects,
    position_bias,
)
from rewards.preference.comparisons import CREDIT, Comparisons, compare, credits
from rewards.preference.judging import Verdicts
from rewards.preference.published import Judged, Published, published
from rewards.preference.records import (
    ONE_OF_TWO,
    Preferences,
    Problem,
    ProblemCount,
    ProblemKind,
    Row,
    Shape,
    count_problems,
    prompt_text,
)

MOST_WORST = 12
MOST_SHOWN = 3000  # characters of one text


@dataclass(frozen=True, slots=True, kw_only=True)
class Accuracy:
    """How often a judge is right."""

    rows: int
    accuracy: Interval  # mean of what each row earns; see `CREDIT`. Bootstrap over rows
    comparisons: int  # of a good response with a bad one
    right: int
    wrong: int
    ties: int
    ties_wrong: Rate  # right of all comparisons, Wilson
    decided: Rate  # right of those without a tie, Wilson


@dataclass(frozen=True, slots=True, kw_only=True)
class ScoredFit:
    """Scores against graded quality, over responses."""

    responses: int
    pearson: float | None
    spearman: float | None
    area_under_curve: float | None  # where quality has two values


@dataclass(frozen=True, slots=True, kw_only=True)
class Disagreement:
    """A comparison on which the judge is wrong and sure."""

    id: str
    line: int
    subset: str
    margin: float  # score of the good response minus score of the bad one
    prompt: str
    good: str
    bad: str
    words: str


@dataclass(frozen=True, slots=True, kw_only=True)
class RowColumns:
    """What `temper eval-reward compare` needs of every judged row."""

    ids: tuple[str, ...]
    credits: tuple[float | None, ...]
    verdicts: tuple[str, ...]  # A, B or = for each comparison of a row


@dataclass(frozen=True, slots=True, kw_only=True)
class JudgeReport:
    """Everything; `result.json` is this."""

    data: str
    judge: str
    shape: Shape
    digest: str  # of the data
    read: int  # rows in the file
    judged: int
    counts: str  # what the accuracy counts
    overall: Accuracy
    subsets: Mapping[str, Accuracy]
    published: Published | None
    best_of_n: BestOfN | None
    scored: ScoredFit | None
    calibration: Calibration | None
    calibration_fitted: Calibration | None
    length: LengthBias
    position: PositionBias | None
    orders: Orders | None
    truncated: int
    warnings: tuple[str, ...]
    problems: tuple[ProblemCount, ...]
    worst: tuple[Disagreement, ...]
    rows: RowColumns


def make_report(data: str, judge: str, source: Preferences, said: Verdicts) -> JudgeReport:
    """All figures. `source.rows` are those that were asked about, in the order of `said.scores`.

    Raises ValueError if not one row is judged.
    """
    places = [place for place, each in enumerate(said.scores) if each is not None]
    if not places:
        raise ValueError(
            f"{judge} judged none of the {len(source.rows)} rows of {data}: {_first(said.problems)}"
        )
    rows = [source.rows[place] for place in places]
    scores = [each for each in said.scores if each is not None]
    made = compare(rows, scores)
    earned = credits(source.shape, rows, scores, made)
    judged = Judged(rows, scores, earned, made, source.rows, said.votes)
    problems = count_problems((*source.problems, *said.problems))
    position = position_bias(source.shape, said, made)
    orders = order_effects(said, rows, source.shape)
    figure = published(source.shape, judged)
    return JudgeReport(
        data=data,
        judge=judge,
        shape=source.shape,
        digest=source.digest,
        read=source.read,
        judged=len(rows),
        counts=CREDIT[source.shape],
        overall=_accuracy(earned, made),
        subsets=_subsets(rows, earned, made),
        published=figure,
        best_of_n=best_of_n(rows, scores) if source.shape is Shape.best_of_n else None,
        scored=_scored(rows, scores, said) if source.shape is Shape.scored else None,
        calibration=_calibration(made, said, fitted=False),
        calibration_fitted=_calibration(made, said, fitted=True),
        length=length_bias(made),
        position=position,
        orders=orders,
        truncated=sum(p.kind is ProblemKind.truncated for p in said.problems),
        warnings=tuple(_warnings(source, judged, figure, position, orders, problems)),
        problems=problems,
        worst=_worst(rows, made, [said.words[p] if said.words else "" for p in places]),
        rows=_columns(rows, earned, made),
    )


def _first(problems: Sequence[Problem]) -> str:
    return f"line {problems[0].line}: {problems[0].why}" if problems else "nothing was asked"


def _accuracy(earned: Floats, made: Comparisons) -> Accuracy:
    decidable = earned[~np.isnan(earned)]
    right, wrong = int((made.margin > 0).sum()), int((made.margin < 0).sum())
    return Accuracy(
        rows=int(decidable.size),
        accuracy=bootstrap(decidable),
        comparisons=int(made.margin.size),
        right=right,
        wrong=wrong,
        ties=int(made.margin.size) - right - wrong,
        ties_wrong=rate(right, int(made.margin.size)),
        decided=rate(right, right + wrong),
    )


def _subsets(rows: Sequence[Row], earned: Floats, made: Comparisons) -> dict[str, Accuracy]:
    names = np.array([row.subset for row in rows], dtype=object)
    found = {}
    for name in sorted(set(names)):
        chosen = names == name
        found[str(name)] = _accuracy(earned[chosen], made.of_rows(chosen))
    return found if len(found) > 1 else {}


def _calibration(made: Comparisons, said: Verdicts, *, fitted: bool) -> Calibration | None:
    """Scores go through a logistic link; a comparing judge's preferences are probabilities.

    Its win rates in larger groups are not.
    """
    if made.margin.size == 0:
        return None
    if said.comparisons:
        pairs = all(each is None or each.size == 2 for each in said.scores)
        return calibrate(made.margin, None) if pairs and not fitted else None
    return calibrate(made.margin, fit_slope(made.margin) if fitted else 1.0)


def _scored(rows: Sequence[Row], scores: Sequence[Floats], by: Verdicts) -> ScoredFit | None:
    """None if no response has a score: the only one of a prompt was compared with nothing."""
    fits = [
        (each, row.quality)
        for row, each in zip(rows, scores, strict=True)
        if not by.votes or each.size > 1
    ]
    if not fits:
        return None
    said = np.concatenate([each for each, _ in fits])
    quality = np.array([value for _, values in fits for value in values])
    levels = np.unique(quality)
    two = levels.size == 2
    return ScoredFit(
        responses=said.size,
        pearson=correlation(said, quality),
        spearman=correlation(ranks(said), ranks(quality)),
        area_under_curve=area_under_curve(said, quality == levels[1]) if two else None,
    )


def _warnings(
    source: Preferences,
    judged: Judged,
    figure: Published | None,
    position: PositionBias | None,
    orders: Orders | None,
    problems: Sequence[ProblemCount],
) -> list[str]:
    """What must be read before any figure."""
    found = []
    made = judged.comparisons
    count = {problem.kind: problem.count for problem in problems}
    if left := len(source.rows) - len(judged.rows):
        what = f"{left} of {len(source.rows)} rows are not judged and in no figure"
        if source.shape is Shape.judgebench:
            what += " but JudgeBench's own" if figure else "; JudgeBench's own is of all: not given"
        found.append(what)
    if count.get(ProblemKind.truncated):
        number = count[ProblemKind.truncated]
        found.append(f"{number} inputs or answers of the judge were TRUNCATED")
    if made.margin.size and not made.margin.any():
        found.append("the judge gives all responses of a prompt the same score: it decides nothing")
    shown = orders.picks_first_shown if orders else position.says_a if position else None
    if shown is not None and shown.of >= 10 and shown.count in (0, shown.of):
        side = "A" if shown.count else "B"
        where = "whatever is shown there" if orders else f"all {shown.of} times"
        found.append(f"the judge ALWAYS SAYS {side}, {where}")
    if source.shape in ONE_OF_TWO and count.get(ProblemKind.equal_responses):
        number = count[ProblemKind.equal_responses]
        found.append(f"{number} pairs hold the same text twice: ties for any scoring judge")
    return found


def _worst(
    rows: Sequence[Row], made: Comparisons, words: Sequence[str]
) -> tuple[Disagreement, ...]:
    """The most confidently wrong comparisons, one of a row at most."""
    found: list[Disagreement] = []
    seen: set[int] = set()
    for index in np.argsort(made.margin, kind="stable").tolist():
        place = int(made.row[index])
        if made.margin[index] >= 0 or len(found) == MOST_WORST:
            break
        if place in seen:
            continue
        seen.add(place)
        row = rows[place]
        found.append(
            Disagreement(
                id=row.id,
                line=row.line,
                subset=row.subset,
                margin=float(made.margin[index]),
                prompt=_shown(prompt_text(row.prompt)),
                good=_shown(row.responses[made.good[index]]),
                bad=_shown(row.responses[made.bad[index]]),
                words=_shown(words[place]),
            )
        )
    return tuple(found)


def _shown(text: str) -> str:
    if len(text) <= MOST_SHOWN:
        return text
    left_out = f"\n[... {len(text) - MOST_SHOWN} characters ...]\n"
    return text[: MOST_SHOWN // 2] + left_out + text[-MOST_SHOWN // 2 :]


def _columns(rows: Sequence[Row], earned: Floats, made: Comparisons) -> RowColumns:
    says_a = (made.margin > 0) == made.good_first
    letters = np.where(made.margin == 0, "=", np.where(says_a, "A", "B"))
    verdicts = [""] * len(rows)
    for place, letter in zip(made.row.tolist(), letters.tolist(), strict=True):
        verdicts[place] += letter
    return RowColumns(
        ids=tuple(row.id for row in rows),
        credits=tuple(None if value != value else value for value in earned.tolist()),
        verdicts=tuple(verdicts),
    )
