r"""Compares an answer's form with the gold's: shape first, then its expressions one by one.

A list answers a list, an interval an interval with the same ends, and only one value answers one
value. Whatever an answer says beside that, such as the other sides of an equation, must be true.
"""

import re
from dataclasses import replace
from fractions import Fraction
from itertools import combinations
from typing import Protocol

from rewards.mathematics.clock import same_time
from rewards.mathematics.expression import Node, Unreadable, constant, negative, read_expression
from rewards.mathematics.forms import Form, Kind
from rewards.mathematics.text import Number, normal, number, same_number
from rewards.mathematics.units import Measure, conversion
from rewards.mathematics.values import names_of, same_rational

UNEVALUATED = (
    r"\int", r"\iint", r"\oint", r"\sum", r"\prod", r"\lim", r"\gcd", r"\lcm", r"\max", r"\min",
    r"\det", r"\bmod", r"\pmod", r"\mod", r"\deg", r"\sup", r"\inf", r"\arg", r"\Re", r"\Im",
    r"\frac{d}",
)  # fmt: skip
"""Operators that restate a question; an answer may hold one only if the gold answer does."""

_CONSTANT = re.compile(r"\+ ?C$")
_LETTER_C = re.compile(r"(?<![A-Za-z\\])c(?![A-Za-z])")
_BASED = re.compile(r"([0-9]+)_\{?[0-9]{1,2}\}?")
_UNORDERED = frozenset([Kind.listing, Kind.set, Kind.union])
_VECTOR = frozenset(["()", "[]"])


class Undecided(Exception):
    """Only algebra can tell."""


class Algebra(Protocol):
    """What compares two expressions. An implementation without algebra raises `Undecided`."""

    def equal(self, gold: Node, answer: Node) -> bool:
        """Whether they have one value everywhere."""

    def rounds(self, exact: Node, rounded: Number) -> bool:
        """Whether a decimal is a rounding of a constant."""

    def proportional(self, gold: Node, answer: Node, *, positive: bool) -> bool:
        """Whether `gold = 0` and `answer = 0` say the same."""


class NoAlgebra:
    """Decides rational functions exactly, and leaves the rest."""

    def equal(self, gold: Node, answer: Node) -> bool:
        """Raises `Undecided` for what is no rational function."""
        verdict = same_rational(gold, answer)
        if verdict is None:
            raise Undecided
        return verdict

    def rounds(self, exact: Node, rounded: Number) -> bool:
        """Raises `Undecided`."""
        raise Undecided

    def proportional(self, gold: Node, answer: Node, *, positive: bool) -> bool:
        """Raises `Undecided`."""
        raise Undecided


def same(gold: Form, answer: Form, algebra: Algebra) -> bool:
    """Whether the answer is the gold. Raises what `algebra` raises."""
    if gold.kind is Kind.chain:
        gold = _named(gold.items[-1], gold.name)
    if answer.kind is Kind.chain:
        last = answer.items[-1]
        true = all(same(item, last, algebra) for item in answer.items[:-1])
        return true and same(gold, _named(last, answer.name), algebra)
    if Kind.relation in (gold.kind, answer.kind):
        return _same_relation(gold, answer, algebra)
    if gold.name and answer.name and not _same_name(gold.name, answer.name):
        return False
    if gold.kind in _UNORDERED or answer.kind in _UNORDERED:
        return _same_collection(gold, answer, algebra)
    if gold.kind is Kind.leaf and answer.kind is Kind.leaf:
        return _same_leaf(gold.measure, answer.measure, algebra)
    if Kind.ratio in (gold.kind, answer.kind):
        return _same_ratio(gold, answer, algebra)
    if gold.kind is Kind.time and answer.kind is Kind.time:
        return same_time(gold, answer)
    if Kind.residue in (gold.kind, answer.kind):
        return _same_residue(gold, answer, algebra)
    return _same_shape(gold, answer) and _same_items(gold, answer, algebra)


def _same_residue(gold: Form, answer: Form, algebra: Algebra) -> bool:
    r"""`3 \pmod 7` is `10 \pmod 7`, and answers a gold 3; `3 \bmod 7` is a question restated."""
    if gold.kind is answer.kind:
        values = [number(form.items[0].text) for form in (gold, answer)]
        if gold.text != answer.text:
            return False
        if values[0] and values[1]:
            return (values[0].value - values[1].value) % int(gold.text) == 0
        return same(gold.items[0], answer.items[0], algebra)
    residue, plain = (gold, answer) if gold.kind is Kind.residue else (answer, gold)
    found = number(residue.items[0].text)
    if plain.kind is not Kind.leaf or found is None or (residue is answer and residue.mark):
        return False
    if not 0 <= found.value < int(residue.text):
        return False
    if residue is gold:
        return same(gold.items[0], answer, algebra)
    return same(gold, answer.items[0], algebra)


def _named(form: Form, name: str) -> Form:
    return replace(form, name=name)


def _same_name(gold: str, answer: str) -> bool:
    """`y = ...` may stand for `f(x) = ...`, no other letter for a letter."""
    calls = [name.endswith(")") and not name.startswith("(") for name in (gold, answer)]
    return gold == answer or (calls[0] != calls[1] and "y" in (gold, answer))


def _same_shape(gold: Form, answer: Form) -> bool:
    vectors = {Kind.tuple, Kind.matrix}
    if gold.kind is not answer.kind and {gold.kind, answer.kind} == vectors:
        table, row = (gold, answer) if gold.kind is Kind.matrix else (answer, gold)
        return "1" in table.mark.split("x") and row.mark in _VECTOR
    return (gold.kind, gold.mark, gold.text) == (answer.kind, answer.mark, answer.text)


def _same_items(gold: Form, answer: Form, algebra: Algebra) -> bool:
    return len(gold.items) == len(answer.items) and all(
        _same_part(left, right, algebra)
        for left, right in zip(_in_order(gold), _in_order(answer), strict=True)
    )


def _same_part(gold: Form, answer: Form, algebra: Algebra) -> bool:
    r"""Like `same`, but `\frac{6}{2}` is 3: in a tuple it is no question restated."""
    if gold.kind is Kind.leaf and answer.kind is Kind.leaf and answer.text.find("frac") >= 0:
        left, right = number(gold.text), number(answer.text)
        if left and right and not left.percent and not right.percent and left.value == right.value:
            return not gold.name or not answer.name or _same_name(gold.name, answer.name)
    return same(gold, answer, algebra)


def _same_collection(gold: Form, answer: Form, algebra: Algebra) -> bool:
    """Lists, sets and unions in any order. One element alone stands for its set."""
    if Kind.tuple in (gold.kind, answer.kind) and not _interval_like(gold, answer):
        tuple_, other = (gold, answer) if gold.kind is Kind.tuple else (answer, gold)
        point = tuple_.mark == "()" and (not tuple_.name or tuple_.name.startswith("("))
        if not point or other.kind is not Kind.listing or other.mark == "or":
            return False
        return _same_items(_anonymous(gold), _anonymous(answer), algebra)
    if answer.mark == "system" and gold.name and not _indexed(gold.name, answer):
        return False
    if Kind.empty in (gold.kind, answer.kind) or {gold.kind, answer.kind} == {Kind.set, Kind.union}:
        return False
    left = gold.items if gold.kind in _UNORDERED else (gold,)
    right = list(answer.items if answer.kind in _UNORDERED else (answer,))
    if len(left) != len(right):
        return False
    compare = _same_part if len(left) > 1 else same
    for item in left:
        place = next((i for i, each in enumerate(right) if compare(item, each, algebra)), None)
        if place is None:
            return False
        right.pop(place)
    return True


def _interval_like(gold: Form, answer: Form) -> bool:
    """Whether the tuple is the one element of the other side."""
    other = answer if gold.kind is Kind.tuple else gold
    return len(other.items) == 1


def _indexed(name: str, system: Form) -> bool:
    """Whether all are values of one unknown: `x_1 = 2, x_2 = 3`."""
    bases = {item.name.partition("_")[0] for item in system.items}
    return bases == {name.partition("_")[0]}


def _anonymous(form: Form) -> Form:
    """Without the names of a system's values: `y = 2, x = 1` answers `(1, 2)`."""
    return Form(kind=form.kind, items=tuple(_named(item, "") for item in _in_order(form)))


def _in_order(form: Form) -> tuple[Form, ...]:
    """The items; x before y before z if they are so named."""
    if len(form.items) > 1 and all(item.name in ("x", "y", "z") for item in form.items):
        return tuple(sorted(form.items, key=lambda item: item.name))
    return form.items


def _same_ratio(gold: Form, answer: Form, algebra: Algebra) -> bool:
    """`6:8` is `3:4`, and the fraction 3/4."""
    left, right = _terms(gold), _terms(answer)
    if left is None or right is None or len(left) != len(right):
        return False
    return all(
        algebra.equal(Node("multiply", (left[i], right[j])), Node("multiply", (left[j], right[i])))
        for i, j in combinations(range(len(left)), 2)
    )


def _terms(form: Form) -> list[Node] | None:
    if form.kind is Kind.ratio:
        try:
            return [read_expression(item.measure.body) for item in form.items]
        except Unreadable:
            return None
    found = number(form.measure.body) if form.kind is Kind.leaf else None
    if found is None or not found.fraction or form.measure.unit:
        return None
    return [constant(found.value.numerator), constant(found.value.denominator)]


def _same_relation(gold: Form, answer: Form, algebra: Algebra) -> bool:
    """Equations and inequalities: side by side, or as multiples of one another."""
    if gold.kind is answer.kind and gold.mark == answer.mark and _same_items(gold, answer, algebra):
        return True
    if gold.kind is Kind.leaf and not gold.name and set(answer.mark.split()) == {"="}:
        return all(same(gold, item, algebra) for item in answer.items)  # (x+1)^2 = x^2+2x+1
    left, right = _residual(gold), _residual(answer)
    if left is None or right is None or left[1] != right[1]:
        return False
    if gold.kind is Kind.leaf and not names_of(read_expression(gold.measure.body)):
        return False  # `2x = 10` is not yet `x = 5`
    return algebra.proportional(left[0], right[0], positive=left[1] != "=")


def _residual(form: Form) -> tuple[Node, str] | None:
    r"""`left - right` of an equation or, with `<` or `\le`, of an inequality; None for the rest."""
    try:
        if form.kind is Kind.leaf and form.name:
            sides, mark = [form.name, form.measure.body], "="
            sides[0] = "y" if form.name.endswith(")") else form.name
        elif form.kind is Kind.relation and len(form.items) == 2:
            if any(item.kind is not Kind.leaf or item.name for item in form.items):
                return None
            sides, mark = [item.text for item in form.items], form.mark
        else:
            return None
        left, right = (read_expression(side) for side in sides)
    except Unreadable:
        return None
    if mark in (">", r"\ge"):
        left, right, mark = right, left, {">": "<", r"\ge": r"\le"}[mark]
    if mark not in ("=", "<", r"\le"):
        return None
    return Node("add", (left, negative(right))), mark


def _same_leaf(gold: Measure, answer: Measure, algebra: Algebra) -> bool:
    factor = conversion(gold.unit, answer.unit)
    if factor is None or (r"\pi" in gold.body and gold.unit != answer.unit == "degree"):
        return False  # an angle of pi is in radians, unless the gold says otherwise
    factor *= Fraction(answer.scale, gold.scale)
    if factor == 1 and normal(gold.body) == normal(answer.body):
        return True
    gold_number, answer_number = number(gold.body), number(answer.body)
    if gold_number is None:
        return factor == 1 and _same_expression(gold.body, answer.body, algebra)
    if answer_number is None:
        return False  # a sum or another restated question
    if factor == 1:
        return same_number(answer_number, gold_number)
    alike = answer_number.percent == gold_number.percent
    return alike and answer_number.value * factor == gold_number.value


def _same_expression(gold: str, answer: str, algebra: Algebra) -> bool:
    if r"\infty" in gold or r"\infty" in answer:
        return False  # the same text is known to be equal
    if any(operator in answer and operator not in gold for operator in UNEVALUATED):
        return False
    based = _BASED.fullmatch(normal(gold))
    if based and answer.isascii() and answer.isdigit():
        return answer == based.group(1)  # the base, like a unit, may be left out
    if (
        _CONSTANT.search(gold)
        and re.search(r"\+ ?c$", answer)
        and len(_LETTER_C.findall(answer)) == 1
    ):
        answer = answer[:-1] + "C"  # of integration
    exact, rounded = read_expression(gold), number(answer)
    if rounded is not None and rounded.decimals and not names_of(exact):
        return algebra.rounds(exact, rounded) or algebra.equal(exact, constant(rounded.value))
    try:
        return algebra.equal(exact, read_expression(answer))
    except Unreadable:
        return False
