"""The verdict on one episode."""

from collections.abc import Mapping
from dataclasses import dataclass, field


@dataclass(frozen=True, slots=True, kw_only=True)
class Score:
    """The reward of one episode, with where it came from.

    Example: a right answer that ran over its budget is
    `Score(total=-0.5, parts={"math": 1.0, "budget": -1.5}, why="over budget (64 tokens)")`.
    """

    total: float
    parts: Mapping[str, float] = field(default_factory=dict)  # by reward name; they sum to total
    why: str = ""  # one line a person can read
    watched: Mapping[str, float] = field(default_factory=dict)  # measured, not rewarded
