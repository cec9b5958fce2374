r"""Reads the shape of an answer: list, set, interval, matrix, equation, words, expression."""

import re
from dataclasses import replace
from functools import lru_cache

from rewards.mathematics.clock import clock
from rewards.mathematics.expression import Unreadable, read_expression
from rewards.mathematics.form import Form, Kind, is_infinite, leaf
from rewards.mathematics.names import is_name, name_of
from rewards.mathematics.real_sets import (
    complement,
    intersection,
    is_inequality,
    punctured,
    reals,
    within,
    without_all,
)
from rewards.mathematics.text import clean, normal, number, words
from rewards.mathematics.units import measure
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
_MINUS_SET = re.compile(r"\\mathbb\s*\{\s*R\s*\}\s*-\s*(?=\\\{)")
_ABSOLUTE = re.compile(r"\|[a-z]\|")
_MODULUS = re.compile(
    r"(.*[^\s\\])\s*(?:\\(?:p|b)?mod(?![A-Za-z])\s*\{?\s*([0-9]+)\s*\}?"
    r"|\(\s*(?:\\?(?:text|mathrm)?\{?\s*\\?b?mod\s*\}?)\s*([0-9]+)\s*\))",
    re.DOTALL,
)
_CONDITION = re.compile(
    r"^\s*,?\s*(?:\\(?:text|mathrm)\s*\{\s*(?:if|for|when)\s*\}|if|for|when)(?![A-Za-z])"
)
_TRANSPOSED = re.compile(
    r"(.*[)\]}])\s*\^\s*\{?\s*(?:\\(?:mathrm|mathsf|text)\{)?(?:T|\\top|\\intercal)\s*\}{0,2}",
    re.DOTALL,
)
_FONTS = frozenset([r"\mathbf", r"\boldsymbol", r"\bm", r"\textbf", r"\mathrm", r"\text"])
_MATRICES = frozenset(["pmatrix", "bmatrix", "Bmatrix", "matrix", "smallmatrix", "array"])
_LABEL = re.compile(
    r"(?:\\text(?:bf|it|rm)?\{)?\s*(?:the )?(?:final )?(?:answer|result|solution)(?: is)?"
    r"\s*[:=]?\s*\}?\s*[:=]?\s*"
    r"(?=[^A-Za-z\s])",
    re.IGNORECASE,
)
_TITLE = re.compile(r"^\\text(?:bf|it|rm)?\{\s*([A-Za-z][A-Za-z ]{2,40})\s*[:=]\s*\}\s*(?=\S)")
_DECLARED = re.compile(
    r"\s*(?:[,;(]|\\text\s*\{[ ,;]*(?:for|where|with)?[a-z ]*\})"
    r"\s*([kmn])\s*\\in\s*\\mathbb\s*\{?\s*Z\s*\}?\s*\)?[. ]*$"
)
_MODULUS_WORD = re.compile(r"\\text\s*\{\s*\(?mod\s*\}?\s*([0-9]+)\s*(?:\)\s*\}?|\})$")
_ANY_TEXT = re.compile(r"\\(?:text|textbf|textrm|mathrm|mbox)\s*\{([^{}]*)\}")
_FRENCH = {"][": ("(", ")"), "[[": ("[", ")"), "]]": ("(", "]")}
_INFINITY = {"infinity": r"\infty", "positive infinity": r"\infty", "negative infinity": r"-\infty"}
_EMPTY = frozenset(["empty set", "null set", "no solution", "no solutions"])
_REALS = frozenset(["all real numbers", "all reals", "real numbers"])


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
    text = _TITLE.sub(r"\\text{\1} = ", text.strip())
    said = words(text)
    if said is not None:
        return _spoken(said)
    spoken = _ANY_TEXT.fullmatch(text)  # \text{10 years}
    text = clean(spoken.group(1) if spoken else text)
    label = _LABEL.match(text)
    return _read(_undeclared(text[label.end() :] if label else text), 0)


def _undeclared(text: str) -> str:
    r"""Without `, k \in \mathbb{Z}` behind what k occurs in."""
    match = _DECLARED.search(text)
    used = match and re.search(rf"(?<![A-Za-z]){match.group(1)}(?![A-Za-z])", text[: match.start()])
    return text[: match.start()] if match and used else text


def _spoken(said: str) -> Form:
    if said in _INFINITY:
        return leaf(_INFINITY[said])
    if said in _EMPTY:
        return Form(kind=Kind.empty)
    if said in _REALS:
        return reals()
    return Form(kind=Kind.words, text=said)


def _check(form: Form) -> None:
    """Raise `Unreadable` unless every leaf is an expression."""
    if form.kind is Kind.leaf and number(form.measure.body) is None and not is_infinite(form.text):
        read_expression(form.measure.body)
    for item in form.items:
        _check(item)


def _read(text: str, depth: int) -> Form:
    if depth > MOST_DEPTH:
        raise Unreadable("nested too deep")
    text = _MINUS_SET.sub(r"\\mathbb{R} \\setminus ", text.strip().rstrip(".;, ").strip())
    if not text:
        raise Unreadable("nothing between two signs")
    cut = measure(text)
    if cut is not None and number(cut.body) is not None:
        return leaf(text)
    return _special(text) or _structure(_TOKEN.findall(text), depth) or leaf(text)


def _special(text: str) -> Form | None:
    """What is no expression: words, a time, a set with a sign of its own."""
    said = words(text)
    if said is not None:
        return _spoken(said)
    bare = normal(text)
    if bare == r"\emptyset":
        return Form(kind=Kind.empty)
    if bare == r"\mathbb{R}":
        return reals()
    return clock(_ANY_TEXT.sub(r"\1", text).strip())


def _structure(tokens: list[str], depth: int) -> Form | None:
    for reader in _READERS:
        form = reader(tokens, depth)
        if form is not None:
            return form
    return None


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
    forms = [_read("".join(part), depth + 1) for part in parts]
    one_name = len({form.name for form in forms}) == 1
    if set(found) == {"and"} and one_name and all(is_inequality(form) for form in forms):
        return intersection(forms)
    rest = without_all(forms) if "or" not in found else None
    if rest is not None:
        return rest
    listed = _gather(forms)
    return replace(listed, mark="or") if "or" in found else listed


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
    if set(operators) == {"="}:
        return _equation(sides, depth)
    known = None
    if set(operators) <= set(_FLIPPED):
        known = _interval(sides, operators, depth)
    elif len(operators) == 1 and is_name(sides[0]):
        known = _unequal_or_congruent(sides, operators[0], depth)
    if known is not None:
        return known
    items = tuple(_read(side, depth + 1) for side in sides)
    return Form(kind=Kind.relation, items=items, mark=" ".join(operators))


def _unequal_or_congruent(sides: list[str], operator: str, depth: int) -> Form | None:
    r"""`x \ne 1`, `x \equiv 3 \pmod 7`."""
    if operator not in (r"\ne", r"\equiv"):
        return None
    value = _read(sides[1], depth + 1)
    if operator == r"\ne" and value.kind is Kind.listing:
        value = complement(replace(value, kind=Kind.set)) or value
    elif operator == r"\ne":
        value = punctured(value) if _without_names(value) else value
    expected = Kind.union if operator == r"\ne" else Kind.residue
    return replace(value, name=name_of(sides[0])) if value.kind is expected else None


def _equation(sides: list[str], depth: int) -> Form:
    if len(sides) == 2 and is_name(sides[1]) and not is_name(sides[0]):
        sides = sides[::-1]
    if is_name(sides[0]):
        name, values = name_of(sides[0]), [_read(side, depth + 1) for side in sides[1:]]
        if len(values) == 1:
            return replace(values[0], name=name)
        return Form(kind=Kind.chain, items=tuple(values), name=name)
    items = tuple(_read(side, depth + 1) for side in sides)
    if number(items[-1].measure.body) is not None and all(_without_names(item) for item in items):
        return Form(kind=Kind.chain, items=items)
    return Form(kind=Kind.relation, items=items, mark=" ".join("=" * (len(sides) - 1)))


def _without_names(form: Form) -> bool:
    """Whether a side of an equation is arithmetic: then the equation is true or false by itself."""
    try:
        return form.kind is Kind.leaf and not names_of(read_expression(form.measure.body))
    except Unreadable:
        return False


def _interval(sides: list[str], operators: list[str], depth: int) -> Form | None:
    r"""`2 < x \le 3` and `x > 2` as intervals, if the variable stands alone."""
    if len(sides) == 2 and is_name(sides[1]) and not is_name(sides[0]):
        sides, operators = sides[::-1], [_FLIPPED[operators[0]]]
    upward = {operator in ("<", r"\le") for operator in operators}
    if len(sides) == 2 and is_name(sides[0]):
        bound = _read(sides[1], depth + 1)
        strict = operators[0] in ("<", ">")
        if _ABSOLUTE.fullmatch(normal(sides[0])):
            return within(sides[0], bound, upward == {True}, strict)
        if upward == {True}:
            ends, mark = (leaf(r"-\infty"), bound), "()" if strict else "(]"
        else:
            ends, mark = (bound, leaf(r"\infty")), "()" if strict else "[)"
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
    if items[0] == reals() and len(items) == 2 and found != [r"\cap"]:
        rest = complement(items[1])
        if rest is not None:
            return rest
    return Form(kind=Kind.relation, items=items, mark=" ".join(found))


def _residue(tokens: list[str], depth: int) -> Form | None:
    r"""`3 \pmod 7`, `3 (\text{mod } 7)`."""
    match = _MODULUS.fullmatch(_MODULUS_WORD.sub(r"\\pmod{\1}", "".join(tokens)))
    if match is None:
        return None
    value = _read(match.group(1), depth + 1)
    if value.kind is not Kind.leaf or value.name:
        raise Unreadable("a residue of no number")
    binary = "" if "bmod" not in match.group() else "b"
    modulus = match.group(2) or match.group(3)
    return Form(kind=Kind.residue, items=(value,), text=modulus, mark=binary)


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
    if match.group(1) == "cases":
        return _cases(tokens[1:-1], depth)
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


def _cases(inner: list[str], depth: int) -> Form:
    """A system of equations, or values with their conditions in the order of these."""
    rows = [row for row in _split(inner, frozenset([r"\\"]))[0] if "".join(row).strip()]
    cells = [["".join(cell) for cell in _split(row, frozenset(["&"]))[0]] for row in rows]
    if {len(row) for row in cells} == {1}:
        return _gather([_read(row[0], depth + 1) for row in cells])
    if {len(row) for row in cells} != {2}:
        raise Unreadable("cases of odd rows")
    pairs = sorted((_CONDITION.sub("", row[1]).strip(), row[0]) for row in cells)
    items = tuple(_read(side, depth + 1) for pair in pairs for side in pair)
    return Form(kind=Kind.relation, items=items, mark="cases")


def _scaled(tokens: list[str], depth: int) -> Form | None:
    """A matrix times what stands before it."""
    place = next((i for i, token in enumerate(tokens) if token.startswith(r"\begin")), 0)
    if not place or not _one_pair(tokens[place:]):
        return None
    scalar = "".join(tokens[:place]).strip().removesuffix("*").strip()
    matrix = _matrix(tokens[place:], depth + 1)
    if matrix is None or matrix.kind is not Kind.matrix or not set("({[|").isdisjoint(scalar[-1:]):
        return None
    scalar = "-1" if scalar == "-" else scalar
    return replace(matrix, items=tuple(_times(scalar, item) for item in matrix.items))


def _times(scalar: str, item: Form) -> Form:
    if item.kind is not Kind.leaf or item.name or item.measure.unit:
        raise Unreadable("a matrix of other things than expressions")
    left, right = number(scalar), number(item.text)
    if right and right.value in (0, 1) and not left:
        return leaf(scalar if right.value else "0")
    return leaf(str(left.value * right.value) if left and right else f"({scalar})*({item.text})")


def _transposed(tokens: list[str], depth: int) -> Form | None:
    r"""`(1, 2)^T` and `\begin{pmatrix} 1 & 2 \end{pmatrix}^\top`."""
    match = _TRANSPOSED.fullmatch("".join(tokens))
    if match is None:
        return None
    form = _read(match.group(1), depth + 1)
    if form.kind is Kind.tuple and form.mark in ("()", "[]"):
        return Form(kind=Kind.matrix, items=form.items, mark=f"{len(form.items)}x1")
    if form.kind is not Kind.matrix:
        return None
    rows, columns = (int(size) for size in form.mark.split("x"))
    items = tuple(form.items[i * columns + j] for j in range(columns) for i in range(rows))
    return replace(form, items=items, mark=f"{columns}x{rows}")


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


_READERS = (
    _listing, _relation, _residue, _union, _difference, _transposed, _group, _matrix, _scaled,
    _ratio, _plus_minus,
)  # fmt: skip
