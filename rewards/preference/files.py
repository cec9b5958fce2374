"""Preference data: the rows of a file (rewards.data_files) as pairs and lists of responses."""

from collections import defaultdict
from collections.abc import Iterator
from dataclasses import replace
from hashlib import sha256
from itertools import islice
from pathlib import Path

from rewards.data_files import DataFileError, Found, read_objects
from rewards.preference.records import (
    Preferences,
    Problem,
    ProblemKind,
    Row,
    RowProblem,
    Shape,
    row_digest,
)
from rewards.preference.shapes import parse_row, recognise

LOOKED_AT = 200  # rows, to recognise a shape


def read_preferences(path: Path, shape: Shape | None = None) -> Preferences:
    """The rows of a file; what is wrong with some of them is told, not raised.

    Without a shape it is recognised by the keys of the first rows. Raises `DataFileError` if
    the file cannot be read, its shape is unknown, or it has no rows or not one that is usable.
    """
    found = read_objects(path)
    head = list(islice(found, LOOKED_AT))
    if not head:
        raise DataFileError(f"{path} is empty: it holds no rows")
    readable = [entry.values for entry in head if not entry.error]
    if not readable:
        tried = "no row" if len(head) < LOOKED_AT else f"none of the first {LOOKED_AT} rows"
        raise DataFileError(f"{path}: {tried} can be read: line {head[0].line}: {head[0].error}")
    if shape is None:
        shape = recognise(readable)
    if shape is None:
        keys = ", ".join(sorted(readable[0])) or "none"
        raise DataFileError(
            f"{path}: no known shape has the keys {keys}; give prompt, chosen, rejected or "
            f"another of {', '.join(Shape)}, or name one with --shape"
        )
    rows, problems, read = _parse(shape, _chain(head, found))
    if not rows:
        why = f": line {problems[0].line}: {problems[0].why}" if problems else ""
        raise DataFileError(f"{path} holds no usable row of shape {shape.value}{why}")
    kept, digest = _without_repeats(rows, problems)
    problems.sort(key=lambda problem: problem.line)
    return Preferences(
        shape=shape, rows=tuple(kept), problems=tuple(problems), read=read, digest=digest
    )


def _chain(head: list[Found], rest: Iterator[Found]) -> Iterator[Found]:
    yield from head
    yield from rest


def _parse(shape: Shape, entries: Iterator[Found]) -> tuple[list[Row], list[Problem], int]:
    rows: list[Row] = []
    problems: list[Problem] = []
    read = 0
    for entry in entries:
        read += 1
        if entry.error:
            unreadable = ProblemKind.unreadable
            problems.append(Problem(kind=unreadable, line=entry.line, id="", why=entry.error))
            continue
        try:
            row = parse_row(shape, entry.values, entry.line)
        except RowProblem as error:
            id = str(entry.values.get("pair_id", entry.values.get("id", "")))
            problems.append(Problem(kind=error.kind, line=entry.line, id=id, why=str(error)))
            continue
        rows.append(row)
        if len(row.responses) > 1 and len(set(row.responses)) == 1:
            why = f"its {len(row.responses)} responses are the same text: no judge can be right"
            equal = ProblemKind.equal_responses
            problems.append(Problem(kind=equal, line=row.line, id=row.id, why=why))
    return rows, problems, read


def _without_repeats(rows: list[Row], problems: list[Problem]) -> tuple[list[Row], str]:
    """Rows without copies of earlier ones; different rows of one id get ids of their own."""
    kept: list[Row] = []
    contents: dict[str, str] = {}  # digest -> id, of this file's rows
    by_id: dict[str, list[Row]] = defaultdict(list)
    for row in rows:
        digest = row_digest(row)
        first = by_id[row.id][0] if by_id[row.id] else None
        if first is not None and contents.get(f"{row.id} {digest}"):
            why = f"the same as line {first.line}: counted once"
            problems.append(
                Problem(kind=ProblemKind.duplicate_row, line=row.line, id=row.id, why=why)
            )
            continue
        contents[f"{row.id} {digest}"] = row.id
        by_id[row.id].append(row)
        if first is not None:
            why = f"line {first.line} has this id and another content: both are kept"
            problems.append(
                Problem(kind=ProblemKind.duplicate_id, line=row.line, id=row.id, why=why)
            )
        kept.append(row)
    ambiguous = {id for id, same in by_id.items() if len(same) > 1}
    named = [
        replace(row, id=f"{row.id} (line {row.line})", alias=None) if row.id in ambiguous else row
        for row in kept
    ]
    return named, _digest_of(contents)


def _digest_of(contents: dict[str, str]) -> str:
    return sha256("\n".join(contents).encode(errors="surrogatepass")).hexdigest()[:16]
