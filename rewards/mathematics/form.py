r"""The record of an answer's shape."""

from dataclasses import dataclass
from enum import StrEnum

from rewards.mathematics.expression import Unreadable
from rewards.mathematics.text import normal
from rewards.mathematics.units import NOTHING, Measure, measure


class Kind(StrEnum):
    """What an answer is."""

    leaf = "leaf"
    words = "words"
    listing = "listing"
    set = "set"
    union = "union"
    tuple = "tuple"
    matrix = "matrix"
    ratio = "ratio"
    time = "time"
    chain = "chain"
    relation = "relation"
    residue = "residue"
    empty = "empty"


@dataclass(frozen=True, slots=True, kw_only=True)
class Form:
    r"""An answer's shape.

    Example: `x \in [0, \infty)` is a tuple with mark "[)" of two leaves, named "x"; `x = 5` is a
    leaf named "x"; `1 < 2` is a relation with mark "<".
    """

    kind: Kind
    text: str = ""  # of words and leaves
    items: tuple["Form", ...] = ()
    mark: str = ""  # brackets, operator, or size
    name: str = ""  # what it is said to be the value of
    measure: Measure = NOTHING  # of a leaf


def leaf(text: str) -> Form:
    """An expression with its unit. Raises `Unreadable` for other words."""
    cut = measure(text)
    if cut is None:
        raise Unreadable("words that are no unit")
    if cut.unit == "" and is_infinite(cut.body):
        cut = Measure(body=normal(cut.body).removeprefix("+"))
    return Form(kind=Kind.leaf, text=text, measure=cut)


def is_infinite(text: str) -> bool:
    """Whether it is infinity, of either sign."""
    return normal(text).lstrip("+-") == r"\infty"
