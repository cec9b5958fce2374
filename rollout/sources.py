"""Where problems come from: procedural generators, and JSONL files of GSM8K or DeepMath rows."""

import gzip
import hashlib
import json
import os
import random
import re
import string
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, fields
from difflib import get_close_matches
from pathlib import Path
from typing import Any, Protocol

from reasoning_gym.factory import DATASETS, create_dataset

from rewards.task import Message
from rollout.config import FamilyConfig, Source
from rollout.worked import WRITERS, boxed

TERSE_ONLY = ("basic_arithmetic", "count_bits", "count_primes", "lcm", "letter_counting")
"""Generators without a worked writer whose one right answer can be checked by value."""

BOILERPLATE = (
    re.compile(r"^Your task is to .*?\n\nNow, ", re.DOTALL),
    re.compile(r" Give only the \w+ as your final answer\."),
)
"""Cut from a generator's question: what repeats the question, or forbids to show the steps."""

DATA_FOLDER = "../shared/data"  # what ${TEMPER_DATA} stands for when it is not set


class DataError(ValueError):
    """Tasks that cannot be read or generated: the user's mistake, with its place and its fix."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Problem:
    """A question with its gold answer, before it becomes a task of some stream."""

    messages: tuple[Message, ...]
    question: str  # what decides whether the problem is held out
    reference: str
    worked: str | None  # a worked solution, if one is known
    tags: tuple[str, ...] = ()


class ProblemSource(Protocol):
    """Problems by index."""

    size: int | None  # None: as many as one likes, with repetitions

    def problem(self, index: int) -> Problem:
        """The problem at `index`: always the same one."""
        ...


def open_source(family: FamilyConfig, seed: int) -> ProblemSource:
    """The problems of one family. Raises `DataError` for what is not there or cannot be read."""
    if family.source is Source.reasoning_gym:
        return Procedural(family, seed)
    return JsonLines(family)


class Procedural:
    """A reasoning_gym generator; the index seeds the item."""

    size: int | None = None

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
        return Problem(
            messages=(_user(question, self._instruction),),
            question=question,
            reference=str(item["answer"]),
            worked=self._writer(item["metadata"]) if self._writer else None,
        )


class JsonLines:
    """A JSONL file, plain or .gz, read whole."""

    def __init__(self, family: FamilyConfig) -> None:
        """Read every row; `DataError` names file, line and key of the first that cannot be used."""
        assert family.path is not None, "checked by FamilyConfig"
        path = expand(family.path)
        read_row = _READERS[family.source]
        self._problems = []
        for number, line in enumerate(_lines(path), start=1):
            try:
                row = json.loads(line)
                if not isinstance(row, dict):
                    raise DataError("the row is no JSON object: write one object per line")
                self._problems.append(read_row(row, family.instruction))
            except (DataError, json.JSONDecodeError) as error:
                raise DataError(f"{path}, line {number}: {error}") from error
        if not self._problems:
            raise DataError(
                f"{path} holds no rows: point families[{family.name}].path at another file"
            )
        self.size: int | None = len(self._problems)

    def problem(self, index: int) -> Problem:
        """Row `index`, from 0."""
        return self._problems[index]


def expand(path: str) -> Path:
    """The path with its environment variables filled in; ${TEMPER_DATA} has a default."""
    known = {"TEMPER_DATA": DATA_FOLDER, **os.environ}
    return Path(string.Template(path).safe_substitute(known)).expanduser()


def gsm8k_problem(row: Mapping[str, Any], instruction: str) -> Problem:
    """Row `{"question", "answer"}`; its rationale, without calculator marks, is the solution."""
    question, answer = _text(row, "question"), _text(row, "answer")
    rationale, mark, gold = answer.rpartition("####")
    gold = gold.strip().replace(",", "")
    if not mark or not gold:
        raise DataError("key 'answer' has no gold: end it with '#### ' and the final answer")
    rationale = re.sub(r"<<[^<>]*>>", "", rationale).strip()
    return Problem(
        messages=(_user(question, instruction),),
        question=question,
        reference=gold,
        worked=f"{rationale}\n{boxed(gold)}".strip(),
    )


def deepmath_problem(row: Mapping[str, Any], instruction: str) -> Problem:
    """Row `{"prompt" or "messages", "ground_truth"}`; `messages` may be a list or its JSON text."""
    reference = _text(row, "ground_truth")
    tags = (f"difficulty={row['difficulty']}",) if row.get("difficulty") else ()
    if row.get("messages"):
        messages = _messages(row["messages"])
    else:
        messages = (_user(_text(row, "prompt"), instruction),)
    question = str(row.get("prompt") or messages[-1].content)
    return Problem(
        messages=messages, question=question, reference=reference, worked=None, tags=tags
    )


_READERS: dict[Source, Callable[[Mapping[str, Any], str], Problem]] = {
    Source.gsm8k: gsm8k_problem,
    Source.deepmath: deepmath_problem,
}


def uniform(seed: int, *words: str) -> float:
    """A number in [0, 1) that depends on its arguments alone, on every machine."""
    return _hash(str(seed), *words) / 2.0**64


def shuffled(seed: int, epoch: int, count: int) -> list[int]:
    """The order in which epoch `epoch` visits `count` rows."""
    order = list(range(count))
    random.Random(_hash(str(seed), "order", str(epoch))).shuffle(order)
    return order


def _hash(*words: str) -> int:
    text = "\0".join(words).encode()
    return int.from_bytes(hashlib.blake2b(text, digest_size=8).digest(), "big")


def _nearest(name: str, known: Sequence[str]) -> str:
    near = get_close_matches(name, known, n=1)
    return f" (did you mean {near[0]!r}?)" if near else ""


def _lines(path: Path) -> list[str]:
    try:
        data = gzip.decompress(path.read_bytes()) if path.suffix == ".gz" else path.read_bytes()
        return data.decode("utf-8").splitlines()
    except (OSError, EOFError, UnicodeDecodeError) as error:
        raise DataError(
            f"cannot read {path} ({error}): give a JSONL file in UTF-8, plain or .gz"
        ) from error


def _text(row: Mapping[str, Any], key: str) -> str:
    value = row.get(key)
    if isinstance(value, int | float) and not isinstance(value, bool):
        value = str(value)
    if not isinstance(value, str) or not value.strip():
        raise DataError(f"key {key!r} is missing or empty: give it a text, or delete the row")
    return value.strip()


def _messages(value: object) -> tuple[Message, ...]:
    turns: Any = json.loads(value) if isinstance(value, str) else value
    try:
        messages = tuple(Message(role=str(t["role"]), content=str(t["content"])) for t in turns)
    except (KeyError, TypeError) as error:
        raise DataError("key 'messages' must list objects with 'role' and 'content'") from error
    if not messages or messages[-1].role != "user":
        raise DataError("key 'messages' must end with a turn of the user")
    return messages


def _user(question: str, instruction: str) -> Message:
    return Message(role="user", content=f"{question}\n{instruction}" if instruction else question)
