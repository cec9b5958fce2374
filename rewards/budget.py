"""The reward of an episode that ran over its token budget."""

from dataclasses import replace

from rewards.score import Score
from rewards.task import Transcript

PART = "budget"


def apply_budget(score: Score, transcript: Transcript, penalty: float = -0.5) -> Score:
    """The score with the budget applied (K2 sec. 3.2.3: over-budget outputs are cut and penalised).

    r = penalty if the episode was truncated, else the score's total. K2 does not disclose it; -0.5
    on the 0/1 scale makes running over worse than a wrong answer. Part "budget" is the difference,
    so the parts sum to the total: a right answer, truncated, is {"math": 1.0, "budget": -1.5}.
    """
    if not transcript.truncated:
        return score
    parts = {**score.parts, PART: penalty - score.total}
    why = f"over budget ({transcript.response_tokens} tokens); {score.why}".removesuffix("; ")
    return replace(score, total=penalty, parts=parts, why=why)
