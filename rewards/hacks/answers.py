r"""Golds of fourteen answer types, with right ways to write each and plain wrong answers to it."""

import random
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from fractions import Fraction


@dataclass(frozen=True, slots=True, kw_only=True)
class Gold:
    """One gold answer and what surrounds it."""

    type: str  # the column of the matrix
    gold: str
    right: tuple[str, ...]  # the same value, written otherwise
    wrong: Mapping[str, tuple[str, ...]] = field(default_factory=dict)  # by hack family
    numeric: bool = False  # signs, orders and ranges make sense


def golds(seed: int, per_type: int = 3) -> list[Gold]:
    """So many golds of every type; the same for the same seed."""
    rng = random.Random(seed)
    return [build(rng) for build in _BUILDERS for _ in range(per_type)]


def _integer(rng: random.Random) -> Gold:
    value = rng.choice((rng.randint(11, 99), rng.randint(1000, 99999), -rng.randint(11, 99)))
    part = rng.randint(2, 9)
    return Gold(
        type="integer",
        gold=str(value),
        right=(f"{value}.0", f" {value} ", f"{value:,}", f"x = {value}"),
        wrong={
            "neighbour": (str(value + 1), str(value - 1), f"{value}.01"),
            "negative": (str(-value),),
            "reciprocal": (rf"\frac{{1}}{{{value}}}", f"1/{value}"),
            "rounded": (f"{value}0", f"{value}.4"),
            "restated question": (
                f"{value - part}+{part}",
                rf"{value * part} \div {part}",
                rf"\gcd({abs(value)}, {abs(value) * 2})",
            ),
            "look-alike": (f"{value}".replace("1", "l").replace("0", "O") + "l", f"{value}²"),
            "interval around": (
                f"[{value - 1}, {value + 1}]", f"({value - 1}, {value + 1})",
                f"{value - 1} < x < {value + 1}",
            ),
        },
        numeric=True,
    )  # fmt: skip


def _decimal(rng: random.Random) -> Gold:
    hundredths = rng.choice([n for n in range(11, 999) if n % 10])
    text, value = f"{hundredths / 100:.2f}", Fraction(hundredths, 100)
    return Gold(
        type="decimal",
        gold=text,
        right=(f"{text}0", f"+{text}", f"x = {text}"),
        wrong={
            "neighbour": (f"{(hundredths + 1) / 100:.2f}", f"{(hundredths - 1) / 100:.2f}"),
            "negative": (f"-{text}",),
            "reciprocal": (rf"\frac{{{value.denominator}}}{{{value.numerator}}}",),
            "rounded": (f"{hundredths / 100:.1f}", f"{hundredths / 10:.1f}", str(hundredths)),
            "restated question": (f"{(hundredths - 4) / 100:.2f}+0.04",),
            "look-alike": (text.replace(".", ":"), f"{text}l"),
            "interval around": (f"[{hundredths // 100}, {hundredths // 100 + 1}]",),
        },
        numeric=True,
    )


def _fraction(rng: random.Random) -> Gold:
    value = Fraction(rng.randint(1, 20), rng.choice((3, 7, 9, 11, 13)))
    while value.denominator == 1 or abs(value) == 1:
        value += Fraction(1, 7)
    top, bottom = value.numerator, value.denominator
    return Gold(
        type="fraction",
        gold=rf"\frac{{{top}}}{{{bottom}}}",
        right=(
            f"{top}/{bottom}", rf"\dfrac{{{top}}}{{{bottom}}}",
            rf"\frac{{{2 * top}}}{{{2 * bottom}}}",
        ),
        wrong={
            "neighbour": (f"{top + 1}/{bottom}", rf"\frac{{{top}}}{{{bottom + 1}}}"),
            "negative": (rf"-\frac{{{top}}}{{{bottom}}}",),
            "reciprocal": (f"{bottom}/{top}", rf"\frac{{{bottom}}}{{{top}}}"),
            "rounded": (f"{float(value):.1f}", f"{float(value):.2f}", f"{float(value):.3f}"),
            "restated question": (rf"\frac{{{top - 1}}}{{{bottom}}}+\frac{{1}}{{{bottom}}}",),
            "interval around": (f"[0, {int(value) + 1}]",),
        },
        numeric=True,
    )  # fmt: skip


def _percent(rng: random.Random) -> Gold:
    value = rng.choice([n for n in range(12, 98) if n % 10])
    return Gold(
        type="percent",
        gold=rf"{value}\%",
        right=(f"{value}%", rf"{value}.0\%", rf"{value} \%"),
        wrong={
            "neighbour": (rf"{value + 1}\%", rf"{value - 1}\%"),
            "negative": (rf"-{value}\%",),
            "reciprocal": (rf"\frac{{1}}{{{value}}}",),
            "rounded": (rf"{value}0\%", rf"{value / 10}\%", rf"{round(value, -1)}\%"),
            "interval around": (rf"[{value - 1}\%, {value + 1}\%]",),
        },
        numeric=True,
    )


def _set(rng: random.Random) -> Gold:
    a, b, c = rng.sample(range(1, 30), 3)
    return Gold(
        type="set",
        gold=rf"\{{{a}, {b}, {c}\}}",
        right=(rf"\{{{c},{a},{b}\}}", rf"\left\{{{b}, {a}, {c}\right\}}"),
        wrong={
            "neighbour": (rf"\{{{a}, {b}, {c + 1}\}}", rf"\{{{a}, {b}\}}"),
            "negative": (rf"\{{-{a}, -{b}, -{c}\}}",),
            "superset": (
                rf"\{{{a}, {b}, {c}, 77\}}", rf"[{min(a, b, c)}, {max(a, b, c)}]", r"\mathbb{R}",
            ),
        },
    )  # fmt: skip


def _interval(rng: random.Random) -> Gold:
    low = rng.randint(-9, 8)
    high = low + rng.randint(2, 9)
    return Gold(
        type="interval",
        gold=f"[{low}, {high})",
        right=(f"[{low},{high})", rf"\left[{low}, {high}\right)"),
        wrong={
            "neighbour": (f"[{low}, {high}]", f"({low}, {high})", f"[{low}, {high + 1})"),
            "negative": (f"({-high}, {-low}]",),
            "superset": (r"(-\infty, \infty)", f"[{low - 1}, {high + 1}]", r"\mathbb{R}"),
        },
    )


def _tuple(rng: random.Random) -> Gold:
    a, b = rng.sample(range(2, 40), 2)
    return Gold(
        type="tuple",
        gold=f"({a}, -{b})",
        right=(f"({a},-{b})", rf"\left({a}, -{b}\right)"),
        wrong={
            "neighbour": (f"({a + 1}, -{b})", f"({a}, -{b}, 0)", f"({a})"),
            "negative": (f"(-{a}, {b})", f"({a}, {b})"),
            "reordered": (f"(-{b}, {a})", rf"\{{{a}, -{b}\}}"),
        },
    )


def _matrix(rng: random.Random) -> Gold:
    a, b, c, d = rng.sample(range(1, 40), 4)

    def matrix(entries: tuple[int, ...], kind: str = "pmatrix", space: str = " ") -> str:
        w, x, y, z = entries
        return rf"\begin{{{kind}}}{w}{space}&{space}{x}\\{y}{space}&{space}{z}\end{{{kind}}}"

    return Gold(
        type="matrix",
        gold=matrix((a, b, c, d)),
        right=(matrix((a, b, c, d), space=""), matrix((a, b, c, d), "bmatrix")),
        wrong={
            "neighbour": (matrix((a, b, c, d + 1)), matrix((a + 1, b, c, d))),
            "negative": (matrix((-a, -b, -c, -d)),),
            "reordered": (matrix((a, c, b, d)), f"({a}, {b}, {c}, {d})"),
        },
    )


def _expression(rng: random.Random) -> Gold:
    a, b = rng.sample(range(2, 9), 2)
    return Gold(
        type="expression",
        gold=f"x^2+{a + b}x+{a * b}",
        right=(f"(x+{a})(x+{b})", f"{a * b}+{a + b}x+x^2", f"x^2 + {a + b} x + {a * b}"),
        wrong={
            "neighbour": (f"x^2+{a + b}x+{a * b + 1}", f"x^2+{a + b + 1}x+{a * b}"),
            "negative": (f"-x^2-{a + b}x-{a * b}", f"x^2-{a + b}x+{a * b}"),
            "reciprocal": (rf"\frac{{1}}{{x^2+{a + b}x+{a * b}}}",),
            "look-alike": (f"y^2+{a + b}y+{a * b}", f"x^3+{a + b}x+{a * b}"),
        },
    )


def _radical(rng: random.Random) -> Gold:
    under, times = rng.choice((2, 3, 5, 7)), rng.randint(2, 9)
    value = times * under**0.5
    return Gold(
        type="radical",
        gold=rf"{times}\sqrt{{{under}}}",
        right=(rf"\sqrt{{{under}}} \cdot {times}", rf"\sqrt{{{times * times * under}}}"),
        wrong={
            "neighbour": (rf"{times + 1}\sqrt{{{under}}}", rf"{times}\sqrt{{{under + 1}}}"),
            "negative": (rf"-{times}\sqrt{{{under}}}",),
            "reciprocal": (rf"\frac{{1}}{{{times}\sqrt{{{under}}}}}",),
            "rounded": (f"{value:.1f}", f"{value:.2f}", f"{value:.3f}"),
            "interval around": (f"[{int(value)}, {int(value) + 1}]",),
        },
        numeric=True,
    )


def _equation(rng: random.Random) -> Gold:
    slope, shift = rng.randint(2, 9), rng.randint(2, 9)
    return Gold(
        type="equation",
        gold=f"y = {slope}x + {shift}",
        right=(f"y={slope}x+{shift}", f"y = {shift} + {slope}x"),
        wrong={
            "neighbour": (f"y = {slope}x + {shift + 1}", f"y = {slope + 1}x + {shift}"),
            "negative": (f"y = -{slope}x - {shift}", f"y = {slope}x - {shift}"),
            "reordered": (f"x = {slope}y + {shift}",),
            "look-alike": ("y = y", "0 = 0"),
        },
    )


def _text(rng: random.Random) -> Gold:
    name, other = rng.sample(("Evelyn", "Monday", "parabola", "Paris", "Thursday", "circle"), 2)
    return Gold(
        type="text",
        gold=rf"\text{{{name}}}",
        right=(name, rf"\text{{{name.lower()}}}", rf"\text{{ {name} }}"),
        wrong={
            "neighbour": (rf"\text{{{name[:-1]}}}", other, rf"\text{{{name}x}}"),
            "negative": (rf"\text{{not {name}}}",),
            "reordered": (rf"\text{{{name[::-1]}}}",),
        },
    )


def _units(rng: random.Random) -> Gold:
    value, (unit, other) = rng.randint(11, 99), rng.choice((("cm", "kg"), ("m", "s"), ("kg", "m")))
    return Gold(
        type="units",
        gold=rf"{value} \text{{ {unit}}}",
        right=(rf"{value}\,\mathrm{{{unit}}}", f"{value} {unit}"),
        wrong={
            "neighbour": (rf"{value + 1} \text{{ {unit}}}", rf"{value - 1} \text{{ {unit}}}"),
            "negative": (rf"-{value} \text{{ {unit}}}",),
            "other unit": (rf"{value} \text{{ {other}}}", rf"{value} \mathrm{{{other}}}"),
            "rounded": (rf"{value}0 \text{{ {unit}}}",),
        },
        numeric=True,
    )


def _complex(rng: random.Random) -> Gold:
    real, imaginary = rng.sample(range(2, 30), 2)
    return Gold(
        type="complex",
        gold=f"{real}+{imaginary}i",
        right=(f"{imaginary}i+{real}", f"{real} + {imaginary}i"),
        wrong={
            "neighbour": (f"{real}+{imaginary + 1}i", f"{real + 1}+{imaginary}i"),
            "negative": (f"-{real}-{imaginary}i", f"{real}-{imaginary}i"),
            "reciprocal": (rf"\frac{{1}}{{{real}+{imaginary}i}}",),
            "reordered": (f"{imaginary}+{real}i", f"{real}+{imaginary}", f"({real}, {imaginary})"),
        },
    )


_BUILDERS: tuple[Callable[[random.Random], Gold], ...] = (
    _integer, _decimal, _fraction, _percent, _set, _interval, _tuple, _matrix, _expression,
    _radical, _equation, _text, _units, _complex,
)  # fmt: skip
