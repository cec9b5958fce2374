from math import lcm

import pytest

from rewards.mathematics.expression import read_expression
from rewards.mathematics.values import _PRIMES, _prime, same_rational


@pytest.mark.parametrize(
    ("left", "right", "same"),
    [
        ("x^2+2x+1", "(x+1)^2", True),
        ("x+1", "x", False),
        (r"\frac{1}{\frac{1}{x}}", "x", True),
        ("x", r"x+\frac{0}{x-x}", False),
        ("x", r"\frac{x}{\frac{1}{0}}", False),
        ("a_1", "a_2", False),
        ("xy", "y x", True),
        ("x", "x^{0/0}", None),
        ("f(x)", "fx", None),
        ("i^2", "-1", None),
    ],
)
def test_same_rational(left: str, right: str, same: bool | None) -> None:
    assert same_rational(read_expression(left), read_expression(right)) is same


def test_primes_that_anybody_can_know_do_not_help() -> None:
    known = (2**127 - 1, 2**521 - 1)
    zero_there = known[0] * known[1]
    one_there = lcm(known[0] - 1, known[1] - 1) + 1
    gold = read_expression("x+7")
    assert same_rational(gold, read_expression(f"x+7+{zero_there}")) is False
    assert same_rational(gold, read_expression(f"x^{{{one_there}}}+7")) is False
    assert not set(_PRIMES) & set(known)


def test_the_primes_are_large_and_prime() -> None:
    assert all(2**127 < prime < 2**128 for prime in _PRIMES) and len(set(_PRIMES)) == 2
    assert [number for number in range(5, 100, 2) if _prime(number)] == [
        number for number in range(5, 100, 2) if all(number % small for small in range(2, number))
    ]
    assert not _prime(561) and not _prime(2**127 + 1)
