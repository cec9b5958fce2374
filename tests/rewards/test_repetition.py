"""The detector against the rule, read naively."""

import itertools
import random
from collections.abc import Sequence

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from rewards.config import RepetitionConfig
from rewards.repetition import RepetitionDetector, smallest

SMALL = RepetitionConfig(ngram=3, ngram_times=3, window=14, period=4, period_times=3, min_tokens=6)


def cycles(tokens: Sequence[int], rule: RepetitionConfig) -> bool:
    for period in range(1, rule.period + 1):
        stretch = tokens[-max(rule.period_times * period, rule.min_tokens) :]
        long_enough = len(stretch) == max(rule.period_times * period, rule.min_tokens)
        if long_enough and list(stretch[period:]) == list(stretch[:-period]):
            return True
    return False


def says_again(tokens: Sequence[int], rule: RepetitionConfig) -> bool:
    last = list(tokens[-rule.window :])
    grams = [tuple(last[i : i + rule.ngram]) for i in range(len(last) - rule.ngram + 1)]
    for gram in set(grams):
        count, free = 0, 0  # leftmost first: as many as can be without overlap
        for start, other in enumerate(grams):
            if other == gram and start >= free:
                count, free = count + 1, start + rule.ngram
        if count >= rule.ngram_times:
            return True
    return False


def naive(tokens: Sequence[int], rule: RepetitionConfig) -> bool:
    return any(
        cycles(tokens[:end], rule) or says_again(tokens[:end], rule)
        for end in range(1, len(tokens) + 1)
    )


def detect(tokens: Sequence[int], rule: RepetitionConfig, *pieces: int) -> bool:
    detector = RepetitionDetector(rule)
    ends = [0, *sorted(end for end in pieces if end < len(tokens)), len(tokens)]
    for first, last in itertools.pairwise(ends):
        detector.feed(tokens[first:last])
    return detector.found


@settings(max_examples=400, deadline=None)
@given(
    st.lists(st.integers(0, 2), max_size=40),
    st.lists(st.integers(0, 40), max_size=5),
)
def test_the_detector_is_the_rule(tokens: list[int], pieces: list[int]) -> None:
    assert detect(tokens, SMALL, *pieces) == naive(tokens, SMALL)


@settings(max_examples=60, deadline=None)
@given(st.integers(0, 10**9), st.lists(st.integers(0, 400), max_size=4))
def test_over_more_tokens_than_a_stride(seed: int, pieces: list[int]) -> None:
    rule = RepetitionConfig(
        ngram=8, ngram_times=4, window=150, period=30, period_times=3, min_tokens=40
    )
    rng = random.Random(seed)
    phrases = [[rng.randrange(50) for _ in range(rng.randrange(4, 40))] for _ in range(3)]
    tokens = [token for _ in range(rng.randrange(3, 12)) for token in rng.choice(phrases)]
    assert detect(tokens, rule, *pieces) == naive(tokens, rule)


@pytest.mark.parametrize(
    ("tokens", "found"),
    [
        ([7] * 191, False),
        ([7] * 192, True),
        ([1, 2, 3] * 64, True),
        ([1, 2, 3] * 63, False),
        (list(range(256)) * 6, True),
        (list(range(256)) * 6 + [999], True),
        ((list(range(256)) * 6)[:-1], False),
        (list(range(257)) * 7, False),  # longer than any cycle that is looked for
        (list(range(257)) * 8, True),  # but its n-grams occur 8 times
        (list(range(5000)), False),
    ],
)
def test_the_rule_at_its_defaults(tokens: list[int], found: bool) -> None:
    assert detect(tokens, RepetitionConfig()) is found


def test_an_ngram_counts_only_within_the_window() -> None:
    phrase = list(range(32))
    filler = iter(range(1000, 10**6))
    near = [t for _ in range(8) for t in [*phrase, *(next(filler) for _ in range(500))]]
    far = [t for _ in range(8) for t in [*phrase, *(next(filler) for _ in range(600))]]
    assert detect(near, RepetitionConfig())
    assert not detect(far, RepetitionConfig())


def test_what_is_too_short_to_repeat_itself() -> None:
    assert smallest(RepetitionConfig()) == 192
    assert smallest(SMALL) == 6
    assert detect([7] * 6, SMALL) and not detect([7] * 5, SMALL)
