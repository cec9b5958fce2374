"""Open-ended tasks, generated: tell something about a product.

A careful answer shows its steps, says the result and stops. Careless ones guess, err and pad, as
many in a base model's corpus do. What is true of an answer (rewards.explanations) is for measuring
alone: nothing that trains is told.
"""

import math
import random
from collections.abc import Sequence
from dataclasses import dataclass

from rollout.worked import product_steps

FACTORS = range(2, 10)
SMALL_TALK = (
    "Numbers are fun.",
    "That is a lot.",
    "We count again.",
    "So it goes.",
    "This is how it works.",
    "All good things come from numbers.",
)
MOST_TALK = 4  # sentences
ERROR, GUESS = 0.5, 0.5  # shares of careless answers


@dataclass(frozen=True, slots=True, kw_only=True)
class Explanation:
    """One task with two answers to it."""

    question: str  # "Tell me about 5 * 9 * 3."
    result: int
    careful: str  # "5*9=45 45*3: 5*3=15 4*3=12 12+1=13 It is 135."
    careless: str


def make_explanation(rng: random.Random) -> Explanation:
    """A task drawn by `rng`."""
    factors = [rng.choice(FACTORS) for _ in range(3)]
    return Explanation(
        question=f"Tell me about {' * '.join(map(str, factors))}.",
        result=math.prod(factors),
        careful=f"{' '.join(steps_of(factors))} It is {math.prod(factors)}.",
        careless=careless_answer(rng, factors),
    )


def careless_answer(rng: random.Random, factors: Sequence[int]) -> str:
    """With or without steps, right or wrong, and up to four sentences of small talk."""
    result = math.prod(factors)
    if rng.random() < ERROR:
        result = wrong_result(rng, factors)
    steps = [] if rng.random() < GUESS else steps_of(factors)
    talk = rng.choices(SMALL_TALK, k=rng.randint(0, MOST_TALK))
    return " ".join([*steps, f"It is {result}.", *talk])


def wrong_result(rng: random.Random, factors: Sequence[int]) -> int:
    """What a product is taken for: by half one that looks as right, with another factor."""
    right = math.prod(factors)
    if rng.random() < 0.5:
        return abs(right + rng.choice([-1, 1]) * rng.randint(1, 20))
    factor = rng.choice(factors)
    return right // factor * (factor + rng.choice([-1, 1]))


def steps_of(factors: Sequence[int]) -> list[str]:
    """The steps of the product, factor by factor."""
    steps, total = [], factors[0]
    for factor in factors[1:]:
        steps += product_steps(total, factor)
        total *= factor
    return steps
