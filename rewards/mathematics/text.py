r"""Reads answers as text: the boxes of a response, plain numbers, words, a normal form.

Everything here is linear in the length of its input, for the input may be hostile.
"""

import re
from dataclasses import dataclass, replace
from fractions import Fraction

MOST_DIGITS = 400  # of a number that is read exactly
ROUNDED_DIGITS = 6  # decimals, all of them significant, that a rounded number needs

_BRACES = re.compile(r"\\(?:boxed|fbox)\s*\{|\\.|[{}]", re.DOTALL)
_BOLD = re.compile(r"\*\*([^*]+)\*\*")
_GSM8K = re.compile(r"[ \t]*####[ \t]*(\S.*)")
_INTEGER = r"[0-9]{1,400}"
_DECIMAL = rf"(?:{_INTEGER}(?:\.[0-9]{{0,400}})?|\.[0-9]{{1,400}})"
_PART = rf"(?:\{{([+-]?{_INTEGER})\}}|([0-9]))"
_PARENTHESES = re.compile(r"^([+-]?)\(([0-9.][^()]*|\\frac[^()]*)\)$")
_NUMBER = re.compile(rf"([+-]?)({_DECIMAL})")
_SLASH = re.compile(rf"([+-]?)(?:({_INTEGER}) )?({_INTEGER})/([+-]?{_INTEGER})")
_FRAC = re.compile(rf"([+-]?)({_INTEGER})?\\frac{_PART} ?{_PART}")
_POWER = re.compile(
    rf"([+-]?)(?:({_DECIMAL})\*)?([0-9]{{1,4}})\^(?:\{{([+-]?[0-9]{{1,2}})\}}|([0-9]))"
)
_SCIENTIFIC = re.compile(rf"([+-]?)({_DECIMAL})[eE]([+-]?[0-9]{{1,3}})")
_REPEATING = re.compile(
    r"([+-]?)([0-9]{0,100})\.([0-9]{0,100})(?:\\(?:overline|bar|dot)\{?([0-9]{1,100})\}?"
    r"|\(([0-9]{1,100})\))"
)
_THOUSANDS = re.compile(r"(?<![0-9.])[0-9]{1,3}(?:(?:,[0-9]{3})+|(?: [0-9]{3})+)(?![0-9, ])")
_SPACED_COMMA = re.compile(r"[0-9],(?:\s|~|\\[,;: ]|\\quad)+[0-9]")  # a list, no thousands
_ROOT = re.compile(r"\u221a\s*([0-9]+)")
_BASES = {"two": "2", "eight": "8", "ten": "10"}
_COMMANDS = re.compile(r"\*\*|[<>]=|\\[A-Za-z]+\*?|\\.|\{[,:]\}|[\u00b0-\uffff$~]", re.DOTALL)
_SPACES = re.compile(r"(?<![0-9 ])\s+|(?<=[0-9])\s+(?![0-9\s])")
_TEXT = re.compile(r"\\(?:text|textbf|textit|textrm|mathrm|mathbf|mathit|mbox|rm)\s*\{([^{}]*)\}")
_FONT = re.compile(
    r"\\(?:text|textbf|textit|textrm|mathrm|mathbf|bm|boldsymbol)"
    r"\{((?:[-+0-9.,/% \u00b0]|\\[$%]){1,400})\}"
)
_LOOKS = re.compile(
    r"\\(?:text)?color\s*\{[A-Za-z]+\}|\\underline(?=\s*\{)|\\checkmark(?![A-Za-z])"
    r"|\\[hv]space\*?\{-?[0-9.]+ ?(?:cm|mm|em|ex|pt|in|mu)\}"
    r"|(?<=\\\\)\[[0-9.]+ ?(?:pt|em|ex|mm|cm)\]"
)
_OVER = re.compile(r"\{([^{}]*)\\over(?![A-Za-z])([^{}]*)\}")
_ALL_OVER = re.compile(r"\s*\{?([^{}]*)\}?\s*\\over(?![A-Za-z])\s*\{?([^{}]*)\}?\s*")
_GROUPED = re.compile(r"([+-]?)(?:\{([0-9]+)\}/\{([0-9]+)\}|\(([0-9]+)\)/\(([0-9]+)\))")
_BASE = re.compile(r"(?<![A-Za-z0-9_}\\])\(([0-9]{1,100})\)(?=_)")
_BASE_NAMES = re.compile(r"_\{\s*(?:\\text\{)?\(?\s*(two|eight|ten|[0-9]{1,2})\s*\)?\}?\s*\}")
_NO_VALUE = frozenset(["dne", "limit does not exist"])
_WORDS = re.compile(r"[A-Za-z]+(?:(?:, ?|[' -])[A-Za-z]+)*")
_SAME = {
    r"\left": "", r"\right": "", r"\big": "", r"\Big": "", r"\bigg": "", r"\Bigg": "",
    r"\bigl": "", r"\bigr": "", r"\Bigl": "", r"\Bigr": "", r"\biggl": "", r"\biggr": "",
    r"\displaystyle": "", r"\textstyle": "", r"\limits": "", r"\!": "", "$": "",
    r"\(": "", r"\)": "", r"\dfrac": r"\frac", r"\tfrac": r"\frac", r"\cfrac": r"\frac",
    r"\nicefrac": r"\frac", r"\sfrac": r"\frac", "\u2044": "/",
    r"\dbinom": r"\binom", r"\tbinom": r"\binom", r"\times": "*", r"\cdot": "*", r"\ast": "*",
    r"\div": "/", r"\%": "%", r"\lbrace": r"\{", r"\rbrace": r"\}", r"\lbrack": "[",
    r"\rbrack": "]", r"\leq": r"\le ", r"\le": r"\le ", r"\leqslant": r"\le ", r"\geq": r"\ge ",
    r"\ge": r"\ge ", r"\geqslant": r"\ge ", r"\lt": "<", r"\gt": ">", r"\neq": r"\ne ",
    r"\lvert": "|", r"\rvert": "|", r"\vert": "|", r"\colon": ":", r"\,": " ", r"\;": " ",
    r"\:": " ", r"\ ": " ", r"\quad": " ", r"\qquad": " ", "~": " ", "{,}": ",", "{:}": ":",
    r"\varnothing": r"\emptyset", r"\thinspace": " ", r"\space": " ", r"\degree": r"^\circ ",
    r"\R": r"\mathbb{R}", r"\Z": r"\mathbb{Z}", r"\arcsec": r"\arcsec", r"\lor": r"\text{ or }",
    r"\vee": r"\text{ or }", r"\land": r"\text{ and }", r"\wedge": r"\text{ and }",
    r"\nolimits": "", r"\middle": "", r"\iff": r"\Leftrightarrow",
    "\u2212": "-", "\u2011": "-", "\u2013": "-", "\uff0d": "-",
    "\u00d7": "*", "\u22c5": "*", "\u00b7": "*", "\u00f7": "/",
    "\u2264": r"\le ", "\u2265": r"\ge ", "\u2260": r"\ne ", "\u221e": r"\infty ",
    "\u03c0": r"\pi ", "\u222a": r"\cup ", "\u2229": r"\cap ", "\u2208": r"\in ",
    "\u00b0": r"^\circ ", "\u2205": r"\emptyset ", "\u00b1": r"\pm ", "\u2248": r"\approx ",
    "\u03b8": r"\theta ", "\u211d": r"\mathbb{R}", "\u2124": r"\mathbb{Z}", "\u00b2": "^2",
    "\u00b3": "^3", "\u00bd": r"\frac{1}{2}", "\u00bc": r"\frac{1}{4}", "\u00be": r"\frac{3}{4}",
    "\u2009": " ", "\u202f": " ", "\u2061": "",
    "\u221a": r"\sqrt ", "**": "^", "<=": r"\le ", ">=": r"\ge ", r"\bf": "", r"\large": "",
    r"\Large": "", r"\boldmath": "",
}  # fmt: skip


def boxes(response: str) -> list[str]:
    r"""Contents of the balanced `\boxed{...}` in order; of nested ones the innermost.

    A box that holds a box and more is a hedge: it counts as one more, empty, box.
    """
    contents: list[str] = []
    innermost, opened, closed = -1, -1, -1  # of the latest closed box
    open_braces: list[tuple[int, int] | None] = []  # where a box and its content start
    for token in _BRACES.finditer(response):
        text = token.group()
        if text == "{":
            open_braces.append(None)
        elif text == "}":
            box = open_braces.pop() if open_braces else None
            if box is None:
                continue
            start, content = box
            if content > innermost:
                contents.append(response[content : token.start()].strip())
                innermost = content
            elif response[content:opened].strip() or response[closed : token.start()].strip():
                contents.append("")
            opened, closed = start, token.end()
        elif len(text) > 2:
            open_braces.append((token.start(), token.end()))
    return contents


def final_answers(response: str) -> list[str]:
    r"""What a response answers, in order: several items if it says so several times.

    After `</think>` nothing before it counts. Boxes are read; a response without any may end with a
    line `#### X`, as the solutions of GSM8K do. Prose is not read.
    """
    _, closed, said = response.rpartition("</think>")
    response = said if closed and said.strip() else response
    found = boxes(response)
    if found:
        return [_BOLD.sub(r"\1", each) if _BOLD.fullmatch(each) else each for each in found]
    line = response.rstrip().rpartition("\n")[2]
    match = _GSM8K.fullmatch(line)
    return [match.group(1).strip()] if match else []


def clean(text: str) -> str:
    """The text in one spelling of LaTeX: no sizes, no dollar signs, one name for each command."""
    text = re.sub(r"\s+", " ", text)  # first: runs of spaces make the patterns below cubic
    text = _ROOT.sub(r"\\sqrt{\1}", _LOOKS.sub(" ", _FONT.sub(r"\1", text)))
    if r"\over" in text:
        pattern = _ALL_OVER if _ALL_OVER.fullmatch(text) else _OVER
        text = pattern.sub(r"\\frac{\1}{\2}", text)
    if "_" in text:
        text = _BASE.sub(r"\1", _BASE_NAMES.sub(_base, text))
    return " ".join(_COMMANDS.sub(lambda match: _spelt(match.group()), text).split())


def _base(match: re.Match[str]) -> str:
    said = match.group(1)
    return f"_{{{_BASES.get(said, said)}}}"


def _spelt(token: str) -> str:
    found = _SAME.get(token)
    return token if found is None else found


def normal(text: str) -> str:
    """The text without what changes only its looks: spaces, sizes, dollar signs, a full stop.

    A space between two digits stays: `2 4` is not 24.
    """
    text = _SPACES.sub("", clean(text)).rstrip(".").strip()
    while text.startswith("{") and text.endswith("}") and "}" not in text[:-1]:
        text = text[1:-1]
    return text


def words(text: str) -> str | None:
    r"""The text in lower case if it is words (`\text{No}`, `Evelyn`), None if it is mathematics."""
    bare = text.replace("$", "").strip().rstrip(".")
    plain = _TEXT.sub(r"\1", bare).strip().rstrip(".")
    if len(plain) > 1000 or _WORDS.fullmatch(" ".join(plain.split())) is None:
        return None
    if plain == bare and not re.search(r"[A-Za-z]{3}", plain) and plain.lower() != "no":
        return None  # one or two bare letters are a variable or a product
    said = re.sub(r"[ ,-]+", " ", plain.lower())
    for article in ("the ", "a ", "an "):
        said = said.removeprefix(article)
    return "does not exist" if said in _NO_VALUE else said


def wording(text: str) -> str:
    r"""Text with words and numbers (`\text{March 5}`), however it is set."""
    return " ".join(_TEXT.sub(r" \1 ", clean(text)).lower().split()).strip(" .")


def choice(text: str) -> str | None:
    r"""The letter of a multiple-choice answer: `B`, `(B)`, `\text{B.}`, `Option B`; else None."""
    plain = _TEXT.sub(r"\1", text.replace("$", "")).strip()
    match = re.fullmatch(r"(?:(?i:option|choice|answer:?) )?(?:\(([A-Z])\)|([A-Z])[).:]?)", plain)
    return match.group(1) or match.group(2) if match else None


@dataclass(frozen=True, slots=True, kw_only=True)
class Number:
    """A plain number as it was written."""

    value: Fraction
    decimals: int = 0  # digits after the point
    fraction: bool = False  # written as a/b
    percent: bool = False


def number(text: str) -> Number | None:
    r"""The number that the text is, or None.

    `-3`, `1,234.5`, `1/2`, `\frac12`, `1\frac{1}{2}`, `2^{10}`, `3\times10^{8}`, `0.\overline{3}`
    are numbers, also with a percent sign. Sums and products are none: a policy must not be paid
    for boxing the question.
    """
    if len(text) > 2 * MOST_DIGITS or _SPACED_COMMA.search(text):
        return None
    text = _GROUPED.sub(r"\1\2\4/\3\5", _PARENTHESES.sub(r"\1\2", normal(text)))
    bare = text.removesuffix("%")
    found = _read_number(_THOUSANDS.sub(lambda match: re.sub("[, ]", "", match.group()), bare))
    return replace(found, percent=True) if found and bare != text else found


def _read_number(text: str) -> Number | None:
    if match := _NUMBER.fullmatch(text):
        sign, digits = match.groups()
        point = len(digits.partition(".")[2])
        return Number(value=_signed(sign, Fraction(digits)), decimals=point)
    if match := _SLASH.fullmatch(text):
        sign, whole, top, bottom = match.groups()
        return _ratio(sign, whole, top, bottom)
    if match := _FRAC.fullmatch(text):
        sign, whole, top, top_digit, bottom, bottom_digit = match.groups()
        return _ratio(sign, whole, top or top_digit, bottom or bottom_digit)
    if match := _POWER.fullmatch(text):
        sign, factor, base, exponent, digit = match.groups()
        if int(base):
            power = Fraction(int(base)) ** int(exponent or digit)
            return Number(value=_signed(sign, Fraction(factor or 1) * power))
    if match := _SCIENTIFIC.fullmatch(text):
        sign, factor, exponent = match.groups()
        return Number(value=_signed(sign, Fraction(factor) * Fraction(10) ** int(exponent)))
    if match := _REPEATING.fullmatch(text):
        sign, whole, fixed, *periods = match.groups()
        return _repeating(sign, whole, fixed, periods[0] or periods[1])
    return None


def same_number(answer: Number, gold: Number) -> bool:
    """Whether two numbers are one value. A whole one must be written whole: 27/3 is not yet 9."""
    if answer.percent != gold.percent:
        part, whole = (answer, gold) if answer.percent else (gold, answer)
        # A data set may leave the sign out: 50 for 50%. But 0.75% is not 0.75.
        omitted = part.value == whole.value and (gold.percent or abs(gold.value) >= 1)
        return part.value == 100 * whole.value or omitted
    if gold.value.denominator == 1 and answer.fraction and not gold.fraction:
        return False
    if answer.value == gold.value:
        return True
    if answer.fraction == gold.fraction:
        return False
    rounded, exact = (gold, answer) if answer.fraction else (answer, gold)
    return is_rounding(rounded, exact.value)


def is_rounding(rounded: Number, exact: Fraction) -> bool:
    """Whether a decimal is the value rounded to it, with six significant decimals or more."""
    if rounded.decimals < ROUNDED_DIGITS:
        return False
    smallest = Fraction(1, 10 ** (rounded.decimals - ROUNDED_DIGITS + 1))
    return abs(rounded.value) >= smallest and round(exact, rounded.decimals) == rounded.value


def _ratio(sign: str, whole: str | None, top: str, bottom: str) -> Number | None:
    mixed = whole is not None
    if int(bottom) == 0 or (mixed and (top + bottom).find("-") >= 0):
        return None
    value = Fraction(whole or 0) + Fraction(int(top), int(bottom))
    if mixed and int(top) >= int(bottom):
        return None  # 2 27/3 is no mixed number
    return Number(value=_signed(sign, value), fraction=True)


def _repeating(sign: str, whole: str, fixed: str, period: str) -> Number:
    nines = 10 ** len(fixed) * (10 ** len(period) - 1)
    value = Fraction(f"{whole or 0}.{fixed or 0}") + Fraction(int(period), nines)
    return Number(value=_signed(sign, value), fraction=True)


def _signed(sign: str, value: Fraction) -> Fraction:
    return -value if sign == "-" else value
