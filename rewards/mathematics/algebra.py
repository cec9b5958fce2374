r"""Compares two expressions by their values, to 60 digits, at points of the real line and beyond.

Runs in the worker. Every step is guarded against exploding values, and what has no value at a point
says nothing there.
"""

import random
from collections.abc import Callable, Iterator
from fractions import Fraction
from typing import Any

from mpmath.ctx_mp import MPContext

from rewards.mathematics.expression import Node
from rewards.mathematics.text import Number, is_rounding
from rewards.mathematics.values import names_of, rational_value

DIGITS = 60
AGREE = 45  # leading digits in which equal values agree
MOST_BITS = 200_000  # of magnitude: a larger value is no answer
MOST_GAMMA = 20_000
SMALLEST = 1e-12  # of a difference that is one
POINTS = 4  # that must agree
TRIES = 24

_mp = MPContext()
_mp.dps = DIGITS
Point = dict[str, Any]


class NoValue(ArithmeticError):
    """Undefined, infinite, or too large."""


def same_value(gold: Node, answer: Node) -> bool:
    r"""Whether the two agree wherever the gold is real: `2\ln x` is `\ln x^2` there, |x| is not x.

    Tried at real points, then at positive whole ones (`(-1)^n`), then at complex values. A bare
    `\log` is the natural one or the decimal one, on both sides alike.
    """
    bases = (None, 10) if _mentions(gold, "log") or _mentions(answer, "log") else (None,)
    return any(_agree(gold, answer, base) for base in bases)


def rounds(exact: Node, rounded: Number) -> bool:
    """Whether a decimal is a constant rounded to it."""
    if names_of(exact):
        return False
    try:
        value = _value(exact, {}, None)
    except NoValue:
        return False
    if not _real(value):
        return False
    digits = _mp.nstr(_mp.re(value), DIGITS - 5, strip_zeros=False, min_fixed=-100, max_fixed=100)
    return is_rounding(rounded, Fraction(digits))


def proportional(gold: Node, answer: Node, *, positive: bool) -> bool:
    """Whether answer / gold is one constant, not 0: then `gold = 0` and `answer = 0` are one."""
    names = sorted(names_of(gold) | names_of(answer))
    if not names_of(gold):
        return False
    ratios = []
    for point in _real_points(names):
        try:
            left, right = _value(gold, point, None), _value(answer, point, None)
            if (
                min(abs(left), abs(right)) > SMALLEST
            ):  # an identity holds everywhere: it says nothing
                ratios.append(right / left)
        except (NoValue, ZeroDivisionError):
            continue
        if len(ratios) > POINTS:
            break
    if len(ratios) <= POINTS or not all(_close(each, ratios[0]) for each in ratios):
        return False
    return not positive or (_real(ratios[0]) and _mp.re(ratios[0]) > 0)


def _steps(node: Node) -> bool:
    """Whether a tree is constant over stretches, so that it takes many, distant points."""
    return node.kind in ("floor", "ceiling") or any(_steps(each) for each in node.arguments)


def _mentions(node: Node, kind: str) -> bool:
    stack = [node]
    while stack:
        each = stack.pop()
        if each.kind == kind and len(each.arguments) == 1:
            return True
        stack.extend(each.arguments)
    return False


def _agree(gold: Node, answer: Node, base: int | None) -> bool:
    names = sorted(names_of(gold) | names_of(answer))
    if not names:
        try:
            return _close(_value(gold, {}, base), _value(answer, {}, base))
        except NoValue:
            return False
    needed = 3 * POINTS if _steps(gold) or _steps(answer) else POINTS + len(names)
    for points, real in ((_real_points, True), (_whole_points, True), (_real_points, False)):
        compared = 0
        for point in points(names):
            try:
                expected = _value(gold, point, base)
            except NoValue:
                continue
            if real and not _real(expected):
                continue
            try:
                if not _close(expected, _value(answer, point, base)):
                    return False
            except NoValue:
                return False
            compared += 1
            if compared == min(needed, TRIES // 2):
                return True
    return False


def _real_points(names: list[str]) -> Iterator[Point]:
    source = random.Random(7)
    for count in range(TRIES):
        signs = (1,) if count % 2 == 0 else (1, -1)
        size = (1, 3, 97)[count % 3]
        yield {
            name: source.choice(signs) * _mp.mpf(source.randrange(1, 10**9)) * size / 10**9
            for name in names
        }


def _whole_points(names: list[str]) -> Iterator[Point]:
    source = random.Random(7)
    for count in range(TRIES):
        yield {name: _mp.mpf(source.randrange(1, 4 + count)) for name in names}


def _real(value: Any) -> bool:
    return abs(_mp.im(value)) <= abs(value) * _mp.mpf(10) ** -AGREE


def _close(left: Any, right: Any) -> bool:
    scale = max(abs(left), abs(right), _mp.mpf(10) ** -8)
    return bool(abs(left - right) <= scale * _mp.mpf(10) ** -AGREE)


def _value(node: Node, point: Point, base: int | None) -> Any:
    """The value of a tree. Raises `NoValue`."""
    if node.kind == "number":
        return _mp.mpf(node.value.numerator) / node.value.denominator
    if node.kind == "name":
        return _name(node.name, point)
    values = [_value(each, point, base) for each in node.arguments]
    try:
        found = _operate(node, values, base)
    except (ArithmeticError, ValueError, OverflowError, TypeError) as error:
        raise NoValue(str(error)) from error
    if not _mp.isfinite(found) or (found != 0 and _mp.mag(found) > MOST_BITS):
        raise NoValue("infinite or too large")
    return found


def _name(name: str, point: Point) -> Any:
    if name == "pi":
        return +_mp.pi
    if name == "e":
        return +_mp.e
    return _mp.mpc(0, 1) if name == "i" else point[name]


def _operate(node: Node, values: list[Any], base: int | None) -> Any:
    first, last = values[0], values[-1]
    match node.kind:
        case "add":
            return _mp.fsum(values)
        case "multiply":
            return _mp.fprod(values)
        case "divide":
            return first / last
        case "power":
            return _power(first, last, rational_value(node.arguments[1]))
        case "root":
            degree = rational_value(node.arguments[1])
            return _power(first, 1 / last, 1 / degree if degree else None)
        case "log":
            divisor = _mp.log(last) if len(values) == 2 else _mp.log(base) if base else 1
            return _mp.log(first) / divisor
        case "call":
            return _call(node.name, values)
        case "max" | "min":
            if not all(_real(value) for value in values):
                raise NoValue("an order of complex numbers")
            return (max if node.kind == "max" else min)(_mp.re(value) for value in values)
    return _FUNCTIONS[node.kind](*values)


def _power(base: Any, exponent: Any, ratio: Fraction | None) -> Any:
    """A power; of a negative number with an odd root the real value, as in `\\sqrt[3]{-8}`."""
    if base == 0:
        if _mp.re(exponent) <= 0:
            raise NoValue("zero to a power that is not positive")
        return _mp.mpf(0)
    if abs(exponent) * max(1, abs(_mp.mag(base))) > MOST_BITS:
        raise NoValue("too large a power")
    odd = ratio is not None and ratio.denominator % 2 == 1 and ratio.denominator > 1
    if odd and _real(base) and _mp.re(base) < 0:
        assert ratio is not None
        size = _mp.power(-_mp.re(base), exponent)
        return size if ratio.numerator % 2 == 0 else -size
    return _mp.power(base, exponent)


def _call(name: str, values: list[Any]) -> Any:
    """An unknown function: some smooth function that depends on its name and every argument."""
    source = random.Random(name)
    weights = [_mp.mpf(source.randrange(10**6, 9 * 10**6)) / 10**6 for _ in range(len(values) + 1)]
    return _mp.sin(_mp.fdot(weights, [1, *values])) + weights[0]


def _factorial(value: Any) -> Any:
    _bounded(value)
    return _mp.gamma(value + 1)


def _binomial(top: Any, bottom: Any) -> Any:
    _bounded(top)
    _bounded(bottom)
    return _mp.binomial(top, bottom)


def _bounded(value: Any) -> None:
    if abs(value) > MOST_GAMMA:
        raise NoValue("too large a factorial")


def _exp(value: Any) -> Any:
    if abs(value) > MOST_BITS:
        raise NoValue("too large a power")
    return _mp.exp(value)


def _periodic(function: Callable[[Any], Any]) -> Callable[[Any], Any]:
    """Sines of huge arguments need more digits than there are."""

    def bounded(value: Any) -> Any:
        if abs(value) > 10**9:
            raise NoValue("too large an angle")
        return function(value)

    return bounded


def _floor(value: Any) -> Any:
    if not _real(value):
        raise NoValue("a floor of a complex number")
    nearest = _mp.nint(_mp.re(value))
    return nearest if _close(nearest, value) else _mp.floor(_mp.re(value))


def _ceiling(value: Any) -> Any:
    return -_floor(-value)


_PERIODIC = (
    "sin", "cos", "tan", "cot", "sec", "csc", "sinh", "cosh", "tanh", "coth", "sech", "csch",
)  # fmt: skip
_INVERSES = (
    "arcsin", "arccos", "arctan", "arccot", "arcsec", "arccsc", "arcsinh", "arccosh", "arctanh",
)  # fmt: skip
_FUNCTIONS: dict[str, Callable[..., Any]] = {
    "factorial": _factorial,
    "binomial": _binomial,
    "floor": _floor,
    "ceiling": _ceiling,
    "absolute": abs,
    "exp": _exp,
    "ln": _mp.log,
    "lg": lambda value: _mp.log(value) / _mp.log(10),
    **{name: _periodic(getattr(_mp, name)) for name in _PERIODIC},
    **{name: getattr(_mp, "a" + name.removeprefix("arc")) for name in _INVERSES},
    **{name: getattr(_mp, name) for name in ("asin", "acos", "atan")},
}
