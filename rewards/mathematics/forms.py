r"""Reads the shape of an answer: list, set, interval, matrix, equation, words, expression."""

import re
from dataclasses import dataclass, replace
from enum import StrEnum
from functools import lru_cache

from rewards.mathematics.expression import Unreadable, read_expression
from rewards.mathematics.text import clean, normal, number, words
from rewards.mathematics.units import NOTHING, Measure, measure
from rewards.mathematics.values import names_of

MOST_DEPTH = 6
MOST_ITEMS = 64

_MACRO = r"\\(?:text|textbf|textit|textrm|mathrm|mathbf|mbox)\s*\{[^{}]*\}"
_TOKEN = re.compile(
    rf"\\(?:begin|end)\s*\{{[a-z]+\*?\}}|{_MACRO}|\\[A-Za-z]+|\\.|[A-Za-z]+|[0-9.]+|\s+|.",
    re.DOTALL,
)
_OPEN = frozenset(["(", "[", "{", r"\{", r"\langle", r"\lfloor", r"\lceil"])
_CLOSE = frozenset([")", "]", "}", r"\}", r"\rangle", r"\rfloor", r"\rceil"])
_LISTS = frozenset([",", ";", "or", "and"])
_FLIPPED = {"<": ">", ">": "<", r"\le": r"\ge", r"\ge": r"\le"}
_RELATIONS = frozenset(
    ["=", *_FLIPPED, r"\ne", r"\in", r"\notin", r"\approx", r"\equiv", r"\to", r"\rightarrow",
     r"\mapsto", r"\sim", r"\simeq", r"\cong", r"\subset", r"\subseteq", r"\supset", r"\supseteq",
     r"\Rightarrow", r"\implies", r"\Leftrightarrow", r"\propto", r"\mid", r"\perp", r"\parallel",
     r"\ll", r"\gg"]
)  # fmt: skip
_UNIONS = frozenset([r"\cup"])
_DIFFERENCES = frozenset([r"\setminus", r"\backslash", r"\cap"])
_FONTS = frozenset([r"\mathbf", r"\boldsymbol", r"\bm", r"\textbf", r"\mathrm", r"\text"])
_MATRICES = frozenset(["pmatrix", "bmatrix", "Bmatrix", "matrix", "smallmatrix", "array"])
_LABEL = re.compile(
    r"(?:\\text(?:bf|it|rm)?\{)?\s*(?:the )?(?:final )?(?:answer|result|solution)(?: is)?"
    r"\s*[:=]?\s*\}?\s*[:=]?\s*"
    r"(?=[^A-Za-z\s])",
    re.IGNORECASE,
)
_NAME_PARTS = re.compile(
    r"_\{[^{}]*\}|_\\?\w|\^\{-1\}|\^\{?\\prime\}?|'|\\(?:text|mathrm)\{[^{}]*\}"
)
_NAME = re.compile(
    r"(?:m?\\(?:angle|triangle)(?![A-Za-z]))?(?:\\(?!(?:frac|sqrt|pi|infty|int|sum|prod|lim|log|ln|binom"
    r"|emptyset|pm|mp)(?![A-Za-z]))[A-Za-z]+(?![A-Za-z])|[A-Za-z+|{}\[\]-])+(?:\([A-Za-z0-9,\\]*\))?"
)
_TUPLE_NAME = re.compile(r"\([A-Za-z](?:,[A-Za-z])+\)")
_SLOPE = re.compile(r"\\frac\{[A-Za-z\\]{1,9}\}\{[A-Za-z\\]{1,9}\}")
_TIME = re.compile(
    r"([0-9]{1,2}):([0-9]{2})(?::([0-9]{2}))?\s*(?:([ap])\.?\s?m\.?)?", re.IGNORECASE
)
_ANY_TEXT = re.compile(r"\\(?:text|textbf|textrm|mathrm|mbox)\s*\{([^{}]*)\}")
_FRENCH = {"][": ("(", ")"), "[[": ("[", ")"), "]]": ("(", "]")}
_INFINITY = {"infinity": r"\infty", "positive infinity": r"\infty", "negative infinity": r"-\infty"}
_EMPTY = frozenset(["empty set", "null set", "no solution", "no solutions"])
_REALS = frozenset(["all real numbers", "all reals", "real numbers"])


class Kind(StrEnum):
    """What an answer is."""

    leaf = "leaf"
    words = "words"
    listing = "listing"
    set = "set"
    union = "union"
    tuple = "tuple"
    matrix = "matrix"
    ratio = "ratio"
    time = "time"
    chain = "chain"
    relation = "relation"
    empty = "empty"


@dataclass(frozen=True, slots=True, kw_only=True)
class Form:
    r"""An answer's shape.

    Example: `x \in [0, \infty)` is a tuple with mark "[)" of two leaves, named "x"; `x = 5` is a
    leaf named "x"; `1 < 2` is a relation with mark "<".
    """

    kind: Kind
    text: str = ""  # of words and leaves
    items: tuple["Form", ...] = ()
    mark: str = ""  # brackets, operator, or size
    name: str = ""  # what it is said to be the value of
    measure: Measure = NOTHING  # of a leaf


@lru_cache(maxsize=4096)
def read_gold(text: str) -> Form | None:
    """The form of a gold answer; None if some part of it cannot be read."""
    try:
        form = read_form(text.strip().removeprefix(r"\approx"))
        _check(form)
    except (ValueError, ArithmeticError, RecursionError):
        return None
    return form


def read_form(text: str) -> Form:
    """The form of an answer. Raises `Unreadable` for more depth or items than answers have."""
    text = text.strip()
    said = words(text)
    if said is not None:
        return _spoken(said)
    spoken = _ANY_TEXT.fullmatch(text)  # \text{10 years}
    text = clean(spoken.group(1) if spoken else text)
    label = _LABEL.match(text)
    return _read(text[label.end() :] if label else text, 0)


def _spoken(said: str) -> Form:
    if said in _INFINITY:
        return _leaf(_INFINITY[said])
    if said in _EMPTY:
        return Form(kind=Kind.empty)
    if said in _REALS:
        return _reals()
    return Form(kind=Kind.words, text=said)


def _check(form: Form) -> None:
    """Raise `Unreadable` unless every leaf is an expression."""
    if form.kind is Kind.leaf and number(form.measure.body) is None and not _infinite(form.text):
        read_expression(form.measure.body)
    for item in form.items:
        _check(item)


def _infinite(text: str) -> bool:
    return normal(text).lstrip("+-") == r"\infty"


def _reals() -> Form:
    ends = (_leaf(r"-\infty"), _leaf(r"\infty"))
    return Form(kind=Kind.tuple, items=ends, mark="()")


def _leaf(text: str) -> Form:
    cut = measure(text)
    if cut is None:
        raise Unreadable("words that are no unit")
    if cut.unit == "" and _infinite(cut.body):
        cut = Measure(body=normal(cut.body).removeprefix("+"))
    return Form(kind=Kind.leaf, text=text, measure=cut)


def _read(text: str, depth: int) -> Form:
    if depth > MOST_DEPTH:
        raise Unreadable("nested too deep")
    text = text.strip().rstrip(".;, ").strip()
    if not text:
        raise Unreadable("nothing between two signs")
    cut = measure(text)
    if cut is not None and number(cut.body) is not None:
        return _leaf(text)
    return _special(text) or _structure(_TOKEN.findall(text), depth) or _leaf(text)


def _special(text: str) -> Form | None:
    """What is no expression: words, a time, a set with a sign of its own."""
    said = words(text)
    if said is not None:
        return _spoken(said)
    bare = normal(text)
    if bare == r"\emptyset":
        return Form(kind=Kind.empty)
    if bare == r"\mathbb{R}":
        return _reals()
    return _clock(text)


def _structure(tokens: list[str], depth: int) -> Form | None:
    for reader in (_listing, _relation, _union, _difference, _group, _matrix, _ratio, _plus_minus):
        form = reader(tokens, depth)
        if form is not None:
            return form
    return None


def _clock(text: str) -> Form | None:
    match = _TIME.fullmatch(_ANY_TEXT.sub(r"\1", text).strip())
    if match is None or int(match.group(2)) > 59:
        return None
    hours, minutes, seconds, half = match.groups()
    said = f"{int(hours)}:{minutes}" + (f":{seconds}" if seconds else "")
    return Form(kind=Kind.time, text=said, mark=(half or "").lower())


def _split(tokens: list[str], separators: frozenset[str]) -> tuple[list[list[str]], list[str]]:
    """The parts between top-level separators, and these. `\\text{ or }` separates like `or`."""
    parts: list[list[str]] = [[]]
    found: list[str] = []
    depth = 0
    for token in tokens:
        if token in _OPEN or token.startswith(r"\begin"):
            depth += 1
        elif token in _CLOSE or token.startswith(r"\end"):
            depth -= 1
        word = _ANY_TEXT.sub(r"\1", token).strip(" ,;:").lower() if len(token) > 4 else token
        if depth == 0 and (word if word in ("or", "and") else token) in separators:
            parts.append([])
            found.append(word if word in ("or", "and") else token)
        else:
            parts[-1].append(token)
    return parts, found


def _listing(tokens: list[str], depth: int) -> Form | None:
    parts, found = _split(tokens, _LISTS)
    parts = [part for part in parts if "".join(part).strip()]
    if not found or len(parts) < 2:
        return _read("".join(parts[0]), depth + 1) if found and parts else None
    if len(parts) > MOST_ITEMS:
        raise Unreadable("a long list")
    return _gather([_read("".join(part), depth + 1) for part in parts])


def _gather(forms: list[Form]) -> Form:
    """A list, flat, with the name that all items share on the outside: `x = 1, 2`."""
    flat: list[Form] = []
    for form in forms:
        nested = form.kind is Kind.listing and form.mark != "system"
        flat += (
            [replace(item, name=item.name or form.name) for item in form.items]
            if nested
            else [form]
        )
    names = {form.name for form in flat if form.name}
    first_only = len(names) == 1 and flat[0].name and not any(form.name for form in flat[1:])
    all_same = len(names) == 1 and all(form.name for form in flat)
    if first_only or all_same:
        bare = tuple(replace(form, name="") for form in flat)
        return Form(kind=Kind.listing, items=bare, name=flat[0].name)
    mark = "system" if len(names) == len(flat) else ""
    return Form(kind=Kind.listing, items=tuple(flat), mark=mark)


def _relation(tokens: list[str], depth: int) -> Form | None:
    parts, operators = _split(tokens, _RELATIONS)
    if not operators:
        return None
    sides = ["".join(part).strip() for part in parts]
    if len(sides) > 8 or not all(sides):
        raise Unreadable("a relation without a side")
    if operators[0] == r"\in" and is_name(sides[0]):
        rest = "".join(tokens[tokens.index(r"\in") + 1 :])
        return replace(_read(rest, depth + 1), name=name_of(sides[0]))
    if operators == [r"\ne"] and is_name(sides[0]) and number(sides[1]) is not None:
        return replace(_punctured(_leaf(sides[1])), name=name_of(sides[0]))
    if set(operators) == {"="}:
        return _equation(sides, depth)
    if set(operators) <= set(_FLIPPED):
        interval = _interval(sides, operators, depth)
        if interval is not None:
            return interval
    items = tuple(_read(side, depth + 1) for side in sides)
    return Form(kind=Kind.relation, items=items, mark=" ".join(operators))


def _equation(sides: list[str], depth: int) -> Form:
    if len(sides) == 2 and is_name(sides[1]) and not is_name(sides[0]):
        sides = sides[::-1]
    if is_name(sides[0]):
        name, values = name_of(sides[0]), [_read(side, depth + 1) for side in sides[1:]]
        if len(values) == 1:
            return replace(values[0], name=name)
        return Form(kind=Kind.chain, items=tuple(values), name=name)
    items = tuple(_read(side, depth + 1) for side in sides)
    if number(items[-1].text) is not None and all(_without_names(item) for item in items):
        return Form(kind=Kind.chain, items=items)
    return Form(kind=Kind.relation, items=items, mark=" ".join("=" * (len(sides) - 1)))


def _without_names(form: Form) -> bool:
    """Whether a side of an equation is arithmetic: then the equation is true or false by itself."""
    try:
        return form.kind is Kind.leaf and not names_of(read_expression(form.measure.body))
    except Unreadable:
        return False


def is_name(side: str) -> bool:
    r"""Whether a side of an equation names a quantity: `x_1`, `f(x)`, `\angle A`, `a+b`."""
    bare = normal(side)
    if len(bare) > 60 or bare in ("e", "i", r"\pi"):
        return False
    if _SLOPE.fullmatch(bare) or _TUPLE_NAME.fullmatch(bare) or words(side) is not None:
        return True
    bare = _NAME_PARTS.sub("", bare) or "x"
    return _NAME.fullmatch(bare) is not None and re.search(r"[A-Za-z]", bare) is not None


def name_of(side: str) -> str:
    """A name in its normal spelling."""
    return re.sub(r"[\s{}]", "", normal(side))


def _interval(sides: list[str], operators: list[str], depth: int) -> Form | None:
    r"""`2 < x \le 3` and `x > 2` as intervals, if the variable stands alone."""
    if len(sides) == 2 and is_name(sides[1]) and not is_name(sides[0]):
        sides, operators = sides[::-1], [_FLIPPED[operators[0]]]
    upward = {operator in ("<", r"\le") for operator in operators}
    if len(sides) == 2 and is_name(sides[0]):
        bound = _read(sides[1], depth + 1)
        strict = operators[0] in ("<", ">")
        if upward == {True}:
            ends, mark = (_leaf(r"-\infty"), bound), "()" if strict else "(]"
        else:
            ends, mark = (bound, _leaf(r"\infty")), "()" if strict else "[)"
        return Form(kind=Kind.tuple, items=ends, mark=mark, name=name_of(sides[0]))
    if len(sides) == 3 and is_name(sides[1]) and len(upward) == 1 and not is_name(sides[0]):
        if upward == {False}:
            sides, operators = sides[::-1], [_FLIPPED[each] for each in operators[::-1]]
        mark = ("(" if operators[0] == "<" else "[") + (")" if operators[1] == "<" else "]")
        ends = (_read(sides[0], depth + 1), _read(sides[2], depth + 1))
        return Form(kind=Kind.tuple, items=ends, mark=mark, name=name_of(sides[1]))
    return None


def _union(tokens: list[str], depth: int) -> Form | None:
    parts, found = _split(tokens, _UNIONS)
    if not found:
        return None
    if len(parts) > MOST_ITEMS:
        raise Unreadable("a long union")
    items = tuple(_read("".join(part), depth + 1) for part in parts)
    return Form(kind=Kind.union, items=items)


def _difference(tokens: list[str], depth: int) -> Form | None:
    parts, found = _split(tokens, _DIFFERENCES)
    if not found:
        return None
    if len(parts) > 4:
        raise Unreadable("many differences")
    items = tuple(_read("".join(part), depth + 1) for part in parts)
    point = items[1].items[0] if items[1].kind is Kind.set and len(items[1].items) == 1 else None
    if items[0] == _reals() and len(items) == 2 and point and found != [r"\cap"]:
        return _punctured(point)
    return Form(kind=Kind.relation, items=items, mark=" ".join(found))


def _punctured(point: Form) -> Form:
    r"""All numbers but one: `x \ne 1`, `\mathbb{R} \setminus \{1\}`."""
    low, high = _reals().items
    sides = ((low, point), (point, high))
    return Form(
        kind=Kind.union,
        items=tuple(Form(kind=Kind.tuple, items=ends, mark="()") for ends in sides),
    )


def _group(tokens: list[str], depth: int) -> Form | None:
    """What stands in one pair of brackets."""
    if tokens[0] in _FONTS and _one_pair(tokens[1:]):
        return _read("".join(tokens[2:-1]), depth + 1)
    opener, closer, inner = tokens[0], tokens[-1], tokens[1:-1]
    french = _FRENCH.get(opener + closer)
    if french and not {"[", "]"} & set(inner):
        opener, closer = french
    elif opener not in _OPEN or not _one_pair(tokens):
        return None
    return _grouped(opener, closer, inner, depth)


def _grouped(opener: str, closer: str, inner: list[str], depth: int) -> Form | None:
    if opener in (r"\lfloor", r"\lceil"):
        return None
    if opener == r"\{" and closer == r"\}":
        return _braces(inner, depth)
    parts, found = _split(inner, frozenset([",", ";"]))
    if not found:
        form = _read("".join(inner), depth + 1)
        if (opener, closer) in (("(", ")"), ("{", "}")) or form.kind is Kind.matrix:
            return form
        raise Unreadable("one item in brackets")
    if len(parts) > MOST_ITEMS:
        raise Unreadable("a long tuple")
    if (opener, closer) == ("{", "}"):
        return _read("".join(inner), depth + 1)
    mark = "()" if opener == r"\langle" else opener + closer
    if len(parts) > 2 and mark == "[]":
        mark = "()"
    items = tuple(_read("".join(part), depth + 1) for part in parts)
    return Form(kind=Kind.tuple, items=items, mark=mark)


def _one_pair(tokens: list[str]) -> bool:
    depth = 0
    for place, token in enumerate(tokens):
        if token in _OPEN or token.startswith(r"\begin"):
            depth += 1
        elif token in _CLOSE or token.startswith(r"\end"):
            depth -= 1
        if depth == 0:
            return place == len(tokens) - 1 and place > 0
    return False


def _braces(inner: list[str], depth: int) -> Form:
    if not "".join(inner).strip():
        return Form(kind=Kind.empty)
    for bar in (r"\mid", "|", ":"):
        parts, found = _split(inner, frozenset([bar]))
        if len(found) == 1:
            head = "".join(parts[0]).partition(r"\in")[0]
            if not is_name(head):
                raise Unreadable("a set of expressions")
            form = _read("".join(parts[1]), depth + 1)
            return replace(form, name="") if form.name == name_of(head) else form
    parts, _ = _split(inner, frozenset([",", ";"]))
    if len(parts) > MOST_ITEMS:
        raise Unreadable("a long set")
    items = {normal("".join(part)): part for part in parts}.values()
    forms = [_read("".join(part), depth + 1) for part in items]
    flat = [
        each for form in forms for each in (form.items if form.kind is Kind.listing else [form])
    ]
    return Form(kind=Kind.set, items=tuple(flat))


def _matrix(tokens: list[str], depth: int) -> Form | None:
    match = re.fullmatch(r"\\begin\s*\{([a-z]+)\*?\}", tokens[0])
    if match is None or not tokens[-1].startswith(r"\end") or not _one_pair(tokens):
        return None
    if match.group(1) not in _MATRICES:
        raise Unreadable(f"unknown environment {match.group(1)}")
    inner = tokens[1:-1]
    if match.group(1) == "array" and "}" in inner and inner[0] == "{":
        inner = inner[inner.index("}") + 1 :]
    rows, _ = _split([token for token in inner if token != r"\hline"], frozenset([r"\\"]))
    cells = [_split(row, frozenset(["&"]))[0] for row in rows if "".join(row).strip()]
    if not cells or len({len(row) for row in cells}) != 1 or len(cells) * len(cells[0]) > 100:
        raise Unreadable("a matrix of odd rows")
    items = tuple(_read("".join(cell), depth + 1) for row in cells for cell in row)
    return Form(kind=Kind.matrix, items=items, mark=f"{len(cells)}x{len(cells[0])}")


def _ratio(tokens: list[str], depth: int) -> Form | None:
    tokens = [":" if _ANY_TEXT.sub(r"\1", token).strip() == "to" else token for token in tokens]
    parts, found = _split(tokens, frozenset([":"]))
    if not found or len(parts) > 5:
        return None
    items = tuple(_read("".join(part), depth + 1) for part in parts)
    if not all(item.kind is Kind.leaf for item in items):
        raise Unreadable("a ratio of other things than numbers")
    return Form(kind=Kind.ratio, items=items)


def _plus_minus(tokens: list[str], depth: int) -> Form | None:
    if r"\pm" not in tokens and r"\mp" not in tokens:
        return None
    values = []
    for upper, lower in (("+", "-"), ("-", "+")):
        signs = {r"\pm": upper, r"\mp": lower}
        said = "".join(signs.get(token, token) for token in tokens).strip()
        values.append(_read(re.sub(r"^\+\s*", "", said), depth + 1))
    return _gather(values)
