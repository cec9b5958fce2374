"""What the judge computes with values of a program, bounded in time and memory.

Small answers can cost much: a range of 10^18 items, keys of one hash, fractions whose sum doubles.
Everything here raises an exception where the cost would not be small.
"""

import ast
from typing import Any

from rewards.programs.handles import Handle
from rewards.programs.values import spread

MOST_ITEMS = 5_000_000  # of anything that a test builds
MOST_BITS = 1 << 16  # of the operands of a product or power
MOST_GROWTH = 100_000_000  # items, times the size of all of them, of a sum


def lazy(value: object) -> bool:
    """Whether a value could produce more items than it holds."""
    return isinstance(value, range | Handle)


def countable(value: Any) -> None:
    """Refuse a range that is too long to be gone through."""
    if isinstance(value, range) and len(value) > MOST_ITEMS:
        raise OverflowError("too many items")


def hashed(kind: str, value: Any) -> Any:
    """What becomes a set or dict, unless its hashes or its pairs are made to take for ever."""
    if not isinstance(value, list | tuple):
        return value
    if kind != "dict":
        return spread(list(value))
    if any(lazy(pair) for pair in value):
        raise TypeError("a pair is a tuple or a list")
    spread([pair[0] for pair in value if isinstance(pair, list | tuple) and pair])
    return value


def bound(operation: ast.operator, left: Any, right: Any) -> None:
    """Refuse arithmetic whose result would not fit."""
    if isinstance(left, Handle) or isinstance(right, Handle):
        raise TypeError("arithmetic with an object of the program")
    numbers = [value for value in (left, right) if isinstance(value, int)]
    if isinstance(operation, ast.Pow):
        if not all(isinstance(value, int | float) for value in (left, right)):
            raise TypeError("a power of numbers only")
        if len(numbers) == 2 and left.bit_length() * max(1, right) > MOST_BITS:
            raise OverflowError("the power is too large")
    elif isinstance(operation, ast.Mult | ast.Div | ast.FloorDiv | ast.Mod):
        if isinstance(operation, ast.Mod) and isinstance(left, str | bytes | bytearray):
            raise TypeError("formatting is not plain")
        sizes = [len(value) for value in (left, right) if hasattr(value, "__len__")]
        if sizes and numbers and sizes[0] * max(1, numbers[0]) > MOST_ITEMS:
            raise OverflowError("too many items")
        if any(value.bit_length() > MOST_BITS for value in numbers):
            raise OverflowError("the number is too large")


def total(items: Any, start: Any = 0) -> Any:
    """`sum`, unless it grows with every item: its time would grow with their number squared."""
    items = [*items]
    if any(isinstance(item, Handle) for item in items):
        raise TypeError("a sum of objects of the program")
    if sum(map(_growth, items)) * len(items) > MOST_GROWTH:
        raise OverflowError("the sum grows too large")
    return sum(items, start)


def _growth(item: Any) -> int:
    if isinstance(item, int | float | complex):
        return 0
    return len(item) if hasattr(item, "__len__") else getattr(item, "denominator", 0).bit_length()


def rounded(value: Any, digits: int | None = None) -> Any:
    """`round`."""
    if digits is not None and abs(digits) > 1000:
        raise OverflowError("too many digits")
    return round(value, digits)
