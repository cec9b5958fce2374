"""What the engine returns (`Completion`) and what the sampler makes of it (`Episode`, `Group`).

L is the number of tokens in one completion, P the number in its prompt, K the size of a group.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from enum import StrEnum
from typing import Protocol

from rewards.comparison import CriticReport
from rewards.score import Score
from rewards.task import Task, Transcript


class StopReason(StrEnum):
    """Why the engine stopped."""

    stop = "stop"  # the policy ended its turn
    length = "length"  # the token limit cut it
    repetition = "repetition"  # it went in circles (rewards.repetition)
    abort = "abort"  # the engine was told to


@dataclass(frozen=True, slots=True, kw_only=True)
class Completion:
    """One sampled continuation, token for token as drawn (the end-of-turn token included).

    The log-probs are those of the distribution sampled from: logits divided by `temperature`.
    """

    prompt_ids: list[int]  # [P]
    token_ids: list[int]  # [L]
    logprobs: list[float]  # [L] nats
    versions: list[int]  # [L] version of the weights that each token was sampled with
    stop_reason: StopReason
    temperature: float
    parked: int = 0  # times that others took its place in the engine (rollout.partial)


@dataclass(frozen=True, slots=True, kw_only=True)
class Episode:
    """One attempt at a task, scored."""

    completion: Completion
    transcript: Transcript
    score: Score


@dataclass(frozen=True, slots=True, kw_only=True)
class Group:
    """The K attempts at one task that share a baseline."""

    task: Task
    episodes: tuple[Episode, ...]  # [K]
    critique: CriticReport | None = None  # what ranking them took, if the critic did
    skipped: str = ""  # why they are not trained on, if they are not


class Generate(Protocol):
    """The one thing that the sampler needs of an engine."""

    async def draw(
        self, prompt_ids: Sequence[int], *, max_tokens: int, temperature: float
    ) -> Completion:
        """Draw one continuation of at most `max_tokens` tokens."""
        ...
