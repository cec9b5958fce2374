"""Where problems come from: generators (rollout.generated), and JSONL files."""

import gzip
import json
import os
import string
from collections.abc import Sequence
from functools import lru_cache
from pathlib import Path
from typing import Protocol

from rewards.math_answer import MathVerifier
from rewards.task import TaskKind
from rollout.config import GENERATED, FamilyConfig, Source, TasksConfig
from rollout.generated import Explanations, Judgements, Procedural, Programs
from rollout.problem import DataError, Problem
from rollout.rows import READERS

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
            return JsonLines(family)


def check_generators(tasks: TasksConfig) -> None:
    """Raise `DataError` for a name or option that no generator has. Reads no file."""
    for family in (*tasks.families, *tasks.supervised_families, *tasks.test_families):
        if family.source in GENERATED:
            open_source(family, tasks.seed)


class JsonLines:
    """A JSONL file, plain or .gz, read whole, less the rows whose gold answer cannot be read."""

    def __init__(self, family: FamilyConfig) -> None:
        """Read every row; `DataError` names file, line and key of the first that cannot be used.

        Blank lines count as lines, and are no rows.
        """
        assert family.path is not None, "checked by FamilyConfig"
        path = expand(family.path)
        read_row = READERS[family.source]
        rows: dict[int, Problem] = {}  # by line
        for number, line in enumerate(_lines(path, family), start=1):
            if not line.strip():
                continue
            try:
                row = json.loads(line)
                if not isinstance(row, dict):
                    raise DataError("the row is no JSON object: write one object per line")
                rows[number] = read_row(row, family.instruction)
                _check_text(rows[number])
            except json.JSONDecodeError as error:
                raise DataError(
                    f"{path}, line {number}: the row is not valid JSON ({error.msg} at column "
                    f"{error.colno}): write one object per line"
                ) from error
            except (ValueError, RecursionError) as error:
                raise DataError(f"{path}, line {number}: {error}") from error
        golds = sorted({row.reference for row in rows.values() if row.kind is TaskKind.math})
        bad = unreadable(tuple(golds))
        left_out = [
            n for n, row in rows.items() if row.kind is TaskKind.math and row.reference in bad
        ]
        unusable = frozenset(left_out)
        self._problems = [row for number, row in rows.items() if number not in unusable]
        self.size: int | None = len(self._problems)
        self.note = ""
        if left_out:
            self.note = (
                f"families[{family.name}]: {len(left_out)} of {len(rows)} rows are left out, as "
                f"their gold answers cannot be read: {path}, lines {_first(left_out)}"
            )
        if not self._problems:
            raise DataError(
                f"{path} holds no rows: point families[{family.name}].path at another file"
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


def _lines(path: Path, family: FamilyConfig) -> list[str]:
    try:
        data = gzip.decompress(path.read_bytes()) if path.suffix == ".gz" else path.read_bytes()
        text = data.decode("utf-8-sig").removesuffix("\n")
        return text.split("\n") if text else []  # splitlines would cut at U+2028 inside a text
    except (OSError, EOFError, UnicodeDecodeError) as error:
        unset = "TEMPER_DATA" in (family.path or "") and "TEMPER_DATA" not in os.environ
        default = f"; TEMPER_DATA is not set and stands for {DATA_FOLDER} in {Path.cwd()}"
        raise DataError(
            f"families[{family.name}].path: cannot read {path} ({error}): "
            f"give a JSONL file in UTF-8, plain or .gz{default if unset else ''}"
        ) from error
