"""Constraints that count: words, sentences, paragraphs, numbers, and shares of them."""

import re

from rewards.constraints.check import Check, Relation, Violation, compare, expect, short
from rewards.constraints.lists import CONJUNCTIONS, PRONOUNS, STOP_WORDS
from rewards.constraints.text import (
    WORD,
    bare_words,
    paragraphs,
    sentence_mark,
    sentences,
    spaced_words,
    word_count,
)

_ASCII_PUNCTUATION = re.compile(r"[!-/:-@\[-`{-~]+")
_DIVIDER = re.compile(r"\*\*\*")
_JAPANESE = re.compile(r"[\u3040-\u30ff\u4e00-\u9fff]")
_FIRST_WORD = re.compile(r"[\W_]*(\w+(?:['\u2019-]\w+)*)")


def number_words(response: str, *, num_words: int, relation: Relation) -> Violation:
    """How many words."""
    return compare(word_count(response), relation, num_words, "words")


def word_count_range(response: str, *, min_words: int, max_words: int) -> Violation:
    """Between two numbers of words, both included."""
    count = word_count(response)
    return expect(min_words <= count <= max_words, f"{count} words, not {min_words}-{max_words}")


def unique_word_count(response: str, *, N: int) -> Violation:
    """At least N different words."""
    count = len(set(spaced_words(response.lower())))
    return expect(count >= N, f"{count} different words, not {N}")


def number_sentences(response: str, *, num_sentences: int, relation: Relation) -> Violation:
    """How many sentences."""
    return compare(len(sentences(response)), relation, num_sentences, "sentences")


def number_paragraphs(response: str, *, num_paragraphs: int) -> Violation:
    """Exactly so many paragraphs, divided by `***`; only the first and last piece may be empty."""
    pieces = [piece.strip() for piece in _DIVIDER.split(response)]
    if not all(pieces[1:-1]):
        return "an empty paragraph"
    count = sum(1 for piece in pieces if piece)
    return expect(count == num_paragraphs, f"{count} paragraphs, not {num_paragraphs}")


def nth_paragraph_first_word(
    response: str, *, num_paragraphs: int, nth_paragraph: int, first_word: str
) -> Violation:
    """So many paragraphs, divided by blank lines, of which the n-th begins with a word."""
    # IFEval numbers empty paragraphs too; and cuts the first word at an apostrophe, allowed here.
    found = paragraphs(response)
    if len(found) != num_paragraphs:
        return f"{len(found)} paragraphs, not {num_paragraphs}"
    if not 1 <= nth_paragraph <= len(found):
        return f"no paragraph {nth_paragraph}"
    match = _FIRST_WORD.match(found[nth_paragraph - 1])
    first = match.group(1).lower() if match else ""
    accepted = {first, re.split(r"['\u2019]", first)[0]}
    return expect(first_word.strip().lower() in accepted, f"it begins with {short(first)}")


def stop_words(response: str, *, percentage: float) -> Violation:
    """At most so many percent of the words are stop words."""
    words = [match.group().lower() for match in WORD.finditer(response)]
    if not words:
        return "no words"
    share = 100 * sum(1 for word in words if word in STOP_WORDS) / len(words)
    return expect(share <= percentage, f"{share:.1f} % stop words, not {percentage:g} %")


def conjunctions(response: str, *, small_n: int) -> Violation:
    """At least so many different coordinating conjunctions."""
    # IFBench takes `and` and `And` for two.
    found = CONJUNCTIONS.intersection(spaced_words(response.lower()))
    return expect(len(found) >= small_n, f"{len(found)} conjunctions, not {small_n}")


def numbers(response: str, *, N: int) -> Violation:
    """Exactly N numbers in digits; `3.14` and `1,000` are one each."""
    found = re.findall(r"\d+", _ASCII_PUNCTUATION.sub("", response))
    return expect(len(found) == N, f"{len(found)} numbers, not {N}")


def pronouns(response: str, *, N: int) -> Violation:
    """At least N pronouns; `she/her` is two, `it's` one."""
    words = WORD.findall(response.lower())
    count = sum(1 for word in words if word in PRONOUNS)
    return expect(count >= N, f"{count} pronouns, not {N}")


def words_japanese(response: str, *, N: int) -> Violation:
    """Every N-th word is Japanese, or a number."""
    if N < 1:
        return "no such place"
    words = response.split()
    for place in range(N - 1, len(words), N):
        word = words[place]
        letters = any(map(str.isalpha, word))
        if letters and not _JAPANESE.search(word):
            return f"word {place + 1} is {short(word)}"
    return expect(bool(words), "no words")


def repeats(response: str, *, small_n: int) -> Violation:
    """No word occurs more often."""
    counts: dict[str, int] = {}
    for word in bare_words(response.lower()):
        counts[word] = counts.get(word, 0) + 1
        if counts[word] > small_n:
            return f"{short(word)} more than {small_n} times"
    return expect(bool(counts), "no words")


def punctuation(response: str) -> Violation:
    """Each of `. , ! ? ; :` and, besides, one interrobang."""
    for interrobang in ("?!", "!?", "‽"):
        if interrobang in response:
            rest = response.replace(interrobang, "", 1)
            missing = [mark for mark in ".,!?;:" if mark not in rest]
            return expect(not missing, f"no {' '.join(missing)}")
    return "no interrobang"


def overlap(response: str, *, reference_text: str, percentage: float) -> Violation:
    """So many percent (within 2) of the response's different trigrams are in the reference text."""
    # Trigrams of characters: IFBench's checker counts these, and words were hardly controllable.
    own, given = _trigrams(response), _trigrams(reference_text)
    if not own:
        return "no trigrams"
    share = 100 * len(own & given) / len(own)
    return expect(abs(share - percentage) <= 2, f"{share:.1f} % overlap, not {percentage:g} %")


def _trigrams(text: str) -> set[str]:
    return {text[start : start + 3] for start in range(len(text) - 2)}


def sentence_type(response: str) -> Violation:
    """Twice as many sentences end with a period as with a question mark."""
    declarative, interrogative, _ = _types(response)
    followed = declarative == 2 * interrogative > 0
    return expect(followed, f"{declarative} statements, {interrogative} questions")


def sentence_balance(response: str) -> Violation:
    """As many statements as questions as exclamations."""
    counts = _types(response)
    return expect(len(set(counts)) == 1 and counts[0] > 0, f"{counts} of `.`, `?`, `!`")


def _types(response: str) -> tuple[int, int, int]:
    marks = [sentence_mark(each) for each in sentences(response)]
    return marks.count("."), marks.count("?"), marks.count("!")


CHECKS: dict[str, Check] = {
    "length_constraints:number_words": number_words,
    "length_constraints:number_sentences": number_sentences,
    "length_constraints:number_paragraphs": number_paragraphs,
    "length_constraints:nth_paragraph_first_word": nth_paragraph_first_word,
    "count:word_count_range": word_count_range,
    "count:unique_word_count": unique_word_count,
    "count:conjunctions": conjunctions,
    "count:numbers": numbers,
    "count:pronouns": pronouns,
    "count:words_japanese": words_japanese,
    "count:punctuation": punctuation,
    "ratio:stop_words": stop_words,
    "ratio:overlap": overlap,
    "ratio:sentence_type": sentence_type,
    "ratio:sentence_balance": sentence_balance,
    "words:repeats": repeats,
}
