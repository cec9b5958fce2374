"""Generated cases that have a shape, such as tuples and intervals: rewrites and near misses."""

import random
from collections.abc import Callable, Sequence
from typing import NamedTuple

import pytest

from rewards.math_answer import MathVerifier


class Family(NamedTuple):
    """One gold with answers that are right and answers that are wrong."""

    gold: str
    right: list[str]
    wrong: list[str]


def _tuple(rng: random.Random) -> Family:
    x, y = rng.sample(range(-20, 20), 2)
    gold = f"({x}, {y})"
    right = [
        gold,
        f"({x},{y})",
        rf"\left({x}, {y}\right)",
        f"({x}.0, {y})",
        f"(x, y) = ({x}, {y})",
        f"x = {x}, y = {y}",
        rf"\langle {x}, {y} \rangle",
        f"$({x}, {y})$",
    ]
    wrong = [
        f"({y}, {x})",
        f"({x}, {y + 1})",
        f"({x}, {y}, 0)",
        f"[{x}, {y}]",
        f"({x}, {y}]",
        rf"\{{{x}, {y}\}}",
        f"({x + 1}, {y})",
        f"{x}",
        f"({x}, {y}), ({y}, {x})",
        f"{y}, {x}",
        f"({x}, {-y})" if y else "(1)",
        f"x = {y}, y = {x}",
    ]
    return Family(gold, right, wrong)


def _set(rng: random.Random) -> Family:
    values = rng.sample(range(-30, 30), rng.randrange(2, 5))
    shuffled = rng.sample(values, len(values))
    joined = ", ".join(map(str, values))
    right = [
        rf"\{{{joined}\}}",
        rf"\{{{', '.join(map(str, shuffled))}\}}",
        joined,
        rf"\left\{{ {joined} \right\}}",
        ", ".join(map(str, shuffled)),
        rf"x \in \{{{joined}\}}",
        ", ".join(f"x = {value}" for value in shuffled),
    ]
    wrong = [
        rf"\{{{', '.join(map(str, values[1:]))}\}}",
        rf"\{{{joined}, 77\}}",
        f"[{joined}]",
        rf"\{{{', '.join(map(str, [*values[1:], 78]))}\}}",
        str(values[0]),
        rf"{sum(values) + 100}",
        rf"\{{{', '.join(map(str, [values[0] + 100, *values[1:]]))}\}}",
    ]
    return Family(rf"\{{{joined}\}}", right, wrong)


def _interval(rng: random.Random) -> Family:
    low = rng.randrange(-20, 20)
    high = low + rng.randrange(2, 15)
    left, right_end = rng.choice("(["), rng.choice(")]")
    below, above = ("<" if left == "(" else r"\le"), ("<" if right_end == ")" else r"\le")
    other = "[" if left == "(" else "("
    other_end = "]" if right_end == ")" else ")"
    gold = f"{left}{low}, {high}{right_end}"
    right = [
        gold,
        f"{left}{low},{high}{right_end}",
        rf"\left{left}{low}, {high}\right{right_end}",
        f"{low} {below} x {above} {high}",
        rf"x \in {gold}",
        f"{left}{low}.0, {high}{right_end}",
    ]
    wrong = [
        f"{other}{low}, {high}{right_end}",
        f"{left}{low}, {high}{other_end}",
        f"{left}{low}, {high + 1}{right_end}",
        f"{left}{low - 1}, {high}{right_end}",
        rf"{left}{low}, \infty)",
        rf"{gold} \cup [{high + 2}, {high + 3}]",
        f"x {above} {high}",
        rf"\{{{low}, {high}\}}",
        str(low),
        rf"{low} {below} x {above} {high + 1}",
    ]
    return Family(gold, right, wrong)


def _complex(rng: random.Random) -> Family:
    real, imaginary = rng.randrange(1, 20), rng.randrange(2, 20)
    gold = f"{real} + {imaginary}i"
    right = [
        gold,
        f"{imaginary}i + {real}",
        f"{real}+{imaginary}i",
        f"z = {gold}",
        rf"{real} + {imaginary} \cdot i",
        rf"\frac{{{2 * real}+{2 * imaginary}i}}{{2}}",
    ]
    wrong = [
        f"{real} - {imaginary}i",
        f"-{real} + {imaginary}i",
        f"{real + 1} + {imaginary}i",
        f"{real} + {imaginary}",
        f"{real} + {imaginary + 1}i",
        rf"{real} \pm {imaginary}i",
        f"{imaginary} + {real}i" if real != imaginary else "1",
        f"{gold}, {real} - {imaginary}i",
    ]
    return Family(gold, right, wrong)


def _matrix(rng: random.Random) -> Family:
    a, b, c, d = rng.sample(range(-9, 10), 4)
    body = rf"{a} & {b} \\ {c} & {d}"
    gold = rf"\begin{{pmatrix}}{body}\end{{pmatrix}}"
    right = [
        gold,
        gold.replace("pmatrix", "bmatrix"),
        rf"A = {gold}",
        gold.replace(" & ", "&"),
        rf"\left[\begin{{array}}{{cc}}{body}\end{{array}}\right]",
    ]
    wrong = [
        rf"\begin{{pmatrix}}{a} & {c} \\ {b} & {d}\end{{pmatrix}}",
        rf"\begin{{pmatrix}}{a} & {b} \\ {c} & {d + 1}\end{{pmatrix}}",
        rf"\begin{{pmatrix}}{a} & {b}\end{{pmatrix}}",
        gold.replace("pmatrix", "vmatrix"),
        f"({a}, {b}, {c}, {d})",
        f"{a * d - b * c}",
        rf"\begin{{pmatrix}}{body} \\ 0 & 0\end{{pmatrix}}",
    ]
    return Family(gold, right, wrong)


def _line(rng: random.Random) -> Family:
    slope, shift = rng.randrange(2, 9), rng.randrange(1, 9)
    gold = f"y = {slope}x + {shift}"
    right = [
        gold,
        f"y={shift}+{slope}x",
        f"{slope}x+{shift}",
        f"y - {slope}x = {shift}",
        f"{slope}x - y + {shift} = 0",
        f"2y = {2 * slope}x + {2 * shift}",
        f"{slope}x+{shift}=y",
    ]
    wrong = [
        f"y = {slope}x - {shift}",
        f"y = {slope + 1}x + {shift}",
        f"x = {slope}y + {shift}",
        f"y = -{slope}x + {shift}",
        f"z = {slope}x + {shift}",
        f"y > {slope}x + {shift}",
        f"y = {slope}x",
        f"{slope}x + {shift} = 0",
        f"y = {slope}x + {shift}, y = 0",
    ]
    return Family(gold, right, wrong)


Generate = Callable[
    [Sequence[tuple[Callable[[random.Random], Family], int]]], list[tuple[str, str, bool]]
]
FAMILIES: list[tuple[Callable[[random.Random], Family], int]] = [
    (_tuple, 30),
    (_set, 30),
    (_interval, 30),
    (_complex, 20),
    (_matrix, 20),
    (_line, 20),
]


def test_there_are_enough(generate: Generate) -> None:
    cases = generate(FAMILIES)
    assert len(cases) > 2000 and len(set(cases)) > 1800


@pytest.mark.parametrize("right", [True, False])
def test_generated_cases(verifier: MathVerifier, generate: Generate, right: bool) -> None:
    failed = [
        (gold, answer)
        for gold, answer, expected in generate(FAMILIES)
        if expected is right
        and verifier.verify(rf"So $\boxed{{{answer}}}$.", gold).total != float(right)
    ]
    assert failed == []
