r"""Reads answers as text: the boxes of a response, plain numbers, words, a normal form.

Everything here is linear in the length of its input, for the input may be hostile.
"""

import re
from dataclasses import dataclass
from fractions import Fraction

MOST_DIGITS = 400  # of a number that is read exactly

_BRACES = re.compile(r"\\boxed\s*\{|\\.|[{}]", re.DOTALL)
_INTEGER = r"[0-9]{1,400}"
_DECIMAL = rf"(?:{_INTEGER}(?:\.[0-9]{{0,400}})?|\.[0-9]{{1,400}})"
_PART = rf"(?:\{{([+-]?{_INTEGER})\}}|([0-9]))"
_NUMBER = re.compile(rf"([+-]?)({_DECIMAL})")
_SLASH = re.compile(rf"([+-]?)({_INTEGER})/([+-]?{_INTEGER})")
_FRAC = re.compile(rf"([+-]?)({_INTEGER})?\\frac{_PART} ?{_PART}")
_POWER = re.compile(
    rf"([+-]?)(?:({_DECIMAL})\*)?([0-9]{{1,4}})\^(?:\{{(-?[0-9]{{1,2}})\}}|([0-9]))"
)
_THOUSANDS = re.compile(r"(?<![0-9.])[0-9]{1,3}(?:,[0-9]{3})+(?![0-9,])")
_NAME = re.compile(r"^[A-Za-z](?:_\w)?=(?=.)")
_UNIT = re.compile(
    r"(?<=[0-9}])(?:\\(?:text|mathrm|textbf|mbox)\{[^{}]*\}(?:\^\{?[23]\}?)?|\^\{?\\circ\}?|\\degree)$"
)
_BARE_UNIT = re.compile(
    r"(?<=[0-9}])\s+(?!(?:dozen|hundred|thousand|million|billion|trillion)\b)[A-Za-z]{2}[A-Za-z ]*$"
)
_SPACES = re.compile(r"\\[,;:! ]|\\quad|\\qquad|~|(?<![0-9])\s+|\s+(?![0-9\s])")
_SAME = (
    (r"\left", ""), (r"\right", ""), (r"\displaystyle", ""), (r"\dfrac", r"\frac"),
    (r"\tfrac", r"\frac"), (r"\times", "*"), (r"\cdot", "*"), (r"\$", ""), ("$", ""), (r"\%", "%"),
    ("{,}", ","), ("\u2212", "-"),
)  # fmt: skip


def boxes(response: str) -> list[str]:
    r"""Contents of the balanced `\boxed{...}` in order; of nested ones the innermost."""
    contents: list[str] = []
    latest = -1  # where the content of the latest closed box starts
    open_braces: list[int | None] = []  # where a box's content starts; None for another brace
    for token in _BRACES.finditer(response):
        text = token.group()
        if text == "{":
            open_braces.append(None)
        elif text == "}":
            start = open_braces.pop() if open_braces else None
            if start is not None and start > latest:
                contents.append(response[start : token.start()].strip())
                latest = start
        elif text.startswith(r"\boxed"):
            open_braces.append(token.end())
    return contents


def normal(text: str) -> str:
    """The text without what changes only its looks: spaces, sizes, dollar signs, a full stop.

    A space between two digits stays: `2 4` is not 24.
    """
    for old, new in _SAME:
        text = text.replace(old, new)
    text = _SPACES.sub("", text).rstrip(".")
    return _NAME.sub("", text)


def words(text: str) -> str | None:
    r"""The text in lower case if it is words (`\text{No}`, `Evelyn`), None if it is mathematics."""
    plain = re.sub(r"\\(?:text|mathrm|textbf|mbox)\{([^{}]*)\}", r"\1", text).strip().rstrip(".")
    if re.fullmatch(r"[A-Za-z]+(?:[' -]+[A-Za-z]+)*", plain) is None:
        return None
    bare = plain == text.strip().rstrip(".")
    if bare and not re.search(r"[A-Za-z]{3}", plain):
        return None  # one or two bare letters are a variable or a product
    return " ".join(plain.lower().split())


@dataclass(frozen=True, slots=True, kw_only=True)
class Number:
    """A plain number as it was written."""

    value: Fraction
    decimals: int = 0  # digits after the point
    fraction: bool = False  # written as a/b
    percent: bool = False


def number(text: str) -> Number | None:
    r"""The number that the text is, or None.

    `-3`, `1,234.5`, `1/2`, `\frac12`, `1\frac{1}{2}`, `2^{10}` and `3\times10^{8}` are numbers,
    also with a unit, a percent or dollar sign, or `x=` around them. Sums and products are none: a
    policy must not be paid for boxing the question.
    """
    if len(text) > 2 * MOST_DIGITS:
        return None
    text = _BARE_UNIT.sub("", text.strip().rstrip("."))
    text = _UNIT.sub("", normal(text))
    percent = text.endswith("%")
    text = _THOUSANDS.sub(lambda match: match.group().replace(",", ""), text.removesuffix("%"))
    if match := _NUMBER.fullmatch(text):
        sign, digits = match.groups()
        point = len(digits.partition(".")[2])
        return Number(value=_signed(sign, Fraction(digits)), decimals=point, percent=percent)
    if match := _SLASH.fullmatch(text):
        sign, top, bottom = match.groups()
        return _ratio(sign, Fraction(0), top, bottom, percent)
    if match := _FRAC.fullmatch(text):
        sign, whole, top, top_digit, bottom, bottom_digit = match.groups()
        return _ratio(sign, Fraction(whole or 0), top or top_digit, bottom or bottom_digit, percent)
    if match := _POWER.fullmatch(text):
        sign, factor, base, exponent, digit = match.groups()
        if int(base):
            power = Fraction(int(base)) ** int(exponent or digit)
            return Number(value=_signed(sign, Fraction(factor or 1) * power), percent=percent)
    return None


def same_number(answer: Number, gold: Number) -> bool:
    """Whether two numbers are one value. A whole one must be written whole: 27/3 is not yet 9."""
    if gold.value.denominator == 1 and answer.fraction and not gold.fraction:
        return False
    if answer.value == gold.value:
        return True
    if answer.percent != gold.percent:
        part, whole = (answer, gold) if answer.percent else (gold, answer)
        return part.value == 100 * whole.value
    decimals = max(answer.decimals, gold.decimals)
    return (
        answer.fraction != gold.fraction
        and decimals >= 6  # a rounded decimal passes for its fraction from here on
        and round(answer.value, decimals) == round(gold.value, decimals)
    )


def _ratio(sign: str, whole: Fraction, top: str, bottom: str, percent: bool) -> Number | None:
    if int(bottom) == 0 or (whole and top.startswith(("+", "-"))):
        return None
    value = whole + Fraction(int(top), int(bottom))
    return Number(value=_signed(sign, value), fraction=True, percent=percent)


def _signed(sign: str, value: Fraction) -> Fraction:
    return -value if sign == "-" else value
