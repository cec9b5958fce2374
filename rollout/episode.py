"""What the engine returns (`Completion`) and what the sampler makes of it (`Episode`, `Group`).

L is the number of tokens in one completion, P the number in its prompt, K the size of a group.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from enum import StrEnum
from typing import Any, Protocol

import numpy as np
from numpy.typing import ArrayLike, NDArray

from rewards.comparison import CriticReport
from rewards.score import Score
from rewards.task import Task, Transcript
from rollout.versions import Versions


class StopReason(StrEnum):
    """Why the engine stopped."""

    stop = "stop"  # the policy ended its turn
    length = "length"  # the token limit cut it
    repetition = "repetition"  # it went in circles (rewards.repetition)
    abort = "abort"  # the engine was told to


def kept(values: ArrayLike, dtype: type[np.generic]) -> NDArray[Any]:
    """The values as an array that cannot be written to; not copied if they are one."""
    array = np.asarray(values, dtype)
    if array.flags.writeable:
        array = array.view()
        array.setflags(write=False)
    return array


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Completion:
    """One sampled continuation, token for token as drawn (the end-of-turn token included).

    The log-probs are those of the distribution sampled from: logits divided by `temperature`.
    Sequences of numbers are made arrays here, once: pickled, an array travels between processes as
    one block of bytes that need not be copied. Two completions are equal if they are one object.
    """

    prompt_ids: NDArray[np.int32]  # [P]
    token_ids: NDArray[np.int32]  # [L]
    logprobs: NDArray[np.float32]  # [L] nats
    versions: Versions  # [L] version of the weights that each token was sampled with
    stop_reason: StopReason
    temperature: float
    parked: int = 0  # times that others took its place in the engine (rollout.partial)
    routing: NDArray[np.unsignedinteger] | None = None
    """Experts of each token but the last [P + L - 1, MoE layers, experts per token], which no
    engine computes; None: not recorded (rollout.routing)."""

    def __post_init__(self) -> None:
        object.__setattr__(self, "prompt_ids", kept(self.prompt_ids, np.int32))
        object.__setattr__(self, "token_ids", kept(self.token_ids, np.int32))
        object.__setattr__(self, "logprobs", kept(self.logprobs, np.float32))
        object.__setattr__(self, "versions", Versions.of(self.versions))
        assert len(self.token_ids) == len(self.logprobs) == len(self.versions)


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
