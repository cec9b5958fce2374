"""Decides exactly whether two expressions are one rational function, without any library.

Both are evaluated at a random point modulo two random primes (Schwartz and Zippel): polynomials of
degree d that differ agree there with a probability below d / 2^127. The primes are drawn anew in
every process: with known ones, `x + p` would pass for `x`, and `x^p` too.
"""

import random
import secrets
from collections.abc import Iterator
from fractions import Fraction
from itertools import islice

from rewards.mathematics.expression import Node

_TRANSCENDENTAL = ("pi", "e")
MOST_EXPONENT = 10**400


def _primes() -> Iterator[int]:
    """Random primes of 128 bits; composite with a probability below 4^-20."""
    while True:
        found = secrets.randbits(127) | 1 << 127 | 1
        if all(found % small for small in (3, 5, 7, 11, 13, 17, 19)) and _prime(found):
            yield found


def _prime(candidate: int) -> bool:
    """Miller and Rabin's test."""
    odd, twos = candidate - 1, 0
    while odd % 2 == 0:
        odd, twos = odd // 2, twos + 1
    for _ in range(20):
        power = pow(secrets.randbelow(candidate - 3) + 2, odd, candidate)
        squares = [pow(power, 2**count, candidate) for count in range(twos)]
        if power != 1 and candidate - 1 not in squares:
            return False
    return True


_PRIMES = tuple(islice(_primes(), 2))


class _Undefined(Exception):
    """A division by zero: the text names no value."""


class _Opaque(Exception):
    """A part that is no rational function."""


def same_rational(left: Node, right: Node) -> bool | None:
    """Whether they are equal; None if one of them is no rational function of its variables.

    pi, or e, is one more variable: it is transcendental.
    """
    try:
        names = _names(left) | _names(right)
        if "i" in names or names.issuperset(_TRANSCENDENTAL):
            return None
        return all(_residue(left, prime) == _residue(right, prime) for prime in _PRIMES)
    except _Undefined:
        return False
    except _Opaque:
        return None


def names_of(node: Node) -> set[str]:
    """Variables of a tree, without pi, e and i."""
    return _names(node) - {"pi", "e", "i"}


def rational_value(node: Node) -> Fraction | None:
    """The value of a number, a sign and a ratio of such, else None."""
    if node.kind == "number":
        return node.value
    if node.kind not in ("multiply", "divide"):
        return None
    value = Fraction(1)
    for place, each in enumerate(node.arguments):
        factor = rational_value(each)
        if factor is None or (place and node.kind == "divide" and not factor):
            return None
        value = value / factor if place and node.kind == "divide" else value * factor
    return value


def _names(node: Node) -> set[str]:
    found: set[str] = set()
    stack = [node]
    while stack:
        each = stack.pop()
        if each.kind == "name":
            found.add(each.name)
        stack.extend(each.arguments)
    return found


def _residue(node: Node, prime: int) -> int:
    if node.kind == "number":
        return node.value.numerator * _inverse(node.value.denominator, prime) % prime
    if node.kind == "name":
        return random.Random(f"{node.name} {prime}").randrange(prime)
    if node.kind == "power":
        return _power(node, prime)
    if node.kind not in ("add", "multiply", "divide"):
        raise _Opaque
    values = [_residue(each, prime) for each in node.arguments]
    if node.kind == "add":
        return sum(values) % prime
    if node.kind == "divide":
        return values[0] * _inverse(values[1], prime) % prime
    product = 1
    for value in values:
        product = product * value % prime
    return product


def _power(node: Node, prime: int) -> int:
    exponent = rational_value(node.arguments[1])
    if exponent is None or exponent.denominator != 1 or abs(exponent) > MOST_EXPONENT:
        raise _Opaque
    base = _residue(node.arguments[0], prime)
    if base == 0 and exponent <= 0:
        raise _Undefined
    return pow(base, int(exponent), prime)


def _inverse(value: int, prime: int) -> int:
    if value % prime == 0:
        raise _Undefined
    return pow(value, -1, prime)
