r"""Which side of an equation only names a quantity: `x_1`, `f(x)`, `\angle A`, `\text{Total}`."""

import re

from rewards.mathematics.text import clean, normal, words

MOST_CHARACTERS = 60

_PARTS = re.compile(r"_\{[^{}]*\}|_\\?\w|\^\{-1\}|\^\{?\\prime\}?|'|\\(?:text|mathrm)\{[^{}]*\}")
_UPRIGHT = re.compile(r"\\(?:text|mathrm)\{([A-Z][a-z]{0,3})\}(?=\()")  # `\text{P}(A)`
_NO_NAME = re.compile(  # `\not`, `\neg`, `\nless` and other signs that deny or compare
    r"\\(?:frac|sqrt|pi|infty|int|sum|prod|lim|log|ln|binom|emptyset|pm|mp|lnot|forall|exists"
    r"|n(?!u(?![A-Za-z])|abla)[a-z]+)(?![A-Za-z])"
)
_NAME = re.compile(
    r"(?!-)(?:m?\\(?:angle|triangle)(?![A-Za-z]))?"
    r"(?:\\[A-Za-z]+(?![A-Za-z])|[A-Za-z+|{}\[\]-])+"
    r"(?:\([A-Za-z0-9,\\<>=| +-]*\))?"
)
_TUPLE = re.compile(r"\(\\?[A-Za-z]+(?:_[0-9])?(?:,\\?[A-Za-z]+(?:_[0-9])?)+\)")
_SLOPE = re.compile(r"\\frac\{[A-Za-z\\]{1,9}\}\{[A-Za-z\\]{1,9}\}")
_WORD = re.compile(r"[a-z]+")
_DENY_FIRST = frozenset(["wrong", "incorrect", "false", "never", "except", "neither"])
_DENY = frozenset(["not", "or", "either", "maybe", "perhaps", "possibly", "isn", "unless", "if"])


def is_name(side: str) -> bool:
    r"""Whether it is a name. `\text{not } x` is none, nor is `-x`."""
    bare = _UPRIGHT.sub(r"\1", normal(side))
    if len(bare) > MOST_CHARACTERS or bare in ("e", "i", r"\pi") or _denies(side):
        return False
    if _SLOPE.fullmatch(bare) or _TUPLE.fullmatch(bare) or words(side) is not None:
        return True
    if _NO_NAME.search(clean(side)):
        return False
    bare = _PARTS.sub("", bare) or "x"
    return _NAME.fullmatch(bare) is not None and re.search(r"[A-Za-z]", bare) is not None


def name_of(side: str) -> str:
    """A name in its normal spelling."""
    return re.sub(r"[\s{}]", "", _UPRIGHT.sub(r"\1", normal(side)))


def _denies(side: str) -> bool:
    said = _WORD.findall(re.sub(r"\\[A-Za-z]+", " ", side).lower())
    return bool(said) and (said[0] in _DENY_FIRST or not _DENY.isdisjoint(said))
