r"""The second worker of `rewards.math_answer`: math-verify, for golds our grammar does not read.

Its comparison is loose: for it gcd(n, p - 1) is gcd(n, p + 1), both being 1. So an answer must
first be made of the gold's own signs, in whatever order.
"""

import logging
import re
from collections import Counter
from functools import lru_cache
from typing import Any

from math_verify import parse, verify

from rewards.mathematics.nursery import serve
from rewards.mathematics.text import clean

MEMORY_BYTES = 4 << 30  # of address space: an exploding power ends here, not with the machine

_TOKENS = re.compile(r"\\[A-Za-z]+|\\.|[0-9]+|[^\s(){}*]")
_PROSE = re.compile(r"(?<![\\A-Za-z])[A-Za-z]{3,}(?![A-Za-z])")


def shape(text: str) -> Counter[str]:
    """How often each sign occurs, without spaces and what only groups."""
    return Counter(_TOKENS.findall(clean(text)))


@lru_cache(maxsize=256)
def read(text: str) -> list[Any]:
    """What `text` may mean, as expressions; empty if it cannot be read or is prose.

    Timeouts of math-verify are off: they rest on signals, which work in a main thread only.
    """
    if len(_PROSE.findall(re.sub(r"\\[A-Za-z]+", " ", text))) > 1:
        return []
    parsed = parse(rf"\boxed{{{text}}}", parsing_timeout=None)
    return parsed if any(not isinstance(item, str) for item in parsed) else []


class Comparer:
    """Answers with math-verify."""

    def reads(self, gold: str) -> bool:
        """Whether math-verify makes an expression of it."""
        return bool(read(gold))

    def equal(self, gold: str, answer: str) -> bool:
        """Whether the two are equal; False for an answer that cannot be read or compared."""
        if shape(gold) != shape(answer):
            return False
        said = read(answer)
        return bool(said) and bool(verify(read(gold), said, timeout_seconds=None))


if __name__ == "__main__":
    logging.disable(logging.CRITICAL)
    Comparer().equal("x+2", "2+x")  # the first parse loads the grammar
    serve(Comparer(), MEMORY_BYTES)
