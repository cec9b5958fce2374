"""A question with what is known of its answer, before it becomes a task of some stream."""

from dataclasses import dataclass

from rewards.rubric import Rubric
from rewards.task import Message, TaskKind


class DataError(ValueError):
    """Tasks that cannot be read or generated: the user's mistake, with its place and its fix."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Problem:
    """What a generator makes and a row holds."""

    kind: TaskKind
    messages: tuple[Message, ...]
    question: str  # what decides whether the problem is held out
    reference: str  # as the verifier of `kind` reads it
    worked: str | None = None  # a good solution, if one is known
    hasty: str | None = (
        None  # what a careless author writes: the bare box, a program not thought out
    )
    token_budget: int | None = None
    tags: tuple[str, ...] = ()
    rubrics: tuple[Rubric, ...] = ()


def user_turn(question: str, instruction: str) -> tuple[Message, ...]:
    """The conversation of one question, with the family's instruction on a line of its own."""
    content = f"{question}\n{instruction}" if instruction else question
    return (Message(role="user", content=content),)
