"""Finds completions that go in circles, while they are being generated (K1.5 sec. 2.6.2)."""

from collections.abc import Sequence

import numpy as np
from numpy.lib.stride_tricks import sliding_window_view

from rewards.config import RepetitionConfig

STRIDE = 64  # tokens looked at together; the verdict does not depend on it
BUCKET_BITS = (
    14  # n-grams are counted in so many buckets first; four for each of the default window
)
BASE = 0x9E3779B97F4A7C15  # of the n-grams' hash: any large odd number


def smallest(rule: RepetitionConfig) -> int:
    """Tokens of the shortest completion that `rule` can stop."""
    return min(rule.ngram * rule.ngram_times, max(rule.period_times, rule.min_tokens))


class RepetitionDetector:
    """Reads one completion as it grows. The verdict depends on the tokens alone.

    A completion repeats itself if, after any of its tokens, one of these holds:

    1. One `ngram`-gram occurs `ngram_times` times in the last `window` tokens, without overlap.
    2. The last `max(period_times * p, min_tokens)` tokens have the period p <= `period`.

    The numbers are ours: K1.5 and K2 name the early stop, not the rule. About 1 us a token.
    """

    def __init__(self, rule: RepetitionConfig) -> None:
        """Start with an empty completion."""
        self._rule = rule
        self.found = False  # whether the completion has repeated itself so far
        self._length = 0
        # -1 is no token: it equals none.
        self._recent = np.full(max(rule.period, rule.ngram - 1), -1, dtype=np.int64)
        periods = np.arange(rule.period, 0, -1)  # in the order of the columns below
        self._needed = np.maximum(rule.period_times * periods, rule.min_tokens) - periods
        self._runs = np.zeros(rule.period, dtype=np.int64)  # [period] tokens equal to that before
        self._weights = np.array([pow(BASE, i, 1 << 64) for i in range(rule.ngram)], np.uint64)
        self._seen = np.zeros(1 << BUCKET_BITS, dtype=np.int32)  # n-grams by bucket of their hash
        self._tokens = np.empty(0, dtype=np.int64)  # [<= window] the last ones
        self._hashes = np.empty(0, dtype=np.uint64)  # of the n-gram that ends at each of them

    def feed(self, tokens: Sequence[int] | np.ndarray) -> bool:
        """Read the next tokens; returns `found`."""
        new = np.asarray(tokens, dtype=np.int64)
        for first in range(0, len(new), STRIDE):
            if self.found:
                break
            part = new[first : first + STRIDE]
            context = np.concatenate([self._recent, part])
            cycles = self._cycles(part, context)
            self.found = self._ngrams(part, context) or cycles
            self._recent = context[len(part) :]
        return self.found

    def _cycles(self, part: np.ndarray, context: np.ndarray) -> bool:
        """Rule 2, by run lengths: how many tokens in a row equal the one p places before."""
        size, before_runs = self._rule.period, self._runs
        before = sliding_window_view(context[-len(part) - size :], size)[: len(part)]
        equal = before == part[:, None]
        counts = np.add.reduce(equal, axis=0, dtype=np.int32)
        unbroken = counts == len(part)
        since = equal[::-1].argmin(axis=0)  # equal tokens at the end, where one differs
        self._runs = np.where(unbroken, before_runs + len(part), since)
        near = np.flatnonzero(before_runs + counts >= self._needed)  # mostly none: the rest is slow
        if len(near) == 0:
            return False
        place = np.arange(1, len(part) + 1)[:, None]
        broken = np.maximum.accumulate(np.where(equal[:, near], 0, place), axis=0)
        runs = place - broken + np.where(broken == 0, before_runs[near], 0)
        return bool((runs >= self._needed[near]).any())

    def _ngrams(self, part: np.ndarray, context: np.ndarray) -> bool:
        """Rule 1: look closely only at n-grams whose bucket is full enough."""
        rule = self._rule
        grams = sliding_window_view(context[-len(part) - rule.ngram + 1 :], rule.ngram)
        hashes = grams.astype(np.uint64) @ self._weights
        buckets = hashes >> np.uint64(64 - BUCKET_BITS)
        np.add.at(self._seen, buckets, 1)
        old = max(len(self._hashes) + len(part) - rule.window - STRIDE, 0)
        np.subtract.at(self._seen, self._hashes[:old] >> np.uint64(64 - BUCKET_BITS), 1)
        self._tokens = np.concatenate([self._tokens[old:], part])
        self._hashes = np.concatenate([self._hashes[old:], hashes])
        self._length += len(part)
        if self._length < rule.ngram * rule.ngram_times:
            return False
        first = len(self._tokens) - len(part)
        return any(
            self._occurs(first + int(i), np.flatnonzero(self._hashes == hashes[i]))
            for i in np.flatnonzero(self._seen[buckets] >= rule.ngram_times)
        )

    def _occurs(self, end: int, ends: np.ndarray) -> bool:
        """Whether the n-gram at `end` occurs often enough among `ends`, counted backwards."""
        rule = self._rule
        gram = self._tokens[end - rule.ngram + 1 : end + 1]
        oldest = max(end - rule.window, -1) + rule.ngram  # it must lie in the window whole
        count, limit = 0, end
        for other in ends[(ends <= end) & (ends >= oldest)][::-1]:
            same = self._tokens[other - rule.ngram + 1 : other + 1]
            if other <= limit and np.array_equal(same, gram):
                count, limit = count + 1, int(other) - rule.ngram
        return count >= rule.ngram_times
