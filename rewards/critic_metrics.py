"""How well the critic agrees with the verifiers over the last pairs that it judged."""

from collections import deque
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from statistics import fmean

import numpy as np

from rewards.calibration import VerifiedPair
from rewards.comparison import PairOutcome
from rewards.preference.agreement import calibrate


@dataclass(frozen=True, slots=True, kw_only=True)
class JudgedPair:
    """What is kept of one pair; plain numbers, so that JSON holds it."""

    longer: int  # 1: the right answer is the longer one, -1: the shorter, 0: neither
    right_first: float | None  # preference for A where A is the right one: 1, 0.5 a tie, 0
    wrong_first: float | None  # preference for A where A is the wrong one
    preference: float | None  # of the right one over both orders; None: unreadable

    @property
    def win_rate(self) -> float | None:
        """Of the right one over both orders: 0, 0.25, 0.5, 0.75 or 1."""
        if self.right_first is None or self.wrong_first is None:
            return None
        return (self.right_first + 1.0 - self.wrong_first) / 2


class CriticWindow:
    """The last `size` pairs judged."""

    def __init__(self, size: int, pairs: Iterable[JudgedPair] = ()) -> None:
        """`pairs`, oldest first, are those of an earlier window: see `state`."""
        self._pairs: deque[JudgedPair] = deque(pairs, maxlen=size)

    def add(self, pair: VerifiedPair, outcome: PairOutcome) -> None:
        """Keep one judgement; the outcome's `answers[0]` is the pair's right one."""
        right_first, wrong_first = outcome.says
        self._pairs.append(
            JudgedPair(
                longer=pair.longer,
                right_first=right_first,
                wrong_first=wrong_first,
                preference=outcome.preference,
            )
        )

    def state(self) -> tuple[JudgedPair, ...]:
        """What a resumed run needs, oldest first."""
        return tuple(self._pairs)

    @property
    def judged(self) -> int:
        """Pairs with a readable verdict: those that the agreement is over."""
        return sum(pair.preference is not None for pair in self._pairs)

    @property
    def agreement(self) -> float | None:
        """Share of the readable pairs on which the critic and the verifier agree.

        A tie, and orders that disagree, are half.
        """
        return _mean([pair.preference for pair in self._pairs if pair.preference is not None])

    def metrics(self) -> dict[str, float]:
        """By metric name; what nothing is known of is left out.

        agreement: see above. pairs: readable ones. unreadable: share of the window. The rest is
        over pairs with a verdict in both orders (position_bias: over all verdicts that are no tie).
        order_consistency: share whose two orders agree. position_bias: share that names the answer
        shown first, minus 0.5. length_bias: how much more often the longer one is preferred than
        it is right; pairs of equal length are left out. ece: expected calibration error of the win
        rate, the confidence of the preferred side in ten equal bins over [0.5, 1].
        """
        pairs = tuple(self._pairs)
        known = {
            "agreement": self.agreement,
            "order_consistency": order_consistency(pairs),
            "position_bias": position_bias(pairs),
            "length_bias": length_bias(pairs),
            "ece": calibration_error(pairs),
            "unreadable": _mean([float(pair.preference is None) for pair in pairs]),
            "pairs": float(self.judged),
        }
        return {f"critic/{name}": value for name, value in known.items() if value is not None}


def order_consistency(pairs: Sequence[JudgedPair]) -> float | None:
    """Share of the pairs that get the same verdict in both orders; two ties are the same."""
    both = [pair for pair in pairs if pair.win_rate is not None]
    return _mean([float(pair.right_first == 1.0 - (pair.wrong_first or 0.0)) for pair in both])


def position_bias(pairs: Sequence[JudgedPair]) -> float | None:
    """Share of the verdicts, ties apart, that name the answer shown first, minus 0.5."""
    says = [each for pair in pairs for each in (pair.right_first, pair.wrong_first)]
    share = _mean([each for each in says if each is not None and each != 0.5])
    return None if share is None else share - 0.5


def length_bias(pairs: Sequence[JudgedPair]) -> float | None:
    """How much more often the longer answer is preferred than it is right, in [-1, 1].

    0 for a critic without length bias only where the longer and the shorter are right equally
    often: mistakes alone pull the preference towards a half.
    """
    gaps = []
    for pair in pairs:
        if pair.longer and pair.preference is not None:
            right = float(pair.longer > 0)
            gaps.append((pair.preference if right else 1.0 - pair.preference) - right)
    return _mean(gaps)


def calibration_error(pairs: Sequence[JudgedPair]) -> float | None:
    """Expected calibration error of the win rates: how sure beside how often right."""
    rates = [pair.win_rate for pair in pairs if pair.win_rate is not None]
    if not rates:
        return None
    return calibrate(2 * np.array(rates) - 1, slope=None).ece


def _mean(values: Sequence[float]) -> float | None:
    return fmean(values) if values else None
