"""Thousands of generated cases: rewrites that keep the value, and near misses."""

import random
from collections.abc import Callable, Sequence
from fractions import Fraction
from typing import NamedTuple

import pytest

from rewards.math_answer import MathVerifier


class Family(NamedTuple):
    """One gold with answers that are right and answers that are wrong."""

    gold: str
    right: list[str]
    wrong: list[str]


def _integer(rng: random.Random) -> Family:
    value = rng.choice([rng.randrange(2, 99), rng.randrange(100, 10**9)]) * rng.choice([1, 1, -1])
    digits = str(value)
    grouped = f"{value:,}"
    right = [
        digits,
        grouped,
        grouped.replace(",", "{,}"),
        grouped.replace(",", r"\,"),
        f"{digits}.0",
        f"{digits}.",
        f"${digits}$",
        f"x = {digits}",
        f"{digits} \\text{{ cm}}",
        f"({digits})",
        f"{digits} apples",
        f"+{digits}" if value > 0 else f"- {digits[1:]}",
        f" {digits}.00 ",
        rf"\text{{Answer: }}{digits}",
        f"n={digits}",
    ]
    swapped = digits[:-2] + digits[-1] + digits[-2] if len(digits.lstrip("-")) > 1 else digits + "0"
    last = digits[:-1] + str((int(digits[-1]) + rng.randrange(1, 10)) % 10)
    wrong = [
        str(value + 1),
        str(value - 1),
        str(-value),
        f"1/{value}",
        digits + "0",
        f"{digits}.5",
        f"{digits[:-1]}.{digits[-1]}",
        last,
        f"{digits}.000001",
        f"{digits}, {value + 1}",
        f"{digits} \\text{{ or }} {value + 1}",
        rf"\pm {digits}",
        f"{value - 1} + 1",
        f"{2 * value}/2",
        f"{value} = {value + 1}",
        f"{value + 1} = {value}",
        rf"\{{{value}, 0\}}",
        f"[{value - 1}, {value + 1}]",
        f"x > {value - 1}",
        f"{value}x",
        f"{value}^2",
        rf"\frac{{{value * 3}}}{{3}}",
        rf"{value} \approx {value}.1",
        rf"{value}\sqrt{{2}}",
        f"{value} million",
        f"({value}, {value})",
        rf"{value}\pi",
        f"{value}i",
    ]
    if swapped != digits:
        wrong.append(swapped)
    return Family(digits, right, wrong)


def _decimal(rng: random.Random) -> Family:
    value = Fraction(rng.randrange(101, 99999), 10 ** rng.randrange(1, 4))
    if value.denominator == 1:
        value += Fraction(1, 4)
    text = format(float(value), ".10f").rstrip("0")
    right = [
        text,
        text + "0",
        f"{value}",
        rf"\frac{{{value.numerator}}}{{{value.denominator}}}",
        rf"\$ {text}",
        f"{text} \\text{{ m}}",
        f"x={text}",
        rf"\dfrac{{{3 * value.numerator}}}{{{3 * value.denominator}}}",
    ]
    point = Fraction(1, 10 ** len(text.partition(".")[2]))
    wrong = [
        str(float(value + point)),
        str(float(value - point)),
        str(float(value * 10)),
        str(float(value / 10)),
        f"-{text}",
        f"{text}1",
        str(float(1 / value)),
        f"{text}\\pi",
        f"{value.denominator}/{value.numerator}",
        f"{text}, 1",
        rf"\pm {text}",
    ]
    return Family(text, right, wrong)


def _fraction(rng: random.Random) -> Family:
    value = Fraction(rng.randrange(1, 60), rng.choice([3, 7, 9, 11, 13, 17, 19]))
    if value.denominator == 1:
        value += Fraction(1, 3)
    top, bottom = value.numerator, value.denominator
    gold = rf"\frac{{{top}}}{{{bottom}}}"
    whole, rest = divmod(top, bottom)
    right = [
        gold,
        f"{top}/{bottom}",
        rf"\dfrac{{{top}}}{{{bottom}}}",
        rf"\tfrac{{{top}}}{{{bottom}}}",
        rf"\frac{{{2 * top}}}{{{2 * bottom}}}",
        rf"\frac{{-{top}}}{{-{bottom}}}",
        rf"\left(\frac{{{top}}}{{{bottom}}}\right)",
        f"x = {top}/{bottom}",
        f"{top} / {bottom}",
    ]
    if whole:
        right += [rf"{whole}\frac{{{rest}}}{{{bottom}}}", f"{whole} {rest}/{bottom}"]
    wrong = [
        rf"\frac{{{bottom}}}{{{top}}}",
        f"-{top}/{bottom}",
        f"{top + 1}/{bottom}",
        f"{top}/{bottom + 1}",
        f"{float(value):.2f}",
        f"{float(value):.4f}",
        f"{top},{bottom}",
        rf"\frac{{{top}}}{{{bottom}}}, 1",
        f"{top}{bottom}",
        rf"\pm{gold}",
        rf"{gold}x",
        rf"{gold} \approx {float(value):.3f}",
        rf"{gold} = {float(value):.3f}",
        rf"\frac{{{top - 1}}}{{{bottom}}} + \frac{{1}}{{{bottom}}}",
    ]
    return Family(gold, right, wrong)


def _root(rng: random.Random) -> Family:
    factor, inside = rng.randrange(2, 12), rng.choice([2, 3, 5, 6, 7, 10, 11])
    gold = rf"{factor}\sqrt{{{inside}}}"
    right = [
        gold,
        rf"{factor}\cdot\sqrt{{{inside}}}",
        rf"\sqrt{{{factor**2 * inside}}}",
        rf"\sqrt{{{inside}}}\cdot {factor}",
        rf"\frac{{{factor * inside}}}{{\sqrt{{{inside}}}}}",
        f"{factor}*sqrt({inside})",
        rf"{factor} \cdot {inside}^{{1/2}}",
        rf"x = {gold}",
        rf"{factor + 1}\sqrt{{{inside}}} - \sqrt{{{inside}}}",
        rf"{gold} \text{{ cm}}",
        f"{factor * inside**0.5:.8f}",
    ]
    wrong = [
        rf"-{gold}",
        rf"{factor + 1}\sqrt{{{inside}}}",
        rf"{factor}\sqrt{{{inside + 1}}}",
        rf"{inside}\sqrt{{{factor}}}" if factor != inside else "0",
        rf"\sqrt{{{factor * inside}}}",
        rf"\pm {gold}",
        f"{factor * inside**0.5:.2f}",
        rf"\frac{{1}}{{{gold}}}",
        rf"{gold}, -{gold}",
        rf"{gold} \approx {factor * inside**0.5:.2f}",
        rf"{gold}x",
        f"{factor * inside}",
        f"{factor * inside**0.5 + 1e-4:.8f}",
    ]
    return Family(gold, right, wrong)


def _pi(rng: random.Random) -> Family:
    top, bottom = rng.randrange(1, 30), rng.choice([1, 2, 3, 4, 6, 7])
    value = Fraction(top, bottom)
    gold = rf"\frac{{{top}\pi}}{{{bottom}}}"
    right = [
        rf"\frac{{{top}}}{{{bottom}}}\pi",
        rf"{top}\pi/{bottom}",
        rf"\pi \cdot {top}/{bottom}",
        rf"\dfrac{{{2 * top}\pi}}{{{2 * bottom}}}",
        rf"\theta = {gold}",
        gold,
        rf"\frac{{\pi}}{{{bottom}}} \cdot {top}",
    ]
    wrong = [
        rf"\frac{{{top + 1}\pi}}{{{bottom}}}",
        rf"-{gold}",
        f"{float(value) * 3.14:.2f}",
        rf"\frac{{{bottom}}}{{{top}\pi}}",
        rf"\frac{{{top}}}{{{bottom}\pi}}",
        rf"\pm {gold}",
        f"{top}/{bottom}",
        rf"{gold} + 2\pi",
        rf"{gold} + 2\pi k",
        rf"{gold}, \pi^2",
    ]
    return Family(gold, right, wrong)


def _quadratic(rng: random.Random) -> Family:
    a, b, c = rng.randrange(2, 9), rng.randrange(1, 12), rng.randrange(1, 12)
    gold = f"{a}x^2+{b}x+{c}"
    right = [
        gold,
        f"{c}+{b}x+{a}x^2",
        f"{b}x + {c} + {a}x^{{2}}",
        f"x({a}x+{b})+{c}",
        rf"{a} \cdot x^2 + {b} \cdot x + {c}",
        f"{a}*x^2+{b}*x+{c}",
        f"-(-{a}x^2-{b}x-{c})",
        f"y = {gold}",
        f"f(x) = {gold}",
        rf"\frac{{{2 * a}x^2+{2 * b}x+{2 * c}}}{{2}}",
    ]
    wrong = [
        f"{a}x^2+{b}x-{c}",
        f"{a}x^2-{b}x+{c}",
        f"-({gold})",
        f"{a}x^2+{b}x+{c + 1}",
        f"{a + 1}x^2+{b}x+{c}",
        f"{a}y^2+{b}y+{c}",
        f"{a}x^3+{b}x+{c}",
        f"{a}x^2+{b}x",
        f"{gold}, x",
        f"{gold} = 0",
        rf"\frac{{1}}{{{gold}}}",
        f"{a}x^2+{b}+{c}x" if b != c else "1",
        f"{gold} + 0.0001",
        rf"{gold} \text{{ or }} x",
        f"{a * 4 + b * 2 + c}",
    ]
    return Family(gold, right, wrong)


def _percent(rng: random.Random) -> Family:
    value = rng.randrange(2, 99)
    right = [
        rf"{value}\%",
        f"{value}%",
        str(value),
        f"{value / 100}",
        rf"\frac{{{value}}}{{100}}",
        rf"{value} \text{{ percent}}",
        rf"x = {value}\%",
        rf"{value}.0\%",
    ]
    wrong = [
        rf"{value + 1}\%",
        rf"{value / 10}\%",
        rf"{value}0\%",
        rf"-{value}\%",
        rf"{value}\% \text{{ or }} 1\%",
        rf"\pm {value}\%",
        f"{value / 1000}",
    ]
    return Family(rf"{value}\%", right, wrong)


def _measure(rng: random.Random) -> Family:
    value = rng.randrange(2, 400)
    right = [
        rf"{value} \text{{ cm}}^2",
        str(value),
        rf"{value}\,\text{{cm}}^2",
        f"{value} cm^2",
        rf"{value} \mathrm{{~cm}}^{{2}}",
        rf"{value} \text{{ square centimeters}}",
        rf"A = {value} \text{{ cm}}^2",
    ]
    wrong = [
        rf"{value} \text{{ m}}^2",
        rf"{value} \text{{ cm}}^3",
        rf"{value} \text{{ cm}}",
        rf"{value + 1} \text{{ cm}}^2",
        f"{value}0",
        rf"{value} \text{{ km}}^2",
    ]
    return Family(rf"{value} \text{{ cm}}^2", right, wrong)


def _words(rng: random.Random) -> Family:
    days = ["Monday", "Tuesday", "Wednesday", "Thursday", "Friday", "Saturday", "Sunday"]
    day, other = rng.sample(days, 2)
    right = [
        day,
        rf"\text{{{day}}}",
        day.lower(),
        rf"\text{{{day.upper()}}}",
        rf"\textbf{{{day}}}",
        rf"\text{{ {day} }}",
        rf"\mathrm{{{day}}}",
        f"{day}.",
    ]
    wrong = [
        other,
        rf"\text{{{day} or {other}}}",
        rf"\text{{not {day}}}",
        f"{day}, {other}",
        day[:3],
        rf"\text{{{day}}}, \text{{{other}}}",
        f"{day} {other}",
        f"{day} 2",
    ]
    return Family(rf"\text{{{day}}}", right, wrong)


def _letter(rng: random.Random) -> Family:
    letter, other = rng.sample("ABCDE", 2)
    right = [
        letter,
        f"({letter})",
        rf"\text{{{letter}}}",
        rf"\textbf{{({letter})}}",
        f"{letter}.",
        rf"\mathrm{{{letter}}}",
        f"Option {letter}",
    ]
    wrong = [
        other,
        f"({other})",
        f"{letter}, {other}",
        f"{letter}{other}",
        "ABCDE",
        rf"{letter} \text{{ or }} {other}",
        f"not {letter}",
        rf"\{{{letter}, {other}\}}",
    ]
    return Family(letter, right, wrong)


Generate = Callable[
    [Sequence[tuple[Callable[[random.Random], Family], int]]], list[tuple[str, str, bool]]
]
FAMILIES: list[tuple[Callable[[random.Random], Family], int]] = [
    (_integer, 40),
    (_decimal, 25),
    (_fraction, 30),
    (_root, 20),
    (_pi, 20),
    (_quadratic, 20),
    (_percent, 15),
    (_measure, 15),
    (_words, 12),
    (_letter, 12),
]


def test_there_are_thousands(generate: Generate) -> None:
    cases = generate(FAMILIES)
    assert len(cases) > 3500 and len(set(cases)) > 3000


@pytest.mark.parametrize("right", [True, False])
def test_generated_cases(verifier: MathVerifier, generate: Generate, right: bool) -> None:
    failed = [
        (gold, answer)
        for gold, answer, expected in generate(FAMILIES)
        if expected is right
        and verifier.verify(rf"So $\boxed{{{answer}}}$.", gold).total != float(right)
    ]
    assert failed == []
