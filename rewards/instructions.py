"""The reward of following instructions that rules can check (IFEval, IFBench).

Pure and thread-safe: the same response gets the same verdict in every call. A new constraint is a
function in a module of `rewards/constraints` and a line in that module's table.
"""

import difflib
import functools
import inspect
import json
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, cast

from rewards.constraints import (
    counts,
    custom,
    format,
    keywords,
    language,
    nesting,
    place,
    words,
)
from rewards.constraints.check import Check, Relation, Violation
from rewards.constraints.lists import NAMES
from rewards.errors import RewardError
from rewards.hack_check import claim, empty_of_answer
from rewards.score import Score

PART = "instructions"
PROMPT = "prompt"  # the argument of a check that is given the task's prompt
CHECKS: Mapping[str, Check] = {
    **counts.CHECKS,
    **custom.CHECKS,
    **format.CHECKS,
    **keywords.CHECKS,
    **language.CHECKS,
    **nesting.CHECKS,
    **place.CHECKS,
    **words.CHECKS,
}
"""All constraints by the id that the data sets give them."""
MOST_CHARACTERS = 200_000
"""A longer response is no answer to such a prompt; reading all of it would hold up the others."""
REPEATING = ("combination:repeat_prompt", "repeat:", "ratio:overlap")
"""Constraints whose right answer repeats the prompt: ids, or how ids begin."""
KEYWORD_ARGUMENTS = (
    "keyword", "keywords", "keyword1", "keyword2", "keyword3", "keyword4", "keyword5", "word",
)  # fmt: skip

Argument = str | int | float | Relation | tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Constraint:
    """One thing that a prompt asks for, as a rule can check it."""

    id: str  # "keywords:existence"
    arguments: Mapping[str, Argument]  # those of the check, read and valid

    def violation(self, response: str, prompt: str) -> Violation:
        """What the response violates, or None. Never raises because of the response."""
        if not response.strip():
            return "an empty response"
        check = CHECKS[self.id]
        given = {PROMPT: prompt} if PROMPT in inspect.signature(check).parameters else {}
        return check(response, **self.arguments, **given)


def verify(
    response: str, prompt: str, reference: str, *, loose: bool = False, partial: bool = False
) -> Score:
    """Score one response: total and part "instructions" in [0, 1]; `why` names what is violated.

    The total is 1 if every constraint is followed, else 0 (IFEval's prompt-level accuracy); with
    `partial` it is the share that is followed (instruction-level). `loose` also accepts a response
    that follows a constraint without its first line, its last line, both, or its asterisks (IFEval,
    arXiv:2311.07911 sec. 2.2). In every mode, 0 is for a response that claims to comply and does
    not, taken strictly, and for one that is no answer (hack-check of K2 sec. 3.2.1).

    Raises `RewardError` for a reference that `parse_reference` refuses.
    """
    try:
        constraints = _parsed(reference)
    except ValueError as error:
        raise RewardError(f"instructions that cannot be read: {error}") from error
    if len(response) > MOST_CHARACTERS:
        return _score(0.0, f"{len(response)} characters, more than {MOST_CHARACTERS}")
    missing = empty_of_answer(
        response,
        prompt,
        keywords=_keywords(constraints),
        may_repeat=any(each.id.startswith(REPEATING) for each in constraints),
    )
    if missing is not None:
        return _score(0.0, f"no answer: {missing}")
    strictly = [each.violation(response, prompt) for each in constraints]
    claimed = claim(response) if any(strictly) else None
    if claimed is not None:
        return _score(
            0.0, f"claims to comply ({claimed!r}) but violates {_said(constraints, strictly)}"
        )
    found = strictly
    if loose:
        found = [
            violation and _loosely(each, response, prompt, violation)
            for each, violation in zip(constraints, strictly, strict=True)
        ]
    if not any(found):
        return _score(1.0, f"follows {len(found)} of {len(found)}")
    share = found.count(None) / len(found) if partial else 0.0
    return _score(share, f"violates {_said(constraints, found)}")


def parse_reference(reference: str) -> tuple[Constraint, ...]:
    """Read `{"instruction_id_list": [id, ...], "kwargs": [{name: value}, ...]}`.

    Arguments that are null are ignored. Raises `ValueError` naming what is wrong: no such JSON, an
    unknown id (with the nearest one), a missing or unknown argument, a value of another type.
    """
    try:
        record = json.loads(reference)
    except (ValueError, RecursionError) as error:
        raise ValueError(f"the reference is no JSON: {error}") from error
    if not isinstance(record, dict):
        raise ValueError("the reference must be an object with instruction_id_list and kwargs")
    ids, kwargs = record.get("instruction_id_list"), record.get("kwargs")
    if not isinstance(ids, list) or not ids:
        raise ValueError("instruction_id_list must be a list of at least one id")
    if kwargs is None:
        kwargs = [None] * len(ids)
    if not isinstance(kwargs, list) or len(kwargs) != len(ids):
        raise ValueError(f"kwargs must be a list of {len(ids)} objects, one for each id")
    return tuple(_constraint(name, given) for name, given in zip(ids, kwargs, strict=True))


_parsed = functools.lru_cache(maxsize=4096)(parse_reference)


def variants(response: str) -> list[str]:
    """The response, then without its first line, last line, both; then all without asterisks."""
    lines = response.split("\n")
    cut = ["\n".join(part).strip() for part in (lines[1:], lines[:-1], lines[1:-1])]
    whole = [response, *cut]
    return list(dict.fromkeys(whole + [each.replace("*", "") for each in whole]))


def _loosely(constraint: Constraint, response: str, prompt: str, violation: Violation) -> Violation:
    for variant in variants(response)[1:]:
        if constraint.violation(variant, prompt) is None:
            return None
    return violation


def _constraint(name: Any, given: Any) -> Constraint:
    if not isinstance(name, str) or name not in CHECKS:
        raise ValueError(f"unknown instruction id {name!r}{_nearest(str(name), CHECKS)}")
    if not isinstance(given, dict | None):
        raise ValueError(f"{name}: its kwargs must be an object, got {given!r:.60}")
    values = {key: value for key, value in (given or {}).items() if value is not None}
    types = dict(_arguments(CHECKS[name]))
    for key in values:
        if key not in types:
            raise ValueError(f"{name}: unknown argument {key!r}{_nearest(key, types)}")
    for key in types:
        if key not in values:
            raise ValueError(f"{name}: the argument {key!r} is missing")
    return Constraint(name, {key: _read(name, key, values[key], types[key]) for key in types})


def _arguments(check: Check) -> Iterator[tuple[str, Any]]:
    for parameter in inspect.signature(check).parameters.values():
        if parameter.kind is parameter.KEYWORD_ONLY and parameter.name != PROMPT:
            yield parameter.name, parameter.annotation


def _read(name: str, key: str, value: Any, wanted: Any) -> Argument:
    number = isinstance(value, int | float) and not isinstance(value, bool)
    if wanted is int and number and 0 <= value < math.inf and value == int(value):
        return int(value)  # JSON made of tables holds 5.0
    if wanted is float and number and 0 <= value < math.inf:
        return float(value)
    if wanted is str and isinstance(value, str) and value.strip():
        return value
    if wanted is Relation and value in list(Relation):
        return Relation(value)
    texts = isinstance(value, list) and all(isinstance(each, str) for each in value)
    if wanted == Sequence[str] and texts and value and all(map(str.strip, value)):
        return tuple(value)
    raise ValueError(f"{name}: {key} must be {_WANTED[wanted]}, got {value!r:.60}")


_WANTED = {
    int: "a whole number that is not negative",
    float: "a number that is not negative",
    str: "a text that is not empty",
    Relation: " or ".join(repr(each.value) for each in Relation),
    Sequence[str]: "a list of texts",
}


def _keywords(constraints: Sequence[Constraint]) -> tuple[str, ...]:
    found: list[str] = []
    for each in constraints:
        for name in KEYWORD_ARGUMENTS:
            value = each.arguments.get(name, ())
            found.extend((value,) if isinstance(value, str) else cast(tuple[str, ...], value))
        if each.id == "count:person_names":
            found.extend(NAMES)
    return tuple(found)


def _nearest(name: str, known: Mapping[str, Any]) -> str:
    close = difflib.get_close_matches(name, list(known), n=1, cutoff=0.0)
    return f"; the nearest is {close[0]!r}" if close else "; it takes none"


def _said(constraints: Sequence[Constraint], found: Sequence[Violation]) -> str:
    pairs = zip(constraints, found, strict=True)
    return "; ".join(f"{each.id} ({violation})" for each, violation in pairs if violation)


def _score(total: float, why: str) -> Score:
    return Score(total=total, parts={PART: total}, why=why)
