"""Scores of a row's responses, in the ways in which they are written."""

import sys
from collections.abc import Mapping, Sequence
from string import ascii_uppercase
from typing import Any

from rewards.preference.records import ProblemKind, RowProblem


def score_values(given: object, count: int) -> tuple[float, ...]:
    """Scores of a row's `count` responses, in order.

    Either a list, or {"A": ..., "B": ...} (or "0", "1") by position, or
    {"chosen": ..., "rejected": ...} with a number or a list each. Raises `RowProblem` for anything
    else and for what is not finite.
    """
    if isinstance(given, Mapping):
        given = _by_name(given, count)
    values: Sequence[Any] = [given]
    if isinstance(given, Sequence) and not isinstance(given, str):
        values = given
    if len(values) != count:
        raise RowProblem(ProblemKind.bad_score_row, f"{len(values)} scores for {count} responses")
    for value in values:
        if isinstance(value, bool) or not isinstance(value, int | float):
            raise RowProblem(ProblemKind.bad_score_row, f"score {str(value)[:40]!r} is no number")
        if not is_finite(value):
            raise RowProblem(ProblemKind.bad_score_row, f"score {value!s:.40} is not finite")
    return tuple(float(value) for value in values)


def is_finite(value: float) -> bool:
    """Whether it is a number that a float can hold: JSON has larger ones."""
    return abs(value) <= sys.float_info.max


def _by_name(given: Mapping[str, Any], count: int) -> list[Any]:
    if {"chosen", "rejected"} == given.keys():
        sides = [given["chosen"], given["rejected"]]
        return [each for side in sides for each in (side if isinstance(side, list) else [side])]
    letters = list(ascii_uppercase[:count])
    numbers = [str(place) for place in range(count)]
    if given.keys() == set(numbers):
        letters = numbers
    if given.keys() != set(letters):
        names = ", ".join(sorted(map(str, given)))
        wanted = f"{letters[0]} to {letters[-1]}" if letters else "none"
        raise RowProblem(
            ProblemKind.bad_score_row,
            f"scores are named {names}; {count} responses are {wanted}, or a list",
        )
    return [given[letter] for letter in letters]
