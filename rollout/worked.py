r"""Worked solutions of procedural tasks: every step is one that a small model can learn by heart.

A writer turns what the generator says of an item into steps and ends with `\boxed{answer}`. Numbers
are taken digit by digit from the right and carries and borrows are written out, so a policy that
shows its steps is far more often right than one that guesses.
"""

import re
from collections.abc import Callable, Mapping
from typing import Any

from reasoning_gym.arithmetic.leg_counting import ANIMALS

Metadata = Mapping[str, Any]  # an item's `metadata`, as its generator writes it


def boxed(answer: str) -> str:
    """The terse solution: the answer and nothing else."""
    return rf"\boxed{{{answer}}}"


def sum_steps(left: int, right: int) -> list[str]:
    """Steps of `left + right`, any signs. 57 + 87: `57+87: 7+7=14 5+8+1=14`."""
    big, small = sorted((abs(left), abs(right)), reverse=True)
    if (left < 0) == (right < 0):
        return [f"{abs(left)}+{abs(right)}:", *_add_columns(abs(left), abs(right))]
    return [f"{big}-{small}:", *_subtract_columns(big, small)]


def product_steps(left: int, right: int) -> list[str]:
    """Steps of `left * right`, neither negative. 45 * 3: `45*3: 5*3=15 4*3=12 12+1=13`."""
    if max(left, right) < 10:
        return [f"{left}*{right}={left * right}"]
    many, few = (left, right) if left >= right else (right, left)
    steps, total = [f"{many}*{few}:"], 0
    for place, digit in enumerate(reversed(_digits(few))):
        part = many * digit * 10**place
        steps += _multiply_columns(many, digit)
        if few >= 10:
            steps.append(f"{part}")
        if place:
            steps += sum_steps(total, part)
        total += part
    return steps


def chain_sum(metadata: Metadata) -> str:
    """`57 - 87` becomes `87-57: 7-7=0 8-5=3 \\boxed{-30}`."""
    first, *rest = metadata["expression"].split(" ")
    steps, total = [], int(first)
    for operator, term in zip(rest[::2], rest[1::2], strict=True):
        signed = int(term) if operator == "+" else -int(term)
        steps += sum_steps(total, signed)
        total += signed
    return _solution(steps, total)


def products(metadata: Metadata) -> str:
    """`5 * 9 * 3` becomes `5*9=45 45*3: 5*3=15 4*3=12 12+1=13 \\boxed{135}`."""
    factors = [int(factor) for factor in metadata["expression"].split(" * ")]
    steps, total = [], factors[0]
    for factor in factors[1:]:
        steps += product_steps(abs(total), abs(factor))
        total *= factor
    return _solution(steps, total)


def leg_counting(metadata: Metadata) -> str:
    """`3 dogs, 2 ants` becomes `dog 3*4=12 ant 2*6=12 12+12: 2+2=4 1+1=2 \\boxed{24}`."""
    steps, total = [], 0
    for place, (animal, count) in enumerate(metadata["animals"].items()):
        legs = count * ANIMALS[animal]
        steps.append(f"{animal} {count}*{ANIMALS[animal]}={legs}")
        if place:
            steps += sum_steps(total, legs)
        total += legs
    return _solution(steps, total)


def simple_equations(metadata: Metadata) -> str:
    """`3*h + 5 = 32` becomes `3*h=32-5=27 h=27/3=9 \\boxed{9}`."""
    left, right = metadata["equation"].split(" = ")
    name, value = metadata["variable"], int(right)
    slope, offset = _line(left, name)
    sign = 1
    if (
        slope < 0
    ):  # offset - slope x = value: x moves to the other side, so that no step divides by a negative
        sign, slope = -1, -slope
    term = name if slope == 1 else f"{slope}*{name}"
    moved = sign * (value - offset)
    source = value, -offset
    if sign < 0:
        source = offset, -value
    steps = []
    if offset:
        head = f"{source[0]}{source[1]:+d}" if source[1] else f"{source[0]}"
        steps.append(f"{term}={head}" + (f"={moved}" if source[1] else ""))
    elif sign < 0:
        steps.append(f"{term}={moved}")
    if slope != 1:
        steps.append(f"{name}={moved}/{slope}={moved // slope}")
    return _solution(steps, moved // slope)


def gcd(metadata: Metadata) -> str:
    """Euclid: `48, 18` becomes `48=2*18+12 18=1*12+6 12=2*6+0 \\boxed{6}`."""
    total, *rest = metadata["numbers"]
    steps = []
    for number in rest:
        big, small = max(total, number), min(total, number)
        while small:
            steps.append(f"{big}={big // small}*{small}+{big % small}")
            big, small = small, big % small
        total = big
    return _solution(steps, total)


WRITERS: dict[str, Callable[[Metadata], str]] = {
    "chain_sum": chain_sum,
    "products": products,
    "leg_counting": leg_counting,
    "simple_equations": simple_equations,
    "gcd": gcd,
}
"""By generator name."""


def _solution(steps: list[str], answer: int) -> str:
    return " ".join([*steps, boxed(str(answer))])


def _digits(number: int) -> list[int]:
    return [int(digit) for digit in str(number)]


def _columns(left: int, right: int) -> list[tuple[int, int]]:
    width = max(len(str(left)), len(str(right)))
    pairs = zip(str(left).zfill(width), str(right).zfill(width), strict=True)
    return [(int(a), int(b)) for a, b in pairs][::-1]


def _add_columns(left: int, right: int) -> list[str]:
    steps, carry = [], 0
    for a, b in _columns(left, right):
        total = a + b + carry
        steps.append(f"{a}+{b}" + ("+1" if carry else "") + f"={total}")
        carry = total // 10
    return steps


def _subtract_columns(left: int, right: int) -> list[str]:
    """Columns of `left - right >= 0`; a column that must borrow writes its digit as 10 more."""
    steps, borrow = [], 0
    for a, b in _columns(left, right):
        top = a + 10 if a - b - borrow < 0 else a
        digit = top - b - borrow
        steps.append(f"{top}-{b}" + ("-1" if borrow else "") + f"={digit}")
        borrow = int(top > a)
    return steps


def _multiply_columns(many: int, digit: int) -> list[str]:
    steps, carry = [], 0
    for a in reversed(_digits(many)):
        product = a * digit
        steps.append(f"{a}*{digit}={product}")
        if carry:
            steps.append(f"{product}+{carry}={product + carry}")
        carry = (product + carry) // 10
    return steps


def _line(expression: str, name: str) -> tuple[int, int]:
    """Slope and offset of an expression such as `5 - 3*h`, linear in the variable `name`."""
    slope = offset = 0
    for term in re.findall(r"[+-]?[^+-]+", expression.replace(" ", "")):
        if not term.endswith(name):
            offset += int(term)
            continue
        factor = term.removesuffix(name).removesuffix("*")
        slope += int(factor + "1" if factor in ("", "+", "-") else factor)
    return slope, offset
