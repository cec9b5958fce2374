"""Constraints on the layout: markdown, JSON, templates, lines, options."""

import json
import re
import string
from itertools import pairwise

from rewards.constraints.check import Check, Violation, expect, short
from rewards.constraints.lists import SMALL_WORDS
from rewards.constraints.text import (
    WORD,
    bare_words,
    bullets,
    ends_with_emoji,
    joined_words,
    lines,
    sentence_mark,
    sentences,
)

ANSWERS = ("My answer is yes.", "My answer is no.", "My answer is maybe.")
LABELS = ("My Answer:", "My Conclusion:", "Future Outlook:")
_PLACEHOLDER = re.compile(r"\[([^\[\]\n]*)\]")
_HIGHLIGHT = re.compile(r"\*{1,3}[^\s*][^\n*]*\*{1,3}")
_TITLE = re.compile(r"<<([^<>\n]+)>>")
_FENCE = re.compile(r"```(?:json)?", re.IGNORECASE)
_HEADING = re.compile(r"^#{2,6}[ \t].*$", re.MULTILINE)
_ITALICS = re.compile(r"<(i|em)>", re.IGNORECASE)
_LETTERED = re.compile(r"\W*a\W*b\W*c\W*", re.IGNORECASE)


def number_placeholders(response: str, *, num_placeholders: int) -> Violation:
    """At least so many placeholders in square brackets."""
    # Brackets without anything in them are none; IFEval counts them.
    count = sum(1 for each in _PLACEHOLDER.findall(response) if each.strip())
    return expect(count >= num_placeholders, f"{count} placeholders, not {num_placeholders}")


def number_bullet_lists(response: str, *, num_bullets: int) -> Violation:
    """Exactly so many bullets, `* ` or `- `."""
    # A rule (`---`) and a line in italics are no bullets; IFEval counts them.
    count = bullets(response)
    return expect(count == num_bullets, f"{count} bullets, not {num_bullets}")


def constrained_response(response: str) -> Violation:
    """One of `My answer is yes.`, `... no.` and `... maybe.` occurs."""
    # Exactly one: IFEval accepts a response that gives all three.
    given = [answer for answer in ANSWERS if answer in response]
    return expect(len(given) == 1, f"{len(given)} of the answers, not 1")


def number_highlighted_sections(response: str, *, num_highlights: int) -> Violation:
    """At least so many `*highlights*`, with one star or more."""
    count = len(_HIGHLIGHT.findall(response))
    return expect(count >= num_highlights, f"{count} highlights, not {num_highlights}")


def multiple_sections(response: str, *, section_spliter: str, num_sections: int) -> Violation:
    """At least so many sections, marked by a keyword and their number (`SECTION 1`)."""
    # The same number twice is one section; IFEval counts every mention.
    mark = re.compile(rf"(?<!\w){re.escape(section_spliter.strip())}\s?(\d{{1,9}})(?!\d)")
    count = len({int(number) for number in mark.findall(response)})
    return expect(count >= num_sections, f"{count} sections, not {num_sections}")


def json_format(response: str) -> Violation:
    """The whole response is JSON, within code fences or not."""
    text = response.strip()
    fence = _FENCE.match(text)
    if fence is not None:
        text = text[fence.end() :].removesuffix("```")
    try:
        json.loads(text)
    except (ValueError, RecursionError) as error:
        return f"no JSON: {str(error)[:60]}"
    return None


def title(response: str) -> Violation:
    """A title in double angular brackets."""
    titles = _TITLE.findall(response)
    return expect(any(each.strip() for each in titles), "no <<title>>")


def options(response: str, *, options: str) -> Violation:
    """The response is one of the options; lettered ones (`a), b)`) have to be written alike."""
    # IFBench also parts `or` within a word (`north/south` is safe, `for` is not).
    parted = options.split("/") if "/" in options else re.split(r"\s+or\s+|,", options)
    choices = [choice.strip() for choice in parted if choice.strip()]
    said = response.strip()
    if _LETTERED.match(options):
        return expect(said in choices, f"it says {short(said)}")
    edges = string.punctuation + string.whitespace
    matched = said.strip(edges).lower() in {choice.strip(edges).lower() for choice in choices}
    return expect(matched, f"it says {short(said)}")


def newline(response: str) -> Violation:
    """Each word has a line of its own."""
    for line in lines(response):
        if len(bare_words(line)) > 1:
            return f"the line {short(line)}"
    return expect(bool(bare_words(response)), "no words")


def emoji(response: str) -> Violation:
    """Each sentence ends with an emoji, before or after its mark."""
    found = sentences(response)
    for sentence in found:
        if not ends_with_emoji(sentence):
            return f"none after {short(sentence[-40:])}"
    return expect(bool(found), "no sentences")


def title_case(response: str) -> Violation:
    """Each major word begins with a capital."""
    # Articles, conjunctions and short prepositions may be small; IFBench refuses them.
    words = [word for word in joined_words(response) if word[0].isalpha()]
    for word in words:
        if word[0].islower() and word[1:] == word[1:].lower() and word not in SMALL_WORDS:
            return f"{short(word)} is small"
    capitals = len(words) > 3 and response.isupper()
    return expect(bool(words) and not capitals, "all capitals" if capitals else "no words")


def output_template(response: str) -> Violation:
    """The three labels of the template in order, with text after each."""
    places = [response.find(label) for label in LABELS]
    if min(places) < 0 or places != sorted(places):
        return "the labels are missing or out of order"
    ends = [*places[1:], len(response)]
    for label, start, end in zip(LABELS, places, ends, strict=True):
        if not WORD.search(response[start + len(label) : end]):
            return f"nothing after {label!r}"
    return None


def no_whitespace(response: str) -> Violation:
    """No space, tab or newline."""
    return expect(not any(map(str.isspace, response)), "it holds whitespace")


def line_indent(response: str) -> Violation:
    """Each of at least two lines is indented further than the one before."""
    indents = [len(line) - len(line.lstrip(" \t")) for line in lines(response)]
    stairs = all(before < after for before, after in pairwise(indents))
    return expect(stairs and len(indents) >= 2, f"indents {indents[:10]}")


def item_list(response: str, *, sep: str) -> Violation:
    """At least two items that begin with the separator."""
    # A separator that also occurs within prose has to begin a line; IFBench counts any hyphen.
    mark = sep.strip()
    if len(mark) == 1:
        count = sum(1 for line in lines(response) if line.lstrip().startswith(mark))
    else:
        count = response.count(mark) if mark else 0
    return expect(count >= 2, f"{count} items, not 2")


def thesis(response: str) -> Violation:
    """Each section under a heading, or else the response, has an HTML-italic thesis and text."""
    pieces = _HEADING.split(response)
    sections = [piece.strip() for piece in pieces[1:] if piece.strip()]
    for section in sections:
        if _ITALICS.match(section) is None:
            return f"a section begins with {short(section)}"
    for section in sections or [response]:
        if not _has_thesis(section):
            return "no thesis in italics with text after it"
    return None


def _has_thesis(section: str) -> bool:
    start = _ITALICS.search(section)
    if start is None:
        return False
    end = section.lower().find(f"</{start.group(1).lower()}>", start.end())
    return end >= 0 and bool(
        section[start.end() : end].strip() and section[end + 5 :].strip(" >\n")
    )


def sub_bullets(response: str) -> Violation:
    """At least one bullet `*`, and at least one line with `-` under each."""
    has_sub = True
    count = 0
    for line in map(str.lstrip, lines(response)):
        if line.startswith("*") and not line.startswith("**"):
            if not has_sub:
                return f"no sub-bullet under bullet {count}"
            count, has_sub = count + 1, False
        elif line.startswith("-"):
            has_sub = True
    return expect(count > 0 and has_sub, f"no sub-bullet under bullet {count}" if count else "no *")


def no_bullets_bullets(response: str) -> Violation:
    """At least two sentences that end in a period, then at least two bullets `*`."""
    # Blank lines and text may follow; IFBench refuses even a newline at the end.
    before: list[str] = []
    count = 0
    for line in map(str.lstrip, lines(response)):
        if line.startswith("*") and not line.startswith("**"):
            count += 1
        elif count == 0:
            before.append(line)
    ended = sum(1 for each in sentences("\n".join(before)) if sentence_mark(each) == ".")
    return expect(ended >= 2 and count >= 2, f"{ended} sentences, then {count} bullets")


CHECKS: dict[str, Check] = {
    "detectable_content:number_placeholders": number_placeholders,
    "detectable_format:number_bullet_lists": number_bullet_lists,
    "detectable_format:constrained_response": constrained_response,
    "detectable_format:number_highlighted_sections": number_highlighted_sections,
    "detectable_format:multiple_sections": multiple_sections,
    "detectable_format:json_format": json_format,
    "detectable_format:title": title,
    "format:options": options,
    "format:newline": newline,
    "format:emoji": emoji,
    "format:title_case": title_case,
    "format:output_template": output_template,
    "format:no_whitespace": no_whitespace,
    "format:line_indent": line_indent,
    "format:list": item_list,
    "format:thesis": thesis,
    "format:sub-bullets": sub_bullets,
    "format:no_bullets_bullets": no_bullets_bullets,
}
