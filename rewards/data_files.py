"""The rows of a data file: JSON lines or a JSON array, plain or gzip, or Parquet."""

import gzip
import json
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any


class DataFileError(ValueError):
    """A file that cannot be read at all: the user's mistake, with its fix."""


@dataclass(frozen=True, slots=True)
class Found:
    """One entry of a file: an object, or why there is none."""

    line: int  # from 1; of a JSON array or Parquet the number of the row
    values: dict[str, Any]
    error: str = ""


def read_objects(path: Path) -> Iterator[Found]:
    """The objects of a file, in order; blank lines count as lines, and are no rows.

    The name tells what it is: `.parquet`, `.json` (an array, or lines), anything else JSON lines;
    a JSON file whose name ends with `.gz` is unpacked. Raises `DataFileError` if it cannot be read.
    """
    name = path.name.removesuffix(".gz")
    try:
        if path.suffix == ".parquet":
            yield from _parquet(path)
        elif name.endswith(".json"):
            yield from _array_or_lines(path)
        else:
            yield from _lines(path)
    except (OSError, EOFError, zlib.error) as error:
        said = getattr(error, "strerror", None) or error
        raise DataFileError(f"cannot read {path}: {said}") from error


def _lines(path: Path) -> Iterator[Found]:
    with gzip.open(path) if path.suffix == ".gz" else path.open("rb") as file:
        for number, raw in enumerate(file, 1):
            if raw.strip():
                yield _object(number, raw)


def _object(number: int, raw: bytes) -> Found:
    try:
        value = json.loads(raw.rstrip().decode("utf-8-sig"))
    except json.JSONDecodeError as error:
        what = f"{error.msg} at column {error.colno}"
        return Found(number, {}, f"the row is not valid JSON ({what}): write one object per line")
    except UnicodeDecodeError as error:
        return Found(number, {}, f"the row is not UTF-8 at byte {error.start}")
    except (ValueError, RecursionError) as error:
        return Found(number, {}, f"the row is no JSON that can be read: {error}")
    return _checked(number, value)


def _checked(number: int, value: object) -> Found:
    if isinstance(value, dict):
        return Found(number, value)
    return Found(number, {}, f"the row is no JSON object but {str(value)[:60]!r}")


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
        raise DataFileError(f"{path} is not JSON: {error}") from error
    yield from (_checked(number, value) for number, value in enumerate(values, 1))


def _parquet(path: Path) -> Iterator[Found]:
    from pyarrow import ArrowException, parquet

    number = 0
    try:
        with parquet.ParquetFile(path) as file:
            for batch in file.iter_batches(batch_size=1024):
                for values in batch.to_pylist():
                    number += 1
                    yield Found(number, values)
    except ArrowException as error:
        raise DataFileError(f"cannot read {path} as Parquet: {error}") from error
