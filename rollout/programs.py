"""Tiny programs to write, with unit tests: a code family made by rule, without any file.

A question tells an expression step by step. Careful programs put parentheses where a later step
needs them; careless ones write the steps down as they are read, as many in a base model's corpus
do. The tests tell the two apart.
"""

import random
from collections.abc import Sequence
from dataclasses import dataclass

NUMBERS = range(2, 10)  # that a step may name
ARGUMENTS = (*range(-9, -1), *range(2, 10))  # of the tests; at 0 and 1 wrong programs may be right
TESTS = 4

VERBS = {
    "add": "add {}",
    "subtract": "subtract {}",
    "multiply": "multiply by {}",
    "reverse": "subtract it from {}",
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Program:
    """One program to write."""

    question: str  # "Write f(a, b) in Python: take a, add 3, multiply by b."
    careful: str  # passes every test
    careless: str  # the same without parentheses
    tests: tuple[str, ...]  # "assert f(4, 7) == 49"


@dataclass(frozen=True, slots=True)
class _Step:
    """What is done to the value so far."""

    verb: str  # a key of VERBS
    operand: str  # the other argument or a number


def make_program(rng: random.Random, steps: int) -> Program:
    """A program of 1 to 9 steps, drawn by `rng`. No operand comes twice, so that none cancels."""
    start, other = rng.sample("ab", 2)
    operands = rng.sample([other, *map(str, NUMBERS)], steps)
    plan = [_Step(rng.choice([*VERBS]), operand) for operand in operands]
    told = ", ".join(VERBS[step.verb].format(step.operand) for step in plan)
    pairs = [(a, b) for a in ARGUMENTS for b in ARGUMENTS if a != b]
    return Program(
        question=f"Write f(a, b) in Python: take {start}, {told}.",
        careful=_function(_expression(start, plan, parentheses=True)),
        careless=_function(_expression(start, plan, parentheses=False)),
        tests=tuple(
            f"assert f({a}, {b}) == {_value(start, plan, {'a': a, 'b': b})}"
            for a, b in rng.sample(pairs, TESTS)
        ),
    )


def _expression(start: str, plan: Sequence[_Step], *, parentheses: bool) -> str:
    text, is_sum = start, False
    for step in plan:
        if parentheses and is_sum and step.verb in ("multiply", "reverse"):
            text = f"({text})"
        match step.verb:
            case "add":
                text = f"{text} + {step.operand}"
            case "subtract":
                text = f"{text} - {step.operand}"
            case "multiply":
                text = f"{text} * {step.operand}"
            case "reverse":
                text = f"{step.operand} - {text}"
        is_sum = step.verb != "multiply"
    return text


def _value(start: str, plan: Sequence[_Step], arguments: dict[str, int]) -> int:
    value = arguments[start]
    for step in plan:
        named = step.operand in arguments
        operand = arguments[step.operand] if named else int(step.operand)
        match step.verb:
            case "add":
                value += operand
            case "subtract":
                value -= operand
            case "multiply":
                value *= operand
            case "reverse":
                value = operand - value
    return value


def _function(expression: str) -> str:
    return f"def f(a, b):\n    return {expression}"
