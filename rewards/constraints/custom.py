"""The constraints that are whole tasks of IFBench (`custom:*`)."""

import csv
import re
from datetime import date
from itertools import pairwise

from rewards.constraints.check import Check, Violation, expect, short
from rewards.constraints.lists import AFRICA, CAPITALS
from rewards.constraints.text import bare_words, lines, plain, sentences, spaced_words, trimmed

FEWEST_COUNTRIES, MOST_COUNTRIES = 52, 56  # 54, by some counts fewer or more
BIRTH, DEATH = 1769, 1821  # of Napoleon
_QUESTION = re.compile(r"^[ \t]*\W{0,4}Question\b[ \t]*\d*[.):;]?", re.MULTILINE)
_OPTION = re.compile(r"\s*\W{0,3}[A-Ea-e][.)]\W{0,3}\s*\w")
_NUMBERING = re.compile(r"^\s*(?:\d{1,3}[.)]|[*•-])\s+")
_NOT_TEXT = re.compile(r"[^\w\s]")


def multiples(response: str) -> Violation:
    """14, 21, 28, 35, 42, 49 and no other number."""
    numbers = re.findall(r"\d+", response)
    return expect(numbers == ["14", "21", "28", "35", "42", "49"], f"numbers {numbers[:10]}")


def mcq_count_length(response: str) -> Violation:
    """Four questions, each labelled, with five options and longer than the one before."""
    text = response.strip()
    starts = list(_QUESTION.finditer(text))
    if len(starts) != 4 or starts[0].start() != 0:
        return f"{len(starts)} questions, not 4, or text before the first"
    lengths = []
    ends = [*(start.start() for start in starts[1:]), len(text)]
    for start, end in zip(starts, ends, strict=True):
        body = lines(text[start.end() : end])
        is_option = [_OPTION.match(line) is not None for line in body]
        if sum(is_option) != 5 or is_option[:1] == [True]:
            return f"{sum(is_option)} options, not 5"
        lengths.append(len(" ".join(body[: is_option.index(True)]).strip()))
    grows = all(before < after for before, after in pairwise(lengths))
    return expect(grows, f"questions of {lengths} characters")


def reverse_newline(response: str) -> Violation:
    """The countries of Africa, a line each, from Zimbabwe backwards."""
    # IFBench accepts any 52 lines in this order.
    names = [plain(trimmed(_NUMBERING.sub("", line))).lower() for line in lines(response)]
    start = next((place for place, name in enumerate(names) if "zimbabwe" in name), len(names))
    names = names[start:]
    if not FEWEST_COUNTRIES <= len(set(names)) == len(names) <= MOST_COUNTRIES:
        return f"{len(names)} countries"
    missing = set(AFRICA).difference(names)
    if missing:
        return f"no {min(missing)}"
    return expect(names == sorted(names, reverse=True), "not in reverse order")


def word_reverse(response: str) -> Violation:
    """The answer (bald eagle) with its words in reverse order."""
    words = " ".join(bare_words(response.lower())[::-1])
    return expect("bald eagle" in words, f"backwards it says {short(words)}")


def character_reverse(response: str) -> Violation:
    """The answer (bald eagle) with its letters in reverse order."""
    return expect("elgae dlab" in response.lower(), "no 'elgae dlab'")


def sentence_alphabet(response: str) -> Violation:
    """26 sentences that begin with the letters of the alphabet in order."""
    words = [spaced_words(each) for each in sentences(response.lower())]
    initials = "".join(each[0][0] for each in words if each)
    return expect(initials == "abcdefghijklmnopqrstuvwxyz", f"sentences {short(initials)}")


def european_capitals_sort(response: str) -> Violation:
    """The capitals of Europe north of 45 degrees, in order, divided by commas."""
    # IFBench forgets Kyiv: the list may have it or not.
    text = plain(response).strip().rstrip(".").replace("Kiev", "Kyiv")
    given = [each.strip() for each in text.split(",") if each.strip()]
    without = [capital for capital in CAPITALS if capital != "Kyiv"]
    return expect(given in (list(CAPITALS), without), f"{len(given)} capitals, or another order")


def csv_city(response: str) -> Violation:
    """Seven rows of CSV under a header."""
    header = ["ID", "Country", "City", "Year", "Count"]
    return _table(_comma_rows(response), header, wanted=7)


def csv_special_character(response: str) -> Violation:
    """Fourteen rows of CSV under a header, with a special character in one quoted field."""
    header = ["ProductID", "Category", "Brand", "Price", "Stock"]
    quoted = re.findall(r'"([^"\n]*)"', response.strip().partition("\n")[2])
    special = any(_NOT_TEXT.search(field) for field in quoted)
    found = _table(_comma_rows(response), header, wanted=14)
    return found or expect(special, "no quoted field with a special character")


def csv_quotes(response: str) -> Violation:
    """Three rows under a header, divided by tabs, each field in double quotes."""
    header = ["StudentID", "Subject", "Grade", "Semester", "Score"]
    rows = [[field.strip() for field in line.split("\t")] for line in lines(response.strip())]
    for field in (field for row in rows for field in row):
        if len(field) < 2 or field[0] != '"' or field[-1] != '"':
            return f"the field {short(field)}"
    return _table([[field[1:-1] for field in row] for row in rows], header, wanted=3)


def _comma_rows(response: str) -> list[list[str]]:
    try:
        return list(csv.reader(lines(response.strip()), skipinitialspace=True))
    except csv.Error:  # a field of more than 131,072 characters
        return []


def _table(rows: list[list[str]], header: list[str], wanted: int) -> Violation:
    if not rows or [name.strip() for name in rows[0]] != header:
        return "no such header"
    if any(len(row) != len(header) for row in rows):
        return f"a row without {len(header)} fields"
    return expect(len(rows) == wanted + 1, f"{len(rows) - 1} rows, not {wanted}")


def date_format_list(response: str) -> Violation:
    """Dates of Napoleon's life (YYYY-MM-DD), divided by commas."""
    for text in map(str.strip, response.split(",")):
        try:
            day = date.fromisoformat(text if len(text) == 10 else "")
        except ValueError:
            return f"{short(text)} is no date"
        if not BIRTH <= day.year <= DEATH:
            return f"{text} is not in Napoleon's life"
    return None


CHECKS: dict[str, Check] = {
    "custom:multiples": multiples,
    "custom:mcq_count_length": mcq_count_length,
    "custom:reverse_newline": reverse_newline,
    "custom:word_reverse": word_reverse,
    "custom:character_reverse": character_reverse,
    "custom:sentence_alphabet": sentence_alphabet,
    "custom:european_capitals_sort": european_capitals_sort,
    "custom:csv_city": csv_city,
    "custom:csv_special_character": csv_special_character,
    "custom:csv_quotes": csv_quotes,
    "custom:date_format_list": date_format_list,
}
