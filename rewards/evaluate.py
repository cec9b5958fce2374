"""How good a verifier or a user's reward function is, on rows whose responses are labelled."""

import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from rewards.intervals import Rate, rate
from rewards.rows import Line, Row, RowError, lines_of, read_label, read_row, report_bad_rows
from rewards.scoring import ScoringPool
from rewards.verdict import ScorerSpec, Trouble, Verdict

ACCEPTED_ABOVE = 0.5
TAIL_CHARACTERS = 200
MOST_EXAMPLES = 5  # of each sort of mistake
MOST_SLOW = 5
LATE_S = 1.0  # a scorer may take its limit and this


@dataclass(frozen=True, slots=True, kw_only=True)
class Example:
    """A row worth reading."""

    line: int
    response: str  # its end
    reference: str  # its start
    score: float
    why: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Difference:
    """A row that was scored twice and got two scores; None: unscored."""

    line: int
    first: float | None
    second: float | None


@dataclass(frozen=True, slots=True, kw_only=True)
class SlowRow:
    """How long a row took, the longer of two times."""

    line: int
    seconds: float


@dataclass(frozen=True, slots=True, kw_only=True)
class LabelledReport:
    """What labelled rows say about a scorer."""

    rows: int
    false_positives: Rate  # of the rows labelled wrong
    false_negatives: Rate  # of the rows labelled right
    accuracy: Rate
    accepted_wrong: tuple[Example, ...]
    refused_right: tuple[Example, ...]
    differences: tuple[Difference, ...]  # of two runs, the second shuffled, in other processes
    slowest: tuple[SlowRow, ...]
    late: tuple[SlowRow, ...]  # over the limit by more than a second, or stopped there
    crashed: int  # rows on which the scorer raised
    unscored: dict[int, str]  # by line; in none of the rates

    @property
    def clean(self) -> bool:
        """No mistake, no difference between runs, none late, none unscored."""
        wrong = self.false_positives.count + self.false_negatives.count
        return not (wrong or self.differences or self.late or self.crashed or self.unscored)


def evaluate_labelled(
    source: Path,
    spec: ScorerSpec,
    *,
    workers: int,
    progress: Callable[[int, int], None] = lambda done, total: None,
) -> LabelledReport:
    """Score labelled rows twice and compare with their labels. The rows are held in memory.

    A row is one of `rewards.rows` with "label" (or "correct"): 1 for a right response, 0 for a
    wrong one. A score above 0.5 says right.

    Raises:
        RowError: the file, or one of its rows, cannot be read.
        ValueError: the plug-in cannot be loaded.
        RewardError: no worker starts.
    """
    lines, labels = _read(source, spec)
    again = random.Random(0).sample(lines, len(lines))
    verdicts: list[dict[int, Verdict]] = []
    for order in (lines, again):
        known: dict[int, Verdict] = {}
        with ScoringPool(spec, workers) as pool:
            for verdict in pool.score(order):
                known[verdict.number] = verdict
                progress(len(known) + len(verdicts) * len(lines), 2 * len(lines))
        verdicts.append(known)
    return _report(lines, labels, verdicts, spec)


def _read(source: Path, spec: ScorerSpec) -> tuple[list[Line], dict[int, bool]]:
    lines: list[Line] = []
    labels: dict[int, bool] = {}
    bad: dict[int, str] = {}
    for line in lines_of(source):
        try:
            labels[line.number] = read_label(read_row(spec.kind, line.raw).record)
            lines.append(line)
        except RowError as error:
            bad[line.number] = str(error)
    if bad:
        raise RowError(report_bad_rows(source, bad))
    if not lines:
        raise RowError(f"{source} has no rows")
    return lines, labels


def _report(
    lines: Sequence[Line],
    labels: dict[int, bool],
    verdicts: Sequence[dict[int, Verdict]],
    spec: ScorerSpec,
) -> LabelledReport:
    first, second = verdicts
    accepted = {
        n: each.score > ACCEPTED_ABOVE for n, each in first.items() if each.score is not None
    }
    false_positives = [n for n in accepted if accepted[n] and not labels[n]]
    false_negatives = [n for n in accepted if labels[n] and not accepted[n]]
    right = sum(labels[n] for n in accepted)
    mistakes = len(false_positives) + len(false_negatives)
    raw = {line.number: line.raw for line in lines}

    def shown(numbers: Sequence[int]) -> tuple[Example, ...]:
        some = numbers[:MOST_EXAMPLES]
        return tuple(_example(read_row(spec.kind, raw[n]), first[n]) for n in some)

    times = _times(verdicts)
    late = {n for run in verdicts for n, each in run.items() if each.trouble is Trouble.late}
    most_s = spec.timeout_s + LATE_S
    return LabelledReport(
        rows=len(lines),
        false_positives=rate(len(false_positives), len(accepted) - right),
        false_negatives=rate(len(false_negatives), right),
        accuracy=rate(len(accepted) - mistakes, len(accepted)),
        accepted_wrong=shown(false_positives),
        refused_right=shown(false_negatives),
        differences=tuple(
            Difference(line=n, first=each.score, second=second[n].score)
            for n, each in first.items()
            if each.score != second[n].score
        ),
        slowest=tuple(times[:MOST_SLOW]),
        late=tuple(row for row in times if row.line in late or row.seconds > most_s),
        crashed=sum(each.trouble is Trouble.crashed for each in first.values()),
        unscored={n: each.why for n, each in first.items() if each.score is None},
    )


def _times(verdicts: Sequence[dict[int, Verdict]]) -> list[SlowRow]:
    first, second = verdicts
    times = [
        SlowRow(line=number, seconds=max(each.seconds, second[number].seconds))
        for number, each in first.items()
    ]
    return sorted(times, key=lambda row: -row.seconds)


def _example(row: Row, verdict: Verdict) -> Example:
    assert verdict.score is not None
    return Example(
        line=verdict.number,
        response=row.response[-TAIL_CHARACTERS:],
        reference=row.reference[:TAIL_CHARACTERS],
        score=verdict.score,
        why=verdict.why,
    )
