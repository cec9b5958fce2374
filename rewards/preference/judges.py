"""Judges: what is asked of them, what they say, and the simple ones."""

import inspect
import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path
from typing import Protocol

from rewards.errors import RewardError
from rewards.plugin import load_function
from rewards.preference.records import ProblemKind, prompt_text
from rewards.task import Message

WORDS = {"A": 1.0, "A>B": 1.0, "B": 0.0, "B>A": 0.0, "TIE": 0.5, "A=B": 0.5}


@dataclass(frozen=True, slots=True, kw_only=True)
class Question:
    """Score one response, or compare two in the order in which they are shown."""

    prompt: tuple[Message, ...]
    responses: tuple[str, ...]  # one or two
    reference: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Judgement:
    """What a judge said."""

    value: float  # a score, or how much the first response is preferred: 1, 0, 0.5 for a tie
    truncated: bool = False  # the judge did not see, or did not say, all
    text: str = ""  # its words, if it has any


@dataclass(frozen=True, slots=True, kw_only=True)
class Failure:
    """Why there is no judgement."""

    kind: ProblemKind
    why: str


class Judge(Protocol):
    """Answers questions in any order; what it says of one does not depend on the others."""

    name: str  # for people
    identity: str  # everything its judgements depend on: what a kept judgement is found by
    compares: bool  # it is shown two responses rather than one

    def judge(self, questions: Sequence[Question]) -> Iterator[tuple[int, Judgement | Failure]]:
        """Every question's index with its judgement, as they come."""
        ...

    def close(self) -> None:
        """Give back what it holds."""
        ...


class FunctionJudge:
    """A function of a Python file: `score(prompt, response)` or `compare(prompt, a, b)`.

    Texts go in. A score is a number; a comparison is "A", "B" or "tie", or how much A is preferred
    as a number from 0 to 1. A conversation is one text with its roles.
    """

    def __init__(self, path: Path, name: str) -> None:
        """Load the function. Raises ValueError if the file has no such function."""
        try:
            self._function = load_function(path, name)
        except ValueError as error:
            raise ValueError(f"{path}:{name}: {error}") from error
        parameters = inspect.signature(self._function).parameters
        if len(parameters) not in (2, 3):
            raise ValueError(
                f"{path}:{name} takes {len(parameters)} arguments; "
                "write score(prompt, response) or compare(prompt, a, b)"
            )
        self.compares = len(parameters) == 3
        self.name = f"{path.name}:{name}"
        self.identity = f"function {name} {sha256(path.read_bytes()).hexdigest()}"

    def judge(self, questions: Sequence[Question]) -> Iterator[tuple[int, Judgement | Failure]]:
        """One call a question, in order. What the function raises is told, not raised."""
        for index, question in enumerate(questions):
            try:
                value = self._function(prompt_text(question.prompt), *question.responses)
            except (Exception, SystemExit) as error:  # the user's own code: that is its answer
                why = f"{self.name} raised {type(error).__name__}: {error}"
                yield index, Failure(kind=ProblemKind.failed, why=why[:300])
                continue
            yield index, (preference_of(value) if self.compares else score_of(value))

    def close(self) -> None:
        """Nothing is held."""


class VerifierJudge:
    """One of our verifiers; rows without a reference have no judgement."""

    compares = False

    def __init__(
        self, kind: str, verify: Callable[[Question, str], float], close: Callable[[], None]
    ) -> None:
        """`kind` names the verifier; it takes a question with its reference."""
        self.name = self.identity = f"verifier:{kind}"
        self._verify, self._close = verify, close

    def judge(self, questions: Sequence[Question]) -> Iterator[tuple[int, Judgement | Failure]]:
        """One call a question, in order."""
        for index, question in enumerate(questions):
            try:
                if question.reference is None:
                    raise RewardError("no 'reference' (or 'gold', 'answer') to verify against")
                yield index, score_of(self._verify(question, question.reference))
            except (RewardError, ValueError) as error:  # a reference that cannot be read
                yield index, Failure(kind=ProblemKind.failed, why=str(error)[:300])

    def close(self) -> None:
        """End the verifier's processes."""
        self._close()


def score_of(value: object) -> Judgement | Failure:
    """A score that a judge gave."""
    number = _number(value)
    if number is None:
        return Failure(kind=ProblemKind.nonsense, why=f"not a finite number: {value!r:.80}")
    return Judgement(value=number)


def preference_of(value: object) -> Judgement | Failure:
    """A preference that a judge gave, in words or as a number from 0 to 1."""
    if isinstance(value, str) and value.strip().upper() in WORDS:
        return Judgement(value=WORDS[value.strip().upper()])
    number = _number(value)
    if number is None or not 0.0 <= number <= 1.0:
        why = f'not "A", "B", "tie" or a number from 0 to 1: {value!r:.80}'
        return Failure(kind=ProblemKind.nonsense, why=why)
    return Judgement(value=number)


def _number(value: object) -> float | None:
    """A finite float; numbers of numpy and torch too."""
    if isinstance(value, str | bytes):
        return None
    try:
        number = float(value)  # type: ignore[arg-type]
    except (TypeError, ValueError, RuntimeError, OverflowError):
        return None
    return number if math.isfinite(number) else None
