"""Rewards of length: running over the budget, going in circles, and being longer than needed.

Formulas of the papers, as pure functions. `r` is the reward of an episode, `|y|` its tokens.
"""

import math
from collections.abc import Sequence
from dataclasses import replace

from rewards.score import Score
from rewards.task import Transcript

PART = "budget"
REPETITION_PART = "repetition"
LENGTH_PART = "length"


def apply_budget(score: Score, transcript: Transcript, penalty: float = -0.5) -> Score:
    """The score with the budget applied (K2 sec. 3.2.3: over-budget outputs are cut and penalised).

    r = penalty if the episode was truncated, else the score's total. K2 does not disclose it; -0.5
    on the 0/1 scale makes running over worse than a wrong answer. Part "budget" is the difference,
    so the parts sum to the total: a right answer, truncated, is {"math": 1.0, "budget": -1.5}.
    """
    if not transcript.truncated:
        return score
    return with_total(score, penalty, PART, f"over budget ({transcript.response_tokens} tokens)")


def apply_repetition(score: Score, tokens: int, penalty: float = -0.5) -> Score:
    """The score of an episode that was stopped after `tokens` tokens for going in circles.

    r = penalty (K1.5 sec. 2.6.2 names the early stop; the value is ours). Part "repetition" is the
    difference.
    """
    return with_total(score, penalty, REPETITION_PART, f"repeats itself ({tokens} tokens)")


def with_total(score: Score, total: float, part: str, why: str) -> Score:
    """The score with another total: `part` takes the difference, `why` comes first."""
    parts = {**score.parts, part: total - score.total}
    return replace(score, total=total, parts=parts, why=f"{why}; {score.why}".removesuffix("; "))


def length_rewards(lengths: Sequence[int], correct: Sequence[bool]) -> list[float]:
    """K1.5's length reward of a group (sec. 2.3.3), to be added with a weight.

    lam_i = 0.5 - (|y_i| - min) / (max - min); lam_i for a right answer, min(0, lam_i) for a wrong
    one; 0 for all if max = min, over the lengths of the whole group.
    """
    shortest, longest = min(lengths), max(lengths)
    if shortest == longest:
        return [0.0] * len(lengths)
    lam = [0.5 - (length - shortest) / (longest - shortest) for length in lengths]
    return [each if right else min(0.0, each) for each, right in zip(lam, correct, strict=True)]


def soft_overlong(length: int, budget: int, soft: int) -> float:
    """DAPO's soft overlong punishment (arXiv 2503.14476, eq. 13), to be added with a weight.

    0 if |y| <= L_max - L_cache; -1 if |y| > L_max; ((L_max - L_cache) - |y|) / L_cache between.

    Args:
        length: |y|, tokens.
        budget: L_max, tokens.
        soft: L_cache, at least 1: tokens before the budget in which the punishment grows.
    """
    return -min(max((length - (budget - soft)) / soft, 0.0), 1.0)


def toggle(
    rewards: Sequence[float], lengths: Sequence[int], budget: float, accuracy: float, least: float
) -> list[float]:
    """K2.5's Toggle in its limited phase (K2.5 report); in the other phase the rewards stay.

    r_i * 1[accuracy < least or |y_i| <= budget]. A reward below 0 stays: times 0, it would rise.

    Args:
        rewards: r_i of a group.
        lengths: |y_i|, tokens.
        budget: of the problem, tokens; see `length_budget`.
        accuracy: share of the group that is right.
        least: lambda; groups solved less often are not limited.
    """
    if accuracy < least:
        return list(rewards)
    return [
        r if length <= budget else min(r, 0.0) for r, length in zip(rewards, lengths, strict=True)
    ]


def limited_phase(step: int, phase_steps: int) -> bool:
    """Whether Toggle limits step `step` (from 0): phases of `phase_steps` take turns."""
    return step // phase_steps % 2 == 0


def length_budget(lengths: Sequence[int], percentile: float) -> int | None:
    """Toggle's budget: the smallest length that `percentile` % of right answers do not exceed.

    None if no answer was right: nothing is known, so nothing is limited.
    """
    if not lengths:
        return None
    return sorted(lengths)[max(math.ceil(len(lengths) * percentile / 100) - 1, 0)]
