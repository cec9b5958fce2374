"""Scores that a judge gave earlier, joined to rows: `{"id": str, "scores": {"A": x, "B": y}}`."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from rewards.data_files import DataFileError, read_objects
from rewards.preference.records import Problem, ProblemKind, Row, RowProblem
from rewards.preference.score_values import score_values


@dataclass(frozen=True, slots=True)
class ScoreRow:
    """Scores of one id, not checked yet."""

    line: int
    scores: Any


@dataclass(frozen=True, slots=True)
class Joined:
    """Rows with their recorded scores, and what could not be joined."""

    rows: tuple[Row, ...]
    problems: tuple[Problem, ...]


def join_scores(rows: Sequence[Row], path: Path) -> Joined:
    """Give every row the scores that the file has for its id (`pair_id` or `id`).

    Rows without scores, ids without rows and unusable scores are told. Raises
    `DataFileError` if the file cannot be read or belongs to none of the rows.
    """
    problems: list[Problem] = []
    by_id = _read(path, problems)
    ids = [row.id for row in rows]
    if not any(id in by_id for id in ids):
        ids = [row.alias or row.id for row in rows]
    if not any(id in by_id for id in ids):
        shown = f"{next(iter(by_id))!r}, " if by_id else "none, "
        raise DataFileError(
            f"{path} has scores for none of the rows: its ids are like {shown}"
            f"theirs like {rows[0].id!r}"
        )
    joined = []
    for row, id in zip(rows, ids, strict=True):
        scores = by_id.get(id)
        try:
            made = None if scores is None else score_values(scores.scores, len(row.responses))
        except RowProblem as error:
            made = None
            assert scores is not None
            why = f"scores file: {error}"
            problems.append(Problem(kind=error.kind, line=scores.line, id=id, why=why))
        joined.append(replace(row, recorded=made))
    known = set(ids)
    for id, scores in by_id.items():
        if id not in known:
            why = "scores file: no row has this id"
            unknown = ProblemKind.unknown_id
            problems.append(Problem(kind=unknown, line=scores.line, id=id, why=why))
    return Joined(rows=tuple(joined), problems=tuple(problems))


def _read(path: Path, problems: list[Problem]) -> dict[str, ScoreRow]:
    found: dict[str, ScoreRow] = {}
    conflicting: set[str] = set()
    for entry in read_objects(path):
        values = entry.values
        id = next((str(values[key]) for key in ("id", "pair_id") if key in values), None)
        scores = values.get("scores", values.get("score"))
        if entry.error or id is None or scores is None:
            why = f"scores file: {entry.error or 'a row needs id and scores'}"
            bad = ProblemKind.bad_score_row
            problems.append(Problem(kind=bad, line=entry.line, id=id or "", why=why))
            continue
        if id in found:
            same = found[id].scores == scores
            first = found[id].line
            why = f"scores file: also on line {first}, " + (
                "the same" if same else "with others: neither is used"
            )
            repeated = ProblemKind.repeated_scores
            problems.append(Problem(kind=repeated, line=entry.line, id=id, why=why))
            if not same:
                conflicting.add(id)
            continue
        found[id] = ScoreRow(entry.line, scores)
    return {id: row for id, row in found.items() if id not in conflicting}
