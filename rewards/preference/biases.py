"""What moves a judge besides the truth: length and position."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from rewards.intervals import Rate, rate
from rewards.preference.agreement import Interval, bootstrap
from rewards.preference.comparisons import Comparisons, compare, credit_of, credits
from rewards.preference.judging import Verdicts
from rewards.preference.records import Row, Shape


@dataclass(frozen=True, slots=True, kw_only=True)
class LengthBias:
    """Does the judge like long answers more than they deserve? In characters."""

    good_longer: Rate  # of comparisons with unequal lengths: what the labels say
    prefers_longer: float  # what the judge says, a tie half
    excess: Interval  # the difference, bootstrap over comparisons
    right_if_good_longer: Rate
    right_if_good_shorter: Rate
    equal_length: int


@dataclass(frozen=True, slots=True, kw_only=True)
class PositionBias:
    """Does the judge like side A more than it deserves?"""

    good_on_a: Rate
    says_a: Rate  # of comparisons without a tie
    right_if_good_on_a: Rate  # ties are wrong
    right_if_good_on_b: Rate


@dataclass(frozen=True, slots=True, kw_only=True)
class Orders:
    """Both orders of each pair, of a comparing judge."""

    pairs: int
    consistent: Rate  # the same verdict both times
    to_first_shown: int  # inconsistent, each time for the one shown first
    to_second_shown: int
    picks_first_shown: Rate  # of all verdicts without ties
    first_order: float  # accuracy if only the first order had been asked, a tie half


def length_bias(made: Comparisons) -> LengthBias:
    """Over all comparisons."""
    longer, shorter = made.length > 0, made.length < 0
    unequal = longer | shorter
    credit = credit_of(made.margin)
    prefers = np.where(longer, credit, 1.0 - credit)[unequal]
    return LengthBias(
        good_longer=rate(int(longer.sum()), int(unequal.sum())),
        prefers_longer=float(prefers.mean()) if prefers.size else 0.5,
        excess=bootstrap(prefers - longer[unequal]),
        right_if_good_longer=_right(made, longer),
        right_if_good_shorter=_right(made, shorter),
        equal_length=int((~unequal).sum()),
    )


def _right(made: Comparisons, chosen: NDArray[np.bool_]) -> Rate:
    return rate(int((made.margin[chosen] > 0).sum()), int(chosen.sum()))


def position_bias(shape: Shape, said: Verdicts, made: Comparisons) -> PositionBias | None:
    """Only where responses have sides: the data's own, or those a comparing judge was shown."""
    if shape is not Shape.judgebench and not said.comparisons:
        return None
    decided = made.margin != 0
    says_a = (made.margin > 0) == made.good_first
    return PositionBias(
        good_on_a=rate(int(made.good_first.sum()), made.good_first.size),
        says_a=rate(int((says_a & decided).sum()), int(decided.sum())),
        right_if_good_on_a=_right(made, made.good_first),
        right_if_good_on_b=_right(made, ~made.good_first),
    )


def order_effects(said: Verdicts, rows: Sequence[Row], shape: Shape) -> Orders | None:
    """None unless both orders were asked."""
    both = [each for each in said.comparisons if each.swapped is not None]
    if not both:
        return None
    first = np.sign(np.array([each.preference for each in both]) - 0.5)
    second = np.sign(np.array([each.swapped for each in both], dtype=np.float64) - 0.5)
    once = [each for each in said.first_order if each is not None]
    earned = credits(shape, rows, once, compare(rows, once))
    spoken = int((first != 0).sum() + (second != 0).sum())
    return Orders(
        pairs=len(both),
        consistent=rate(int((first == second).sum()), len(both)),
        to_first_shown=int(((first > 0) & (second < 0)).sum()),
        to_second_shown=int(((first < 0) & (second > 0)).sum()),
        picks_first_shown=rate(int((first > 0).sum() + (second < 0).sum()), spoken),
        first_order=float(np.nanmean(earned)),
    )
