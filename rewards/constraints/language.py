"""Constraints on the language and on the case of the letters. The door for langdetect."""

import functools
import re
import threading

from langdetect.detector_factory import PROFILES_DIRECTORY, DetectorFactory
from langdetect.lang_detect_exception import LangDetectException

from rewards.constraints.check import Check, Relation, Violation, compare

SLICE = 3000
"""Characters of a slice that is detected; a longer response is judged at three places."""
_FEW_LETTERS = 20  # fewer cannot be told apart reliably
_LIKELY = 0.2  # a language less likely than this is not the response's
_WORD = re.compile(r"\w+(?:[.&/-]\w+)*")
_loading = threading.Lock()


@functools.cache
def _load() -> DetectorFactory:
    factory = DetectorFactory()
    factory.set_seed(0)
    factory.load_profile(PROFILES_DIRECTORY)
    return factory


def _factory() -> DetectorFactory:
    with _loading:  # two threads must not both load the profiles
        return _load()


def languages(text: str) -> dict[str, float]:
    """The probable languages as ISO 639-1 codes (`zh` for both Chinese ones), empty if unreadable.

    The same text gives the same answer in every call and thread.
    """
    detector = _factory().create()
    # The detector ignores words in capitals.
    detector.append(text.lower() if text.isupper() else text)
    try:
        found = detector.get_probabilities()
    except LangDetectException:
        return {}
    likely: dict[str, float] = {}
    for each in found:
        code = each.lang.partition("-")[0]
        likely[code] = likely.get(code, 0.0) + each.prob
    return likely


def _slices(text: str) -> list[str]:
    if len(text) <= 3 * SLICE:
        return [text[:SLICE], text[SLICE:]] if len(text) > SLICE else [text]
    middle = len(text) // 2
    return [text[:SLICE], text[middle - SLICE // 2 : middle + SLICE // 2], text[-SLICE:]]


def response_language(response: str, *, language: str) -> Violation:
    """Whether the response is in a language, given by its ISO 639-1 code.

    Text without letters counts as followed, as in IFEval. Short text only has to be possible in the
    language: IFEval's checker takes its best guess, which is often wrong there.
    """
    code = language.lower().partition("-")[0]
    for part in _slices(response):
        likely = languages(part[: 2 * SLICE])
        least = 0.0 if sum(map(str.isalpha, part)) < _FEW_LETTERS else _LIKELY
        if likely and likely.get(code, -1.0) < least:
            return f"language {max(likely, key=lambda each: likely[each])}, not {code}"
    return None


def english_capital(response: str) -> Violation:
    """Whether the response is English in capital letters."""
    if not response.isupper():
        return "letters that are not capitals"
    return response_language(response, language="en")


def english_lowercase(response: str) -> Violation:
    """Whether the response is English in small letters."""
    if not response.islower():
        return "letters that are not small"
    return response_language(response, language="en")


def capital_word_frequency(
    response: str, *, capital_frequency: int, capital_relation: Relation
) -> Violation:
    """How many words are in capitals; `YES-NO` and `U.S.` count once, and `I` in `I'm` counts."""
    capital = sum(1 for word in _WORD.findall(response) if word.isupper())
    return compare(capital, capital_relation, capital_frequency, "words in capitals")


CHECKS: dict[str, Check] = {
    "language:response_language": response_language,
    "change_case:english_capital": english_capital,
    "change_case:english_lowercase": english_lowercase,
    "change_case:capital_word_frequency": capital_word_frequency,
}
