"""Several rewards of one episode, as one score."""

import math
from collections.abc import Mapping

from rewards.score import Score


def mix(scores: Mapping[str, Score | None], weights: Mapping[str, float]) -> Score | None:
    """total = sum of weight * part over the rewards that apply; None if none does.

    A reward that does not apply (None) is left out: its weight is not given to the others. One of
    weight 0 is watched: it is in `watched`, as it is, and in no part.

    Args:
        scores: by the reward's name.
        weights: the same names.
    """
    applied = {name: score for name, score in scores.items() if score is not None}
    if not applied:
        return None
    watched = {name: score.total for name, score in applied.items() if weights[name] == 0}
    applied = {name: score for name, score in applied.items() if weights[name] > 0}
    parts = {name: weights[name] * score.total for name, score in applied.items()}
    reasons = [f"{name}: {score.why}" for name, score in applied.items() if score.why]
    if len(applied) == 1:
        reasons = [score.why for score in applied.values()]
    total = math.fsum(parts.values())
    return Score(total=total, parts=parts, why="; ".join(reasons), watched=watched)
