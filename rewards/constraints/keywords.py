"""Constraints that ask for given words and letters, or forbid them."""

import re
from collections.abc import Sequence

from rewards.constraints.check import Check, Relation, Violation, compare, expect, short
from rewards.constraints.lists import NAMES
from rewards.constraints.text import WORD, sentences, spaced_words


def _whole(keyword: str) -> re.Pattern[str]:
    return re.compile(rf"(?<!\w){re.escape(keyword.strip())}(?!\w)", re.IGNORECASE)


def existence(response: str, *, keywords: Sequence[str]) -> Violation:
    """Every keyword occurs, also inside of longer words (`cat` in `cats`)."""
    # IFEval reads a keyword as a regular expression; it is meant as text.
    text = response.lower()
    missing = [each for each in keywords if each.strip().lower() not in text]
    return expect(not missing, f"no {', '.join(map(short, missing[:5]))}")


def frequency(response: str, *, keyword: str, frequency: int, relation: Relation) -> Violation:
    """How often the keyword occurs, also inside of longer words."""
    count = response.lower().count(keyword.strip().lower())
    return compare(count, relation, frequency, f"times {short(keyword)}")


def forbidden_words(response: str, *, forbidden_words: Sequence[str]) -> Violation:
    """None of the words occurs as a whole word."""
    found = [each for each in forbidden_words if _whole(each).search(response)]
    return expect(not found, f"forbidden {', '.join(map(short, found[:5]))}")


def letter_frequency(
    response: str, *, letter: str, let_frequency: int, let_relation: Relation
) -> Violation:
    """How often a letter occurs, small or capital."""
    # IFEval draws a random letter where the data names a sign such as `#`; the prompt means `#`.
    count = response.lower().count(letter.strip().lower())
    return compare(count, let_relation, let_frequency, f"times {letter!r}")


def keywords_multiple(
    response: str, *, keyword1: str, keyword2: str, keyword3: str, keyword4: str, keyword5: str
) -> Violation:
    """The five keywords occur once, twice, three, five and seven times."""
    text = response.lower()
    keywords = (keyword1, keyword2, keyword3, keyword4, keyword5)
    for keyword, wanted in zip(keywords, (1, 2, 3, 5, 7), strict=True):
        count = text.count(keyword.strip().lower())
        if count != wanted:
            return f"{count} times {short(keyword)}, not {wanted}"
    return None


def person_names(response: str, *, N: int) -> Violation:
    """At least N different names of the prompt's list."""
    count = len(set(NAMES).intersection(WORD.findall(response)))
    return expect(count >= N, f"{count} names, not {N}")


def sentence_keyword(response: str, *, word: str, N: int) -> Violation:
    """The N-th sentence holds the word."""
    found = sentences(response)
    if not 1 <= N <= len(found):
        return f"{len(found)} sentences, none is number {N}"
    sentence = found[N - 1]
    return expect(_whole(word).search(sentence) is not None, f"sentence {N} is {short(sentence)}")


def specific_position(response: str, *, keyword: str, n: int, m: int) -> Violation:
    """The m-th word of the n-th sentence is the keyword."""
    # IFBench's tokens split `don't` in two; here words are what stands between spaces.
    found = sentences(response)
    if not 1 <= n <= len(found):
        return f"{len(found)} sentences, none is number {n}"
    words = spaced_words(found[n - 1])
    if not 1 <= m <= len(words):
        return f"sentence {n} has {len(words)} words"
    return expect(words[m - 1].lower() == keyword.strip().lower(), f"it is {short(words[m - 1])}")


def words_position(response: str, *, keyword: str) -> Violation:
    """The second word and the last but one are the keyword."""
    words = spaced_words(response)
    if len(words) < 2:
        return f"{len(words)} words"
    wanted = keyword.strip().lower()
    followed = words[1].lower() == words[-2].lower() == wanted
    return expect(followed, f"they are {short(words[1])} and {short(words[-2])}")


CHECKS: dict[str, Check] = {
    "keywords:existence": existence,
    "keywords:frequency": frequency,
    "keywords:forbidden_words": forbidden_words,
    "keywords:letter_frequency": letter_frequency,
    "count:keywords_multiple": keywords_multiple,
    "count:person_names": person_names,
    "sentence:keyword": sentence_keyword,
    "words:keywords_specific_position": specific_position,
    "words:words_position": words_position,
}
