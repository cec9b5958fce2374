"""Reads a response as words, sentences, paragraphs and bullets.

Everything here is linear in the length of the text, for the text may be hostile. No trained model:
a splitter with data files would have to be downloaded.
"""

import unicodedata
from itertools import pairwise

import regex

from rewards.constraints.lists import ABBREVIATIONS, STARTERS

# `regex` and not `re`: its \w holds combining marks, so a word of Hindi is one word.
WORD = regex.compile(r"\w+")
_JOINED_WORD = regex.compile(r"\w+(?:['\u2019\-]\w+)*")
_PUNCTUATION = regex.compile(r"[^\w\s]|_")
_EDGES = regex.compile(r"^[\W_]++|(?<![\W_])[\W_]++$")  # a run is read once, from its beginning
_BLANK_LINE = regex.compile(r"\n[ \t\r]*\n")
_EMOJI = (
    r"(?:\p{Regional_Indicator}{2}|[0-9#*]\uFE0F?\u20E3"
    r"|[\p{Extended_Pictographic}--[\u00A9\u00AE\u2122]]"
    r"(?:[\uFE0E\uFE0F\u200D]|\p{Emoji_Modifier}|\p{Extended_Pictographic})*)"
)
_FINAL_EMOJI = regex.compile(rf"(?V1){_EMOJI}$")
_CLOSERS = r"[\"'”\u2019»)\]*_]"
_MARKS = regex.compile(
    rf"(?V1)(?:(?<![.!?…])[.!?…]++{_CLOSERS}*(?=\s|$|{_EMOJI})|[。\uff01\uff1f]+[」』”]*)"
    rf"(?:[ \t]*{_EMOJI})*"
)
# Read backwards, from a mark: what lies between two marks is then read once.
_LIST_MARK = regex.compile(r"(?r)[^\S\n]*[*_#>(]*(?:[0-9]{1,3}|[A-Za-z])")
_INITIAL = regex.compile(
    r"(?:.*\b[A-Z][\w.]*\s)?[A-HJ-Z]|.*\b(?:[A-Za-z]\.)+[A-Za-z]", regex.DOTALL
)
_BULLET = regex.compile(r"^[ \t]*(?:\*[ \t]+\S|\*[^*\s][^*\n]*$|-(?!-)[ \t]*\S)", regex.MULTILINE)
_RULE = regex.compile(r"^[ \t]*(?:\*[ \t]*){3,}$|^[ \t]*(?:-[ \t]*){3,}$", regex.MULTILINE)


def word_count(text: str) -> int:
    r"""How many runs of word characters, as IFEval counts them: `don't` is two."""
    return sum(1 for _ in WORD.finditer(text))


def joined_words(text: str) -> list[str]:
    """The words as people count them: `don't` and `well-known` are one each."""
    return _JOINED_WORD.findall(text)


def spaced_words(text: str) -> list[str]:
    """The space-separated words without punctuation at their edges; bare punctuation is none."""
    return [word for word in (trimmed(each) for each in text.split()) if word]


def bare_words(text: str) -> list[str]:
    """The space-separated words without any punctuation: `don't` is `dont`."""
    return _PUNCTUATION.sub("", text).split()


def trimmed(word: str) -> str:
    """The word without what is no letter or digit at its edges."""
    return _EDGES.sub("", word)


def plain(text: str) -> str:
    """The text without accents."""
    # Sign by sign: a long run of accents would take quadratic time to be put in order.
    decomposed = (part for each in text for part in unicodedata.normalize("NFKD", each))
    return "".join(part for part in decomposed if not unicodedata.combining(part))


def paragraphs(text: str) -> list[str]:
    """What lies between blank lines, without empty ones."""
    return [each.strip() for each in _BLANK_LINE.split(text) if each.strip()]


def lines(text: str) -> list[str]:
    """The lines that hold more than spaces, with their indent."""
    return [line for line in text.split("\n") if line.strip()]


def bullets(text: str) -> int:
    """How many markdown bullets (`* item`, `- item`), leaving out horizontal rules."""
    return len(_BULLET.findall(_RULE.sub("", text)))


def ends_with_emoji(sentence: str) -> bool:
    """Whether an emoji is last, but for punctuation and spaces."""
    tail = sentence[-40:].rstrip(" \t\n.!?…,;:\"'”\u2019)]*_")
    return _FINAL_EMOJI.search(tail) is not None


def sentence_mark(sentence: str) -> str:
    """The mark that ends a sentence: `.`, `?`, `!` or, if there is none, an empty string."""
    tail = _FINAL_EMOJI.sub("", sentence[-40:].rstrip()).rstrip()
    tail = tail.rstrip("\"'”\u2019»)]*_」』 ")
    last = tail[-1:]
    return {"。": ".", "\uff1f": "?", "\uff01": "!", "…": "."}.get(
        last, last if last in ".?!" else ""
    )


def sentences(text: str) -> list[str]:
    """The sentences: they end with `.`, `?`, `!`, `…` or their CJK forms, not at a line's end.

    Like NLTK's Punkt, a sentence may begin with a small letter and may run over lines; unlike it,
    `1.` before a list item and an emoji after the mark are no sentences of their own.
    """
    cuts = [0]
    for mark in _MARKS.finditer(text):
        if _ends_sentence(text, cuts[-1], mark):
            cuts.append(mark.end())
    cuts.append(len(text))
    pieces = (text[start:end].strip() for start, end in pairwise(cuts))
    return [piece for piece in pieces if WORD.search(piece)]


def _ends_sentence(text: str, start: int, mark: regex.Match[str]) -> bool:
    signs = mark.group()
    following = text[mark.end() : mark.end() + 20].lstrip()
    small = following[:1].islower()
    if small and (signs.startswith(("..", "…")) or (signs[0] in "!?" and signs[-1] not in "!?")):
        return False
    if signs != ".":
        return True
    if _is_list_mark(text, start, mark.start()):
        return mark.start() - start > 8 and following == ""
    before = text[max(start, mark.start() - 20) : mark.start()]
    last = before.split()[-1:] or [""]
    if last[0].lstrip("(\"'“\u2018").lower() in ABBREVIATIONS:
        return following == ""
    if _INITIAL.fullmatch(before) is None or not following[:1].isalpha():
        return True
    return not small and following.split()[0].lower() in STARTERS


def _is_list_mark(text: str, start: int, end: int) -> bool:
    """Whether the line that ends there, or what the sentence has of it, is `1` or `(a`."""
    found = _LIST_MARK.match(text, start, end)
    return found is not None and (found.start() == start or text[found.start() - 1] == "\n")
