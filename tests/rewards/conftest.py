import random
from collections.abc import Callable, Iterator, Sequence

import pytest

from rewards.math_answer import MathVerifier

Family = tuple[str, list[str], list[str]]  # a gold, answers that are right, answers that are wrong
Families = Sequence[tuple[Callable[[random.Random], Family], int]]  # each made so many times


@pytest.fixture(scope="module")
def verifier() -> Iterator[MathVerifier]:
    made = MathVerifier(timeout_s=5.0)
    made.start()
    yield made
    made.close()


@pytest.fixture(scope="session")
def generate() -> Callable[[Families], list[tuple[str, str, bool]]]:
    """Makes (gold, answer, right?) of families, always the same ones."""

    def cases(families: Families) -> list[tuple[str, str, bool]]:
        rng = random.Random(20)
        made = []
        for family, count in families:
            for _ in range(count):
                gold, right, wrong = family(rng)
                made += [(gold, answer, True) for answer in right]
                made += [(gold, answer, False) for answer in wrong]
        return made

    return cases
