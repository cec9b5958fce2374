"""Where problems come from: generators (rollout.generated), and files of rows."""

import os
import string
from collections.abc import Iterator, Sequence
from functools import lru_cache
from itertools import islice
from pathlib import Path
from typing import Protocol

from rewards.data_files import DataFileError, Found, read_objects
from rewards.math_answer import MathVerifier
from rewards.task import TaskKind
from rollout.config import GENERATED, FamilyConfig, Source, TasksConfig
from rollout.generated import Explanations, Judgements, Procedural, Programs
from rollout.problem import DataError, Problem
from rollout.rows import READERS

LOOKED_AT = 100  # rows of a file, where a run is only planned
GOLD_TIMEOUT_S = 30.0  # its reader starts with the first hard gold: 3 s, more on a busy machine

DATA_FOLDER = "../shared/data"  # what ${TEMPER_DATA} stands for when it is not set


class ProblemSource(Protocol):
    """Problems by index."""

    size: int | None  # None: as many as one likes, with repetitions
    note: str  # what the user should know of it, if anything

    def problem(self, index: int) -> Problem:
        """The problem at `index`: always the same one."""
        ...


def open_source(family: FamilyConfig, seed: int) -> ProblemSource:
    """The problems of one family. Raises `DataError` for what is not there or cannot be read."""
    match family.source:
        case Source.reasoning_gym:
            return Procedural(family, seed)
        case Source.programs:
            return Programs(family, seed)
        case Source.explanations:
            return Explanations(family, seed)
        case Source.judgements:
            return Judgements(family, seed)
        case _:
            return RowFile(family)


def check_generators(tasks: TasksConfig) -> None:
    """Raise `DataError` for a name or option that no generator has. Reads no file."""
    for family in (*tasks.families, *tasks.supervised_families, *tasks.test_families):
        if family.source in GENERATED:
            open_source(family, tasks.seed)


def first_faults(tasks: TasksConfig) -> list[str]:
    """What is wrong with each family's file, as far as its first rows show it; [] if nothing is."""
    faults = []
    for family in (*tasks.families, *tasks.supervised_families, *tasks.test_families):
        if family.source not in GENERATED:
            try:
                first = [found for _, found in islice(_problems(family), LOOKED_AT)]
            except DataError as error:
                faults.append(str(error))
                continue
            if not first:
                faults.append(f"families[{family.name}]: {_path(family)} holds no rows")
            bad = [found for found in first if isinstance(found, DataError)]
            faults += [] if family.skip_bad_rows else map(str, bad[:1])
    return list(dict.fromkeys(faults))


class RowFile:
    """A file of rows (rewards.data_files), read whole, less those whose gold cannot be read."""

    def __init__(self, family: FamilyConfig) -> None:
        """Read every row.

        Raises `DataError` with file, line and key of the first that cannot be used, unless these
        are to be left out (`skip_bad_rows`); and if no row is left.
        """
        rows: dict[int, Problem] = {}  # by line
        skipped: dict[int, DataError] = {}
        for line, found in _problems(family):
            if isinstance(found, Problem):
                rows[line] = found
            elif family.skip_bad_rows:
                skipped[line] = found
            else:
                raise found
        golds = sorted({row.reference for row in rows.values() if row.kind is TaskKind.math})
        bad = unreadable(tuple(golds))
        left_out = [
            n for n, row in rows.items() if row.kind is TaskKind.math and row.reference in bad
        ]
        unusable = frozenset(left_out)
        self._problems = [row for number, row in rows.items() if number not in unusable]
        self.size: int | None = len(self._problems)
        of = f"of {len(rows) + len(skipped)} rows are left out"
        notes = []
        if skipped:
            notes.append(f"{len(skipped)} {of}, such as {next(iter(skipped.values()))}")
        if left_out:
            notes.append(
                f"{len(left_out)} {of}, as their gold answers cannot be read: {_path(family)}, "
                f"lines {_first(left_out)}"
            )
        self.note = f"families[{family.name}]: {'; '.join(notes)}" if notes else ""
        if not self._problems:
            raise DataError(
                f"{_path(family)} holds no rows: point families[{family.name}].path at another file"
                + (f" ({self.note})" if self.note else "")
            )

    def problem(self, index: int) -> Problem:
        """Row `index`, from 0, of those that are not left out."""
        return self._problems[index]


@lru_cache(maxsize=16)
def unreadable(golds: tuple[str, ...]) -> frozenset[str]:
    """The gold answers of mathematics with which no answer can be compared.

    A grammar decides nearly all; the rest go to processes, which end before this returns.
    """
    verifier = MathVerifier(timeout_s=GOLD_TIMEOUT_S)
    try:
        return frozenset(gold for gold in golds if not verifier.readable(gold))
    finally:
        verifier.close()


def expand(path: str) -> Path:
    """The path with its environment variables filled in; ${TEMPER_DATA} has a default."""
    known = {"TEMPER_DATA": DATA_FOLDER, **os.environ}
    return Path(string.Template(path).safe_substitute(known)).expanduser()


def _first(numbers: Sequence[int], most: int = 5) -> str:
    """The first few, for a person."""
    more = ", ..." if len(numbers) > most else ""
    return ", ".join(map(str, numbers[:most])) + more


def _check_text(problem: Problem) -> None:
    texts = [*(message.content for message in problem.messages), problem.question]
    texts += [problem.reference, problem.worked or "", *problem.tags]
    try:
        "".join(texts).encode()
    except UnicodeEncodeError as error:  # no tokenizer takes it
        raise DataError(r"a text holds half of a surrogate pair (\ud800 to \udfff)") from error


def _path(family: FamilyConfig) -> Path:
    assert family.path is not None, "checked by FamilyConfig"
    return Path(os.path.abspath(expand(family.path)))


def _problems(family: FamilyConfig) -> Iterator[tuple[int, Problem | DataError]]:
    """Every row by its line, or what is wrong with it: file, line and key.

    Raises `DataError` for a file that cannot be read.
    """
    path, read_row = _path(family), READERS[family.source]
    for found in _entries(path, family):
        try:
            if found.error:
                raise DataError(found.error)
            problem = read_row(found.values, family.instruction)
            _check_text(problem)
        except (ValueError, RecursionError) as error:
            wrong = DataError(f"{path}, line {found.line}: {error}")
            wrong.__cause__ = error
            yield found.line, wrong
        else:
            yield found.line, problem


def _entries(path: Path, family: FamilyConfig) -> Iterator[Found]:
    try:
        yield from read_objects(path)
    except DataFileError as error:
        unset = "TEMPER_DATA" in (family.path or "") and "TEMPER_DATA" not in os.environ
        default = f"; TEMPER_DATA is not set and stands for {DATA_FOLDER}" if unset else ""
        raise DataError(
            f"families[{family.name}].path={family.path}: {error}; give JSON lines in UTF-8, plain "
            f"or .gz, or Parquet{default}"
        ) from error
