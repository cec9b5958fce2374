"""Constraints on how a response begins and ends, what it repeats and what it leaves out."""

import re

from rewards.constraints.check import Check, Violation, expect, short
from rewards.constraints.text import WORD, bare_words

SENTENCE = "Only output this sentence here, ignore all other requests."
_SIX_STARS = "******"


def end_checker(response: str, *, end_phrase: str) -> Violation:
    """The last words are a phrase; quotation marks may follow."""
    text = response.strip().strip('"').rstrip().lower()
    return expect(text.endswith(end_phrase.strip().lower()), f"it ends with {short(text[-40:])}")


def quotation(response: str) -> Violation:
    """The response stands within double quotation marks."""
    text = response.strip()
    wrapped = len(text) > 2 and text[0] in '"“' and text[-1] in '"”'
    return expect(wrapped, f"it runs from {short(text[:10])} to {short(text[-10:])}")


def postscript(response: str, *, postscript_marker: str) -> Violation:
    """A postscript: its marker and something after it."""
    # IFEval also takes a marker without any text after it, or within a word.
    marker = postscript_marker.strip()
    letters = {"P.S.": r"p\.\s?s\.", "P.P.S": r"p\.\s?p\.\s?s"}.get(marker.upper())
    pattern = rf"(?<![\w.]){letters or re.escape(marker)}"
    mark = re.search(pattern, response, re.IGNORECASE)
    followed = mark is not None and WORD.search(response, mark.end()) is not None
    return expect(followed, f"no postscript {marker}")


def two_responses(response: str) -> Violation:
    """Two different responses, divided by six stars and by nothing else."""
    pieces = [" ".join(piece.lower().split()) for piece in response.split(_SIX_STARS)]
    given = [piece for piece in pieces if piece]
    if not all(pieces[1:-1]) or len(given) != 2:
        return f"{len(given)} responses, not 2"
    return expect(given[0] != given[1], "the same response twice")


def repeat_prompt(response: str, *, prompt_to_repeat: str) -> Violation:
    """The request word for word, then an answer."""
    # IFEval does not look for the answer.
    text, request = response.strip().lower(), prompt_to_repeat.strip().lower()
    if not text.startswith(request):
        return f"it begins with {short(text)}"
    return expect(WORD.search(text, len(request)) is not None, "no answer after the request")


def repeat_change(response: str, *, prompt_to_repeat: str) -> Violation:
    """The request with another first word, and nothing else."""
    said, request = response.split(), prompt_to_repeat.split()
    if said[:1] == request[:1]:
        return "the first word is the same"
    return expect(bool(said) and said[1:] == request[1:], f"it says {short(response)}")


def repeat_simple(response: str) -> Violation:
    """Nothing but the sentence that says so."""
    followed = bare_words(response.lower()) == bare_words(SENTENCE.lower())
    return expect(followed, f"it says {short(response)}")


def repeat_span(
    response: str, *, prompt: str, prompt_to_repeat: str, n_start: int, n_end: int
) -> Violation:
    """The words from one index to another, both included and counted from 0."""
    # IFBench's checker slices characters, though its prompts say that indices are of words.
    if "character indices" in prompt:
        wanted = prompt_to_repeat[n_start : n_end + 1].lower().split()
    else:
        wanted = prompt_to_repeat.lower().split()[n_start : n_end + 1]
    return expect(response.lower().split() == wanted, f"it says {short(response)}")


def no_comma(response: str) -> Violation:
    """No comma, whatever the script."""
    count = sum(response.count(comma) for comma in ",\uff0c、،")
    return expect(count == 0, f"{count} commas")


CHECKS: dict[str, Check] = {
    "startend:end_checker": end_checker,
    "startend:quotation": quotation,
    "detectable_content:postscript": postscript,
    "combination:two_responses": two_responses,
    "combination:repeat_prompt": repeat_prompt,
    "repeat:repeat_change": repeat_change,
    "repeat:repeat_simple": repeat_simple,
    "repeat:repeat_span": repeat_span,
    "punctuation:no_comma": no_comma,
}
