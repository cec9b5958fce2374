"""Constraints on brackets within brackets and quotes within quotes."""

from collections.abc import Callable

from rewards.constraints.check import Check, Violation, expect, short
from rewards.constraints.text import WORD

Step = tuple[str, bool, bool]  # kind of the sign, whether it may open, whether it may close


def parentheses(response: str) -> Violation:
    """Brackets five levels deep, each closed by its own kind."""
    # IFBench is content when the innermost of five is closed.
    return _nesting(response, _is_bracket, wanted=5)


def quotes(response: str) -> Violation:
    """Quotes three levels deep, double and single ones in turn; apostrophes are none."""
    return _nesting(response, _is_quote, wanted=3)


def _is_bracket(text: str, place: int) -> Step | None:
    sign = text[place]
    opening = "([{".find(sign)
    if opening >= 0:
        return ")]}"[opening], True, False
    return (sign, False, True) if sign in ")]}" else None


def _is_quote(text: str, place: int) -> Step | None:
    sign = text[place]
    kind = {"“": '"', "”": '"', "\u2018": "'", "\u2019": "'"}.get(sign, sign)
    if kind not in "\"'":
        return None
    after_word = place > 0 and text[place - 1].isalnum()
    before_word = text[place + 1 : place + 2].isalnum()
    if kind == "'" and after_word and before_word:
        return None
    return kind, sign not in "”\u2019" and not (kind == "'" and after_word), sign not in "“\u2018"


def _nesting(text: str, read: Callable[[str, int], Step | None], wanted: int) -> Violation:
    open_signs: list[tuple[str, int]] = []  # kind, and the levels closed within
    deepest = 0
    for place in range(len(text)):
        step = read(text, place)
        if step is None:
            continue
        kind, may_open, may_close = step
        if may_close and open_signs and open_signs[-1][0] == kind:
            height = open_signs.pop()[1] + 1
            deepest = max(deepest, height)
            if open_signs:
                outer, inner = open_signs[-1]
                open_signs[-1] = (outer, max(inner, height))
        elif may_open:
            open_signs.append((kind, 0))
        elif kind not in "\"'":
            open_signs.clear()
    return expect(deepest >= wanted, f"{deepest} levels, not {wanted}")


def quote_unquote(response: str) -> Violation:
    """After each quoted phrase come words that are not quoted."""
    text = response.replace("“", '"').replace("”", '"').replace("'\"'", "")
    pieces = text.split('"')
    for quoted, following in zip(pieces[1::2], pieces[2::2], strict=False):
        if not WORD.search(following):
            return f"nothing after {short(quoted)}"
    return None


CHECKS: dict[str, Check] = {
    "format:parentheses": parentheses,
    "format:quotes": quotes,
    "format:quote_unquote": quote_unquote,
}
