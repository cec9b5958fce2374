"""Reads preference data: JSON lines, a JSON array or parquet, plain or gzip."""

import gzip
import importlib
import json
import zlib
from collections import defaultdict
from collections.abc import Iterator
from dataclasses import dataclass, replace
from hashlib import sha256
from itertools import islice
from pathlib import Path
from typing import Any

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


class PreferenceDataError(ValueError):
    """A file that cannot be used at all: the user's mistake, with its fix."""


@dataclass(frozen=True, slots=True)
class Found:
    """One entry of a file: an object, or why there is none."""

    line: int
    values: dict[str, Any]
    error: str = ""


def read_preferences(path: Path, shape: Shape | None = None) -> Preferences:
    """The rows of a file; what is wrong with some of them is told, not raised.

    Without a shape it is recognised by the keys of the first rows. Raises `PreferenceDataError` if
    the file cannot be read, its shape is unknown, or not one row is usable.
    """
    found = read_objects(path)
    head = list(islice(found, LOOKED_AT))
    readable = [entry.values for entry in head if not entry.error]
    if shape is None:
        shape = recognise(readable)
    if shape is None:
        keys = ", ".join(sorted(readable[0])) if readable else "none"
        raise PreferenceDataError(
            f"{path}: no known shape has the keys {keys}; give prompt, chosen, rejected or "
            f"another of {', '.join(Shape)}, or name one with --shape"
        )
    rows, problems, read = _parse(shape, _chain(head, found))
    if not rows:
        why = f": line {problems[0].line}: {problems[0].why}" if problems else ""
        raise PreferenceDataError(f"{path} holds no usable row of shape {shape.value}{why}")
    kept, digest = _without_repeats(rows, problems)
    problems.sort(key=lambda problem: problem.line)
    return Preferences(
        shape=shape, rows=tuple(kept), problems=tuple(problems), read=read, digest=digest
    )


def read_objects(path: Path) -> Iterator[Found]:
    """The objects of a file, in order. Raises `PreferenceDataError` if it cannot be read."""
    name = path.name.removesuffix(".gz")
    try:
        if name.endswith(".parquet"):
            yield from _parquet(path)
        elif name.endswith(".json"):
            yield from _array_or_lines(path)
        else:
            yield from _lines(path)
    except (OSError, EOFError, zlib.error) as error:
        said = getattr(error, "strerror", None) or error
        raise PreferenceDataError(f"cannot read {path}: {said}") from error


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


def _lines(path: Path) -> Iterator[Found]:
    with gzip.open(path) if path.suffix == ".gz" else path.open("rb") as file:
        for number, raw in enumerate(file, 1):
            if raw.strip():
                yield _object(number, raw)


def _object(number: int, raw: bytes) -> Found:
    try:
        value = json.loads(raw.decode("utf-8-sig"))
    except (ValueError, RecursionError) as error:
        return Found(number, {}, f"not JSON: {error}")
    if not isinstance(value, dict):
        return Found(number, {}, f"not a JSON object but {str(value)[:60]!r}")
    return Found(number, value)


def _array_or_lines(path: Path) -> Iterator[Found]:
    raw = path.read_bytes()
    if path.suffix == ".gz":
        raw = gzip.decompress(raw)
    if not raw.lstrip(b"\xef\xbb\xbf \t\r\n").startswith(b"["):
        yield from _lines(path)
        return
    try:
        values = json.loads(raw.decode("utf-8-sig"))
    except (ValueError, RecursionError) as error:
        raise PreferenceDataError(f"{path} is not JSON: {error}") from error
    for number, value in enumerate(values, 1):
        if isinstance(value, dict):
            yield Found(number, value)
        else:
            yield Found(number, {}, f"not a JSON object but {str(value)[:60]!r}")


def _parquet(path: Path) -> Iterator[Found]:
    try:
        parquet = importlib.import_module("pyarrow.parquet")
    except ImportError as error:
        raise PreferenceDataError(
            f"cannot read {path}: parquet needs pyarrow (pip install pyarrow), or write JSON lines"
        ) from error
    number = 0
    try:
        with parquet.ParquetFile(path) as file:
            for batch in file.iter_batches(batch_size=1024):
                for values in batch.to_pylist():
                    number += 1
                    yield Found(number, values)
    except ValueError as error:  # pyarrow's errors are ValueErrors
        raise PreferenceDataError(f"cannot read {path} as parquet: {error}") from error
