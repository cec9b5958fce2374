"""Where problems come from: generators, and JSONL files."""

import gzip
import hashlib
import json
import os
import random
import re
import string
from collections.abc import Sequence
from dataclasses import fields
from difflib import get_close_matches
from functools import lru_cache
from pathlib import Path
from typing import Protocol

from reasoning_gym.factory import DATASETS, create_dataset

from rewards.math_answer import MathVerifier
from rewards.task import TaskKind
from rollout.config import FamilyConfig, Source
from rollout.problem import DataError, Problem, user_turn
from rollout.programs import make_program
from rollout.rows import READERS
from rollout.worked import WRITERS, boxed

TERSE_ONLY = ("basic_arithmetic", "count_bits", "count_primes", "lcm", "letter_counting")
"""Generators without a worked writer whose one right answer can be checked by value."""

BOILERPLATE = (
    re.compile(r"^Your task is to .*?\n\nNow, ", re.DOTALL),
    re.compile(r" Give only the \w+ as your final answer\."),
)
"""Cut from a generator's question: what repeats the question, or forbids to show the steps."""

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
    if family.source is Source.reasoning_gym:
        return Procedural(family, seed)
    if family.source is Source.programs:
        return Programs(family, seed)
    return JsonLines(family)


class Procedural:
    """A reasoning_gym generator; the index seeds the item."""

    size: int | None = None
    note = ""

    def __init__(self, family: FamilyConfig, seed: int) -> None:
        """Raise `DataError` for an unknown generator or option, with the nearest name."""
        known = [*WRITERS, *TERSE_ONLY]
        if family.name not in known:
            raise DataError(
                f"no generator {family.name!r} whose answers can be checked by value"
                f"{_nearest(family.name, known)}; known: {', '.join(known)}"
            )
        options = [field.name for field in fields(DATASETS[family.name][1])]
        options = sorted(set(options) - {"seed", "size"})  # the stream's own
        for option in family.options:
            if option not in options:
                raise DataError(
                    f"families[{family.name}].options has no {option!r}"
                    f"{_nearest(option, options)}; known: {', '.join(options)}"
                )
        try:
            # An item is drawn from random.Random(seed + index): hashed, nearby seeds do not overlap
            # and families do not repeat one another's numbers.
            wide = _hash(str(seed), family.name, repr(sorted(family.options.items())))
            self._items = create_dataset(family.name, seed=wide, size=2**62, **family.options)
            self._items[0]
        except (AssertionError, TypeError, ValueError) as error:
            raise DataError(f"families[{family.name}].options {family.options}: {error}") from error
        self._instruction = family.instruction
        self._writer = WRITERS.get(family.name)

    def problem(self, index: int) -> Problem:
        """Generate item `index`."""
        item = self._items[index]
        question = item["question"]
        for pattern in BOILERPLATE:
            question = pattern.sub("", question)
        question = question[:1].upper() + question[1:].strip()
        answer = str(item["answer"])
        return Problem(
            kind=TaskKind.math,
            messages=user_turn(question, self._instruction),
            question=question,
            reference=answer,
            worked=self._writer(item["metadata"]) if self._writer else None,
            hasty=boxed(answer),
        )


class Programs:
    """Tiny programs to write; the index seeds each."""

    size: int | None = None
    note = ""

    def __init__(self, family: FamilyConfig, seed: int) -> None:
        """Raise `DataError` for an option that is not `steps`, or is no small number."""
        for option in family.options:
            if option != "steps":
                raise DataError(
                    f"families[{family.name}].options has no {option!r}"
                    f"{_nearest(option, ['steps'])}; known: steps"
                )
        self._steps = family.options.get("steps", 2)
        if type(self._steps) is not int or not 1 <= self._steps <= 9:
            raise DataError(
                f"families[{family.name}].options.steps must lie in [1, 9], got {self._steps!r}"
            )
        self._instruction = family.instruction
        self._words = (str(seed), family.name, str(self._steps))

    def problem(self, index: int) -> Problem:
        """Make program `index`."""
        made = make_program(random.Random(_hash(*self._words, str(index))), self._steps)
        return Problem(
            kind=TaskKind.code,
            messages=user_turn(made.question, self._instruction),
            question=made.question,
            reference=json.dumps({"tests": made.tests}),
            worked=made.careful,
            hasty=made.careless,
        )


class JsonLines:
    """A JSONL file, plain or .gz, read whole, less the rows whose gold answer cannot be read."""

    def __init__(self, family: FamilyConfig) -> None:
        """Read every row; `DataError` names file, line and key of the first that cannot be used."""
        assert family.path is not None, "checked by FamilyConfig"
        path = expand(family.path)
        read_row = READERS[family.source]
        rows: dict[int, Problem] = {}  # by line
        for number, line in enumerate(_lines(path), start=1):
            try:
                row = json.loads(line)
                if not isinstance(row, dict):
                    raise DataError("the row is no JSON object: write one object per line")
                rows[number] = read_row(row, family.instruction)
                _check_text(rows[number])
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


def uniform(seed: int, *words: str) -> float:
    """A number in [0, 1) that depends on its arguments alone, on every machine."""
    return _hash(str(seed), *words) / 2.0**64


def shuffled(seed: int, epoch: int, count: int) -> list[int]:
    """The order in which epoch `epoch` visits `count` rows."""
    order = list(range(count))
    random.Random(_hash(str(seed), "order", str(epoch))).shuffle(order)
    return order


def _first(numbers: Sequence[int], most: int = 5) -> str:
    """The first few, for a person."""
    more = ", ..." if len(numbers) > most else ""
    return ", ".join(map(str, numbers[:most])) + more


def _hash(*words: str) -> int:
    text = "\0".join(words).encode()
    return int.from_bytes(hashlib.blake2b(text, digest_size=8).digest(), "big")


def _nearest(name: str, known: Sequence[str]) -> str:
    near = get_close_matches(name, known, n=1)
    return f" (did you mean {near[0]!r}?)" if near else ""


def _check_text(problem: Problem) -> None:
    texts = [*(message.content for message in problem.messages), problem.question]
    texts += [problem.reference, problem.worked or "", *problem.tags]
    try:
        "".join(texts).encode()
    except UnicodeEncodeError as error:  # no tokenizer takes it
        raise DataError(r"a text holds half of a surrogate pair (\ud800 to \udfff)") from error


def _lines(path: Path) -> list[str]:
    try:
        data = gzip.decompress(path.read_bytes()) if path.suffix == ".gz" else path.read_bytes()
        text = data.decode("utf-8-sig").removesuffix("\n")
        return text.split("\n") if text else []  # splitlines would cut at U+2028 inside a text
    except (OSError, EOFError, UnicodeDecodeError) as error:
        raise DataError(
            f"cannot read {path} ({error}): give a JSONL file in UTF-8, plain or .gz"
        ) from error
