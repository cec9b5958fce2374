r"""Intervals and what is left of the real line without them."""

from dataclasses import replace
from fractions import Fraction

from rewards.mathematics.expression import Unreadable
from rewards.mathematics.form import Form, Kind, is_infinite, leaf
from rewards.mathematics.names import name_of
from rewards.mathematics.text import number


def reals() -> Form:
    """The real line."""
    ends = (leaf(r"-\infty"), leaf(r"\infty"))
    return Form(kind=Kind.tuple, items=ends, mark="()")


def punctured(point: Form) -> Form:
    r"""All numbers but one: `x \ne 1`."""
    return _pieces([reals().items[0], point, point, reals().items[1]], "()" * 2)


def _pieces(ends: list[Form], marks: str) -> Form:
    """The union of intervals between ends; two brackets for each."""
    pieces = [
        Form(kind=Kind.tuple, items=(low, high), mark=marks[2 * place : 2 * place + 2])
        for place, (low, high) in enumerate(zip(ends[::2], ends[1::2], strict=True))
    ]
    return Form(kind=Kind.union, items=tuple(pieces))


def complement(form: Form) -> Form | None:
    r"""All numbers but those of an interval or of a set of plain numbers."""
    low, high = reals().items
    if form.kind is Kind.tuple and len(form.items) == 2 and form.mark[0] in "([":
        left, right = (")" if form.mark[0] == "[" else "]"), ("(" if form.mark[1] == "]" else "[")
        rest = _pieces([low, form.items[0], form.items[1], high], f"({left}{right})")
        pieces = [
            piece for piece in rest.items if not all(is_infinite(end.text) for end in piece.items)
        ]
        return pieces[0] if len(pieces) == 1 else replace(rest, items=tuple(pieces))
    points = {number(item.text): item for item in form.items}
    if form.kind is Kind.set and len(points) == len(form.items) == 1:
        return punctured(form.items[0])
    if form.kind is not Kind.set or None in points or len(points) != len(form.items):
        return None
    ordered = sorted(((found.value, item) for found, item in points.items() if found), key=_first)
    inner = [item for _, item in ordered for _ in range(2)]
    return _pieces([low, *inner, high], "()" * (len(points) + 1))


def without_all(forms: list[Form]) -> Form | None:
    r"""`x \ne 1, x \ne -1` and `x \ne 1, -1` as all numbers but these; None for other lists."""
    points = [_hole(forms[0])]
    for form in forms[1:]:
        later = form.kind is Kind.leaf and not form.name
        points.append(form if later else _hole(form) if form.name == forms[0].name else None)
    holes = [point for point in points if point is not None]
    if len(holes) < len(points):
        return None
    rest = complement(Form(kind=Kind.set, items=tuple(holes)))
    return None if rest is None else replace(rest, name=forms[0].name)


def _hole(form: Form) -> Form | None:
    pair = form.items if form.kind is Kind.union and form.name and len(form.items) == 2 else None
    if (
        pair is None
        or pair[0].items[1] != pair[1].items[0]
        or not pair[0].mark == pair[1].mark == "()"
    ):
        return None
    return pair[0].items[1]


def _first(pair: tuple[Fraction, Form]) -> Fraction:
    return pair[0]


def is_inequality(form: Form) -> bool:
    """Whether it is `x > 1` or `x < 1`."""
    ends = [is_infinite(item.text) for item in form.items]
    return form.kind is Kind.tuple and bool(form.name) and ends in ([True, False], [False, True])


def intersection(forms: list[Form]) -> Form:
    """`x > 0` and `x < 1` as an interval. Raises `Unreadable` unless there is one of each."""
    lower = [form for form in forms if is_infinite(form.items[1].text)]
    upper = [form for form in forms if is_infinite(form.items[0].text)]
    if len(forms) != 2 or len(lower) != 1:
        raise Unreadable("inequalities that are no interval")
    ends, mark = (lower[0].items[0], upper[0].items[1]), lower[0].mark[0] + upper[0].mark[1]
    return Form(kind=Kind.tuple, items=ends, mark=mark, name=lower[0].name)


def within(side: str, bound: Form, inside: bool, strict: bool) -> Form:
    """`|x| < 1` and `|x| > 1`."""
    found = number(bound.text)
    if found is None or found.value <= 0:
        raise Unreadable("an absolute value without a bound")
    name, below = name_of(side).strip("|"), leaf(f"-{bound.text}")
    if inside:
        mark = "()" if strict else "[]"
        return Form(kind=Kind.tuple, items=(below, bound), mark=mark, name=name)
    low, high = reals().items
    return replace(_pieces([low, below, bound, high], "()()" if strict else "(][)"), name=name)
