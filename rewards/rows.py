"""Rows of recorded responses: JSON lines in, checked; the same lines with a verdict out.

A row is `{"response", "gold"}` for math; `{"response"}` and one of "tests", "cases" and "calls" for
code, with "language" and "setup" if need be; `{"response", "prompt", "instruction_id_list",
"kwargs"}` for instructions. Other keys are kept as they are.
"""

import gzip
import json
import math
import zlib
from collections import Counter
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO, cast

from rewards import code_tests, instructions
from rewards.programs.languages import find_language
from rewards.task import TaskKind

VERIFIABLE = (TaskKind.math, TaskKind.code, TaskKind.instructions)
MOST_ROW_BYTES = 64 << 20
MOST_REPORTED = 10  # bad rows named in one message

_CODE_TESTS = ("tests", "cases", "calls")
_CODE_KEYS = (*_CODE_TESTS, "language", "setup")
_RIGHT = {"correct": True, "right": True, "incorrect": False, "wrong": False}


class RowError(ValueError):
    """A file or row that cannot be used, with its place and the fix: the user's mistake."""


@dataclass(frozen=True, slots=True)
class Line:
    """One line of a file, not read yet."""

    number: int  # from 1
    raw: bytes


@dataclass(frozen=True, slots=True, kw_only=True)
class Row:
    """One recorded response with what its verifier needs."""

    response: str
    reference: str  # as `Task.reference` of the row's kind
    prompt: str  # empty but for instructions
    record: Mapping[str, Any]  # the row as it was read


def lines_of(path: Path) -> Iterator[Line]:
    """The lines of a file, plain or gzip, that are not blank; a byte-order mark is dropped.

    Raises `RowError` for a file that cannot be read and for a line of more than 64 MiB.
    """
    number = 0
    try:
        with _opened(path) as file:
            while raw := file.readline(MOST_ROW_BYTES + 1):
                number += 1
                if len(raw) > MOST_ROW_BYTES:
                    raise RowError(f"{path} line {number}: longer than {MOST_ROW_BYTES >> 20} MiB")
                if number == 1:
                    raw = raw.removeprefix(b"\xef\xbb\xbf")
                if raw.strip():
                    yield Line(number, raw)
    except (OSError, EOFError, zlib.error) as error:
        said = getattr(error, "strerror", None) or error
        where = f" after line {number}" if number else ""
        raise RowError(f"cannot read {path}{where}: {said}") from error


def read_row(kind: TaskKind, raw: bytes) -> Row:
    """The row in one line. Raises `RowError` saying what is wrong with it."""
    record = _object(raw)
    response = _text(record, "response")
    try:
        if kind is TaskKind.math:
            reference = _text(record, "gold")
            if not reference.strip():
                raise RowError('"gold" is empty: give the right answer')
        elif kind is TaskKind.code:
            reference = _code_reference(record)
            find_language(code_tests.parse_reference(reference).language.name)
        else:
            reference = _instructions_reference(record)
            instructions.parse_reference(reference)
    except RowError:
        raise
    except (ValueError, RecursionError) as error:
        raise RowError(" ".join(str(error).split())) from error
    prompt = _text(record, "prompt") if kind is TaskKind.instructions else ""
    return Row(response=response, reference=reference, prompt=prompt, record=record)


def read_label(record: Mapping[str, Any]) -> bool:
    """Whether the row's response is right: "label" (or "correct") of a labelled row.

    Raises `RowError` unless it is true or false, 1 or 0, "correct" or "incorrect".
    """
    key = "label" if "label" in record else "correct"
    label = record.get(key)
    if isinstance(label, str) and label.strip().lower() in _RIGHT:
        return _RIGHT[label.strip().lower()]
    if isinstance(label, bool | int | float) and label in (0, 1):
        return bool(label)
    if key not in record:
        raise RowError('no key "label": 1 for a right response, 0 for a wrong one')
    raise RowError(f'"{key}" must be true or false, 1 or 0, got {_shown(label)}')


def scored_line(record: Mapping[str, Any], score: float, why: str) -> bytes:
    """The row with "score" and "why", as one line of JSON."""
    row = {**record, "score": score, "why": why}
    try:
        return json.dumps(row, ensure_ascii=False, allow_nan=False).encode() + b"\n"
    except UnicodeEncodeError:  # half of a surrogate pair
        return json.dumps(row, allow_nan=False).encode() + b"\n"


def report_bad_rows(path: Path, bad: Mapping[int, str]) -> str:
    """One message on the bad rows of a file, by line number; the first ten are named."""
    named = [f"{path} line {number}: {what}" for number, what in sorted(bad.items())]
    if len(named) > MOST_REPORTED:
        named[MOST_REPORTED:] = [f"and {len(named) - MOST_REPORTED} more bad rows"]
    return "\n".join(named)


@contextmanager
def _opened(path: Path) -> Iterator[BinaryIO]:
    if path.exists() and not path.is_file():
        what = "a folder" if path.is_dir() else "not a regular file"
        raise RowError(f"cannot read {path}: it is {what}")
    with path.open("rb") as file:
        if file.peek(2)[:2] == b"\x1f\x8b":
            with gzip.open(file, "rb") as unzipped:
                yield cast(BinaryIO, unzipped)
        else:
            yield file


def _object(raw: bytes) -> dict[str, Any]:
    try:
        record = json.loads(
            raw.decode(),
            object_pairs_hook=_without_repeats,
            parse_constant=_no_constant,
            parse_float=_finite,
        )
    except UnicodeDecodeError as error:
        raise RowError(f"not UTF-8 at byte {error.start}") from error
    except RowError:
        raise
    except json.JSONDecodeError as error:
        raise RowError(f"not JSON: {error.msg} at character {error.pos}") from error
    except (ValueError, RecursionError) as error:
        raise RowError(f"not JSON that can be read: {error}") from error
    if not isinstance(record, dict):
        raise RowError(f"not a JSON object but {_shown(record)}")
    return record


def _without_repeats(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    made = dict(pairs)
    if len(made) < len(pairs):
        repeated = Counter(key for key, _ in pairs).most_common(1)[0][0]
        raise RowError(f"key {_shown(repeated)} twice in one object")
    return made


def _no_constant(name: str) -> float:
    raise RowError(f"{name} is not JSON: use null or a number")


def _finite(text: str) -> float:
    value = float(text)
    if math.isinf(value):
        raise RowError(f"the number {text[:20]} is too large")
    return value


def _text(record: Mapping[str, Any], key: str) -> str:
    if key not in record:
        raise RowError(f'no key "{key}"')
    value = record[key]
    if not isinstance(value, str):
        raise RowError(f'"{key}" must be a string, got {_shown(value)}')
    return value


def _list(record: Mapping[str, Any], key: str) -> list[Any]:
    if key not in record:
        raise RowError(f'no key "{key}"')
    value = record[key]
    if not isinstance(value, list) or not value:
        raise RowError(f'"{key}" must be a list that is not empty, got {_shown(value)}')
    return value


def _code_reference(record: Mapping[str, Any]) -> str:
    record = {key: value for key, value in record.items() if value is not None}  # as in tables
    given = [key for key in _CODE_TESTS if key in record]
    if len(given) != 1:
        found = " and ".join(f'"{key}"' for key in given) or "none"
        raise RowError(f'needs one of the keys "tests", "cases" and "calls", found {found}')
    _list(record, given[0])
    return json.dumps({key: record[key] for key in _CODE_KEYS if key in record})


def _instructions_reference(record: Mapping[str, Any]) -> str:
    _text(record, "prompt")
    names, arguments = _list(record, "instruction_id_list"), _list(record, "kwargs")
    if len(names) != len(arguments):
        raise RowError(
            f'"kwargs" must have one entry for each of the {len(names)} instructions, '
            f"got {len(arguments)}"
        )
    return json.dumps({"instruction_id_list": names, "kwargs": arguments})


def _shown(value: object) -> str:
    text = json.dumps(value)
    return text if len(text) <= 60 else f"{text[:57]}..."
