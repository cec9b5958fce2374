"""Constraints on how the words look and follow each other. The door for syllapy and lemminflect."""

import csv
import functools
import gzip
import re
import sys
from importlib.util import find_spec
from itertools import pairwise
from pathlib import Path

import syllapy

from rewards.constraints.check import Check, Violation, expect, short
from rewards.constraints.lists import AFTER_A_NOUN
from rewards.constraints.text import bare_words, lines, plain, sentences, spaced_words, trimmed

PRIMES = frozenset(
    (2, 3, 5, 7, 11, 13, 17, 19, 23, 29, 31, 37, 41, 43, 47, 53, 59, 61, 67, 71, 73, 79, 83, 89, 97)
)
_CLUSTER = re.compile(r"[bcdfghjklmnpqrstvwxyz]{2}")
_FIRST_WORDS = re.compile(r"[\W_]*(\w+(?:['\u2019]\w+)?)(\W*)(\w*)")
_LONGEST_WORD = 40  # letters; a longer one is no word of a dictionary


def alphabet(response: str) -> Violation:
    """Each word begins with the letter after that of the word before; `a` follows `z`."""
    words = bare_words(response.lower())
    if not words or words[0][0] not in "abcdefghijklmnopqrstuvwxyz":
        return "no letter to begin with"
    for before, word in pairwise(words):
        wanted = "a" if before[0] == "z" else chr(ord(before[0]) + 1)
        if word[0] != wanted:
            return f"{short(word)} where {wanted!r} is next"
    return None


def vowel(response: str) -> Violation:
    """One paragraph with at most three of the five vowels."""
    if len(lines(response)) != 1:
        return f"{len(lines(response))} paragraphs, not 1"
    found = sorted(set("aeiou").intersection(plain(response.lower())))
    return expect(len(found) <= 3, f"vowels {' '.join(found)}")


def consonants(response: str) -> Violation:
    """Each word has two consonants together."""
    # What has no letter is no word here; IFBench refuses a dash or a number.
    words = [word for word in response.lower().split() if any(map(str.isalpha, word))]
    for word in words:
        if _CLUSTER.search(word) is None:
            return f"{short(word)} has none"
    return expect(bool(words), "no words")


def palindrome(response: str) -> Violation:
    """At least ten different palindromes of five letters or more."""
    # IFBench counts one palindrome ten times, and `11111`.
    found = {
        word
        for word in bare_words(response.lower())
        if len(word) >= 5 and word.isalpha() and word == word[::-1] and len(set(word)) > 1
    }
    return expect(len(found) >= 10, f"{len(found)} palindromes, not 10")


def prime_lengths(response: str) -> Violation:
    """The length of each word is a prime number."""
    words = bare_words(response)
    for word in words:
        if len(word) not in PRIMES:
            return f"{short(word)} has {len(word)} letters"
    return expect(bool(words), "no words")


def start_verb(response: str) -> Violation:
    """The first word is a verb.

    A dictionary decides, not a tagger: a word that is also an adverb (`well`) is none, nor is one
    that is also a noun if a colon, `of` or a finite verb follows (`Time is`, `Answer:`).
    """
    match = _FIRST_WORDS.match(response[:500])
    if match is None:
        return "no words"
    word, between, following = match.groups()
    stem = re.sub(r"n['\u2019]t$|['\u2019]\w+$", "", word.lower())
    kinds = set(_dictionary().get(stem, "").split())
    verb = bool(kinds & {"verb", "aux"}) and "adv" not in kinds and len(stem) > 1
    noun = "noun" in kinds and "aux" not in kinds
    if noun and (":" in between or following.lower() in AFTER_A_NOUN):
        verb = False
    return expect(verb, f"it begins with {short(word)}")


@functools.cache
def _dictionary() -> dict[str, str]:
    """The kinds of each word ("noun verb"), all in small letters."""
    # The file alone: importing lemminflect brings numpy and three times the time.
    package = find_spec("lemminflect")
    assert package is not None and package.submodule_search_locations
    path = Path(package.submodule_search_locations[0]) / "resources" / "lemma_lu.csv.gz"
    kinds: dict[str, str] = {}
    with gzip.open(path, "rt", encoding="utf-8", newline="") as rows:
        for word, kind, _ in csv.reader(rows):
            kinds[word.lower()] = sys.intern(f"{kinds.get(word.lower(), '')} {kind}")
    return kinds


def odd_even_syllables(response: str) -> Violation:
    """Words with an odd and with an even number of syllables take turns."""
    words = [word for word in bare_words(response.lower()) if any(map(str.isalpha, word))]
    for left, right in pairwise(words):
        if _syllables(left) % 2 == _syllables(right) % 2:
            return f"{short(left)} and {short(right)} do not alternate"
    return expect(bool(words), "no words")


@functools.lru_cache(maxsize=4096)
def _syllables(word: str) -> int:
    return int(syllapy.count(word)) if len(word) <= _LONGEST_WORD else 0


def last_first(response: str) -> Violation:
    """The last word of each of at least two sentences is the first of the next."""
    found = [words for words in map(spaced_words, sentences(response.lower())) if words]
    for before, after in pairwise(found):
        if before[-1] != after[0]:
            return f"{short(before[-1])}, then {short(after[0])}"
    return expect(len(found) >= 2, "fewer than 2 sentences")


def paragraph_last_first(response: str) -> Violation:
    """Each line ends with the word it began with."""
    found = [words for words in map(spaced_words, lines(response.lower())) if words]
    for words in found:
        if words[0] != words[-1]:
            return f"it begins with {short(words[0])} and ends with {short(words[-1])}"
    return expect(bool(found), "no words")


def no_consecutive(response: str) -> Violation:
    """No two words in a row begin with the same letter."""
    words = bare_words(response.lower())
    for left, right in pairwise(words):
        if left[0] == right[0]:
            return f"{short(left)} and {short(right)}"
    return expect(bool(words), "no words")


def alliteration_increment(response: str) -> Violation:
    """Each of at least two sentences has a longer run of alliterative words than the one before."""
    # The longest run; IFBench adds up all runs of a sentence.
    runs = [_longest_run(spaced_words(each.lower())) for each in sentences(response)]
    grows = all(before < after for before, after in pairwise(runs))
    return expect(grows and len(runs) >= 2, f"runs of {runs[:10]} words")


def _longest_run(words: list[str]) -> int:
    longest = run = 0
    for left, right in pairwise(words):
        run = (run or 1) + 1 if left[0] == right[0] else 0
        longest = max(longest, run)
    return longest


def increment(response: str, *, small_n: int) -> Violation:
    """Each of at least two sentences has exactly so many more words than the one before."""
    counts = [len(bare_words(each)) for each in sentences(response)]
    grows = all(after - before == small_n for before, after in pairwise(counts))
    return expect(grows and len(counts) >= 2, f"sentences of {counts[:10]} words")


def sentence_words(response: str) -> Violation:
    """Three sentences of as many characters each, that share no word."""
    # IFBench does not look at the words.
    found = sentences(response)
    if len(found) != 3:
        return f"{len(found)} sentences, not 3"
    lengths = [len(each) for each in found]
    if len(set(lengths)) != 1:
        return f"sentences of {lengths} characters"
    words = [{trimmed(word) for word in spaced_words(each.lower())} for each in found]
    shared = words[0] & words[1] | words[0] & words[2] | words[1] & words[2]
    return expect(not shared, f"{short(min(shared, default=''))} twice")


CHECKS: dict[str, Check] = {
    "words:alphabet": alphabet,
    "words:vowel": vowel,
    "words:consonants": consonants,
    "words:palindrome": palindrome,
    "words:prime_lengths": prime_lengths,
    "words:start_verb": start_verb,
    "words:odd_even_syllables": odd_even_syllables,
    "words:last_first": last_first,
    "words:paragraph_last_first": paragraph_last_first,
    "words:no_consecutive": no_consecutive,
    "sentence:alliteration_increment": alliteration_increment,
    "sentence:increment": increment,
    "ratio:sentence_words": sentence_words,
}
