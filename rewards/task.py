"""What the policy is asked (`Task`) and what it answered, in words (`Transcript`)."""

from dataclasses import dataclass
from enum import StrEnum

from rewards.rubric import Rubric


class TaskKind(StrEnum):
    """Chooses the verifier and, through the recipe, the token budget."""

    math = "math"
    code = "code"
    instructions = "instructions"
    open = "open"  # no checkable answer: judged by the critic
    agent = "agent"
    critic = "critic"  # which of two answers is better, by the verifier of the task they answer


@dataclass(frozen=True, slots=True, kw_only=True)
class Message:
    """One turn of a conversation."""

    role: str  # "system", "user", "assistant" or "tool"
    content: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Task:
    """One prompt with what is needed to score an answer to it."""

    id: str  # unique and stable: "chain_sum/train/17"
    kind: TaskKind
    messages: tuple[Message, ...]
    reference: str  # the gold answer, as the verifier of `kind` reads it
    token_budget: int  # most tokens of the policy in one episode (K2 sec. 3.2.3)
    solution: str | None = None  # a worked solution, for the supervised start and the PTX set
    tags: tuple[str, ...] = ()  # the first is the family: metrics are split by it
    rubrics: tuple[Rubric, ...] = ()  # of this task alone, beside the recipe's (human-annotated)


@dataclass(frozen=True, slots=True, kw_only=True)
class Transcript:
    """An episode as its judges see it."""

    messages: tuple[Message, ...]  # the prompt, then the policy's turn
    response: str  # the policy's words, special tokens removed
    response_tokens: int
    truncated: bool  # stopped by the token budget rather than by the policy
