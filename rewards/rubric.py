"""Rubrics: what makes one answer to an open-ended prompt better than another (K2 sec. 3.2.2)."""

import math
import re
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path

RUBRICS = Path(__file__).resolve().parent.parent / "configs" / "rubrics"  # where names are found
# In a name: line breaks, controls, and what would pass for a mark of the critic's prompt.
_FORGES = re.compile(
    r"[\x00-\x1f\x7f-\x9f\u2028\u2029\ud800-\udfff]|</?[a-zA-Z|]|\|>|\[/?[A-Z]{2,}\]"
)


class Rule(StrEnum):
    """A rubric that is decided by rule, not by the critic."""

    opening_praise = "opening_praise"  # it opens by complimenting the user or the question
    self_justification = "self_justification"  # it says why it is good or how it met the request


@dataclass(frozen=True, slots=True, kw_only=True)
class Rubric:
    """One criterion.

    Raises:
        ValueError: an empty name or text, a name that is not one plain line, a weight that is not
            positive, or a rule that is not mandatory: what a rule finds is a violation.
    """

    name: str  # a key of the critic's verdict
    text: str  # as the critic reads it
    weight: float = 1.0
    mandatory: bool = False  # an answer that violates it is rewarded 0
    rule: Rule | None = None

    def __post_init__(self) -> None:
        """Check the fields."""
        if not self.name.strip():
            raise ValueError("a rubric needs a name")
        where = f"rubric {self.name!r}"
        if _FORGES.search(self.name):
            raise ValueError(f"{where}: rename it: a name is one line, without tags or [TOKENS]")
        if not self.text.strip():
            raise ValueError(f"{where}: text is empty")
        if not 0.0 < self.weight < math.inf:
            raise ValueError(f"{where}: weight must be positive and finite, got {self.weight}")
        if self.rule is not None and not self.mandatory:
            raise ValueError(f"{where}: a rubric with a rule is mandatory: add mandatory: true")
