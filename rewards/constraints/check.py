"""What a rule checker of one constraint is: words in, nothing or the violation out."""

from collections.abc import Callable
from enum import StrEnum

Violation = str | None
"""What was found instead of what was asked; None if the constraint is followed."""

Check = Callable[..., Violation]
"""Takes the response, then keyword arguments whose names and types are those of the data set.

An argument named `prompt` is filled with the prompt of the task, not from the data set.
"""


class Relation(StrEnum):
    """How a count compares with its threshold, in IFEval's words."""

    less_than = "less than"
    at_least = "at least"


def expect(followed: bool, found: str) -> Violation:
    """None if followed, else what was found."""
    return None if followed else found


def compare(count: int, relation: Relation, threshold: int, noun: str) -> Violation:
    """Whether a count is less than, or at least, its threshold."""
    at_least = count >= threshold
    followed = at_least if relation is Relation.at_least else not at_least
    return expect(followed, f"{count} {noun}, not {relation.value} {threshold}")


def short(text: str) -> str:
    """The text on one line and in quotes, cut after 40 characters."""
    text = " ".join(text[:200].split())
    return repr(text if len(text) <= 40 else f"{text[:37]}...")
