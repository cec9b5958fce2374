r"""Units of measurement around an answer: `12 \text{ cm}^2`, `\$18.90`, `5 million`, `90^\circ`."""

import re
from dataclasses import dataclass
from fractions import Fraction

from rewards.mathematics.text import number

MOST_WORDS = 6  # of a unit

_MACRO = r"\\(?:text|textbf|textit|textrm|mathrm|mathbf|mbox|rm|operatorname)\s*\{[^{}]*\}"
_POWER = r"(?:\s*\^\s*(?:\{\s*-?[0-9]\s*\}|[0-9]))?"
_MACRO_UNIT = re.compile(rf"(?:\s*(?:/\s*)?(?:{_MACRO}){_POWER})+$")
_DEGREE_UNIT = re.compile(
    r"\s*\^\s*\{?\s*\\circ\s*\}?\s*(?:[CFK]|\\(?:text|mathrm)\{\s*[CFK]\s*\})?$"
)
_BARE_UNIT = re.compile(
    rf"(?<=[0-9}}%])\s*[A-Za-z][A-Za-z ./]*{_POWER}(?:\s*/\s*[A-Za-z]+{_POWER})?$"
)
_PREFIX = re.compile(
    r"^(-?)\s*(?:\\\$|\\pounds\b|[\u20ac\u00a3\u00a5\u20b9]|(?:US|USD|Rs\.?)(?![A-Za-z]))\s*"
)
_FRACTION_UNIT = re.compile(
    rf"\\frac\s*\{{\s*({_MACRO}{_POWER})\s*\}}\s*\{{\s*({_MACRO}{_POWER})\s*\}}\s*$"
)
_COMPOUND = re.compile(
    r"(?:[0-9]{1,9}(?:\.[0-9]{1,9})?\s*[A-Za-z]{1,12}\.?(?:\s*,|\s+and(?![A-Za-z]))?\s*){2,3}"
)
_COMPOUND_PART = re.compile(r"([0-9]+(?:\.[0-9]+)?)\s*([A-Za-z]+)")
_MOST_COMPOUND = 120
_SUFFIX = re.compile(r"(?<=[0-9])\s*(\\\$|[\u20ac\u00a3\u00a5\u20b9])$")
_WORD = re.compile(r"[A-Za-z]+")
_SINGLE = frozenset("msghLlNJWVAKC")  # bare letters that are units; another one is a variable

SCALES = {
    "hundred": 10**2, "thousand": 10**3, "million": 10**6, "billion": 10**9,
    "trillion": 10**12, "dozen": 12,
}  # fmt: skip
_NO_UNITS = frozenset([
    "or", "and", "not", "no", "nor", "either", "neither", "both", "if", "when", "for", "to",
    "than", "then", "but", "is", "are", "was", "be", "equals", "equal", "plus", "minus", "times",
    "over", "divided", "by", "multiplied", "mod", "modulo", "squared", "cubed", "half", "halves",
    "third", "thirds", "quarter", "quarters", "fourth", "fourths", "fifth", "fifths", "tenth",
    "tenths", "hundredth", "hundredths", "thousandth", "thousandths", "twice", "double",
    "triple", "squares", "root", "sqrt", "pi", "factorial", "choose", "power", "sin", "cos",
    "tan", "ln", "log", "exp", "approximately", "about", "around", "roughly", "almost", "nearly",
    "maybe", "possibly", "perhaps", "probably", "unknown", "least", "most",
    "any", "all", "none", "some", "other", "something", "between", "through",
    "until", "zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine",
    "ten", "eleven", "twelve", "twenty", "thirty", "forty", "fifty", "sixty", "seventy",
    "eighty", "ninety", "hundreds", "thousands", "millions", "billions", "percent", "percents",
    "k", "b", "bn", "mn", "mil",
])  # fmt: skip
_MATHEMATICS = frozenset(
    ["pi", "i", "j", "k", "e", "sqrt", "ln", "log", "sin", "cos", "tan", "exp"]
)
_TABLE: dict[str, tuple[str, Fraction]] = {}
for _dimension, _units in {
    "length": {
        "mm millimeter millimetre": "1/1000", "cm centimeter centimetre": "1/100",
        "m meter metre": "1", "km kilometer kilometre": "1000", "in inch inches": "127/5000",
        "ft foot feet": "381/1250", "yd yard": "1143/1250", "mi mile": "201168/125",
    },
    "mass": {
        "mg milligram": "1/1000", "g gram": "1", "kg kilogram": "1000", 
        "lb lbs pound": "45359237/100000",
        "oz ounce": "45359237/1600000", "ton tonne": "1000000",
    },
    "time": {
        "s sec second": "1", "min minute": "60", "h hr hour": "3600", "day": "86400",
        "week": "604800",
    },
    "volume": {"ml milliliter millilitre": "1/1000", "l liter litre": "1"},
    "year": {"month": "1/12", "year yr": "1"},
    "dollar": {"dollar usd buck": "1", "cent": "1/100"},
    "angle": {"degree deg": "1", "radian rad": "0"},
}.items():  # fmt: skip
    for _names, _factor in _units.items():
        for _name in _names.split():
            _TABLE[_name] = (_dimension, Fraction(_factor))


@dataclass(frozen=True, slots=True, kw_only=True)
class Measure:
    """An answer cut in three: what is measured, a factor (`million`), and the unit in words."""

    body: str
    scale: int = 1
    unit: str = ""


NOTHING = Measure(body="")


def measure(text: str) -> Measure | None:
    """Cut a cleaned text; None if words that are no unit (`5 or more`) stand behind a number."""
    compound = _compound(text)
    if compound is not None:
        return compound
    text, prefix = _without_prefix(_FRACTION_UNIT.sub(r"\1/\2", text))
    match = _DEGREE_UNIT.search(text) or _MACRO_UNIT.search(text)
    if match is None:
        match = _bare(text)
    if match is None or not text[: match.start()].strip():
        return Measure(body=text, unit=prefix)
    body = text[: match.start()].strip()
    if body.endswith(("+", "-", "*", "^", "_", "=", "\\", "{", "(")):
        return Measure(body=text, unit=prefix)
    said = _plain(match.group())
    if said == "percent":
        return Measure(body=body + "%", unit=prefix)
    if set(_WORD.findall(said)) <= _MATHEMATICS:
        return Measure(body=text, unit=prefix)
    first, _, rest = said.partition(" ")
    scale = SCALES.get(first, 1)
    said = rest if scale > 1 else said
    names = _WORD.findall(said)
    if re.search(r"(?<!\^)(?<!\^-)[0-9]", said):
        return None
    if (
        len(names) > MOST_WORDS
        or not _NO_UNITS.isdisjoint(names)
        or not SCALES.keys().isdisjoint(names)
    ):
        return None
    return Measure(body=body, scale=scale, unit=said or prefix)


def _compound(text: str) -> Measure | None:
    """`2 hours and 30 minutes` as 5/2 hours."""
    if len(text) > _MOST_COMPOUND or not text[:1].isdigit():
        return None
    plain = re.sub(_MACRO, lambda match: match.group().partition("{")[2][:-1] + " ", text)
    if _COMPOUND.fullmatch(plain) is None:
        return None
    parts = _COMPOUND_PART.findall(plain)
    units = [_dimension_of(unit.lower()) for _, unit in parts]
    known = [unit for unit in units if unit is not None]
    factors = [factor for _, factor in known]
    descending = factors == sorted(set(factors), reverse=True)
    if len(known) != len(units) or len({name for name, _ in known}) > 1 or not descending:
        return None
    total = sum(Fraction(count) * factor for (count, _), factor in zip(parts, factors, strict=True))
    return Measure(body=str(total / factors[0]), unit=parts[0][1].lower())


def conversion(gold: str, answer: str) -> Fraction | None:
    """What an answer's value is multiplied with to be in the gold's unit; None: other things.

    A unit may be left out on either side.
    """
    if not gold or not answer or gold == answer:
        return Fraction(1)
    left, right = _dimension_of(gold), _dimension_of(answer)
    if left and right:
        return right[1] / left[1] if left[0] == right[0] and left[1] and right[1] else None
    if left or right:
        return None
    shared = set(_singular(gold).split()) & set(_singular(answer).split())
    return Fraction(1) if shared - {"of", "per", "the", "/"} else None


def _without_prefix(text: str) -> tuple[str, str]:
    match = _PREFIX.match(text)
    behind = _SUFFIX.search(text)
    if match is None and behind is not None and number(text[: behind.start()]) is not None:
        return text[: behind.start()], "dollar" if "$" in behind.group() else behind.group(1)
    if match is None or match.end() == len(text):
        return text, ""
    sign = match.group(1)
    symbol = match.group()[len(sign) :].strip()
    unit = "dollar" if symbol in (r"\$", "US", "USD") else symbol
    return sign + text[match.end() :], unit


def _bare(text: str) -> re.Match[str] | None:
    match = _BARE_UNIT.search(text)
    if match is None or number(text[: match.start()]) is None:
        return None
    unit = match.group().strip()
    spaced = match.group()[0] == " "
    letters = [len(word) == 1 for word in _WORD.findall(unit)]
    if len(letters) > 1 and all(letters) and "/" not in unit:
        return None  # `m v^2` is a product
    if len(unit.partition("^")[0]) == 1:
        return match if spaced and unit[0] in _SINGLE else None
    return match if spaced or unit.lower() in _TABLE else None


def _plain(unit: str) -> str:
    r"""`~\text{ cm}^2 / \mathrm{s}` as `cm^2/s`, lower case but for single letters."""
    if "circ" in unit:
        letter = re.search(r"[CFK]\b", unit.replace("circ", ""))
        return f"degree {letter.group().lower()}" if letter else "degree"
    unit = re.sub(_MACRO, lambda match: " " + match.group().partition("{")[2][:-1], unit)
    unit = re.sub(r"\s*\^\s*\{?\s*(-?[0-9])\s*\}?", r"^\1", unit)
    unit = re.sub(r"\s+per\s+", "/", unit)
    unit = " ".join(re.sub(r"\s*/\s*", "/", unit).replace(".", " ").lower().split())
    return {"mph": "mile/hour", "kph": "km/hour", "kmh": "km/hour", "mps": "m/s"}.get(unit, unit)


def _dimension_of(unit: str) -> tuple[str, Fraction] | None:
    """Dimension and factor of a unit we know, compound ones too."""
    match = re.fullmatch(r"(square|sq|cubic|cu) (.+)", unit)
    if match:
        unit = match.group(2) + ("^2" if match.group(1).startswith("s") else "^3")
    if "/" in unit:
        over, _, under = unit.partition("/")
        top, bottom = _dimension_of(over), _dimension_of(under)
        if top is None or bottom is None or not bottom[1]:
            return None
        return f"{top[0]}/{bottom[0]}", top[1] / bottom[1]
    base, _, power = unit.partition("^")
    found = _TABLE.get(base) or _TABLE.get(_singular(base))
    if found is None or not re.fullmatch(r"[23]?", power):
        return None
    return found[0] + power, found[1] ** int(power or 1)


def _singular(unit: str) -> str:
    return " ".join(word[:-1] if _is_plural(word) else word for word in unit.split())


def _is_plural(word: str) -> bool:
    """`hours` and `hrs`. Two letters are none: `ms` are milliseconds."""
    long_enough = len(word) > 3 or (len(word) == 3 and word[:-1] in _TABLE)
    return long_enough and word.endswith("s") and not word.endswith("ss")
