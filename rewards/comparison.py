"""Comparisons of two answers: how a model is asked, what comes of it, and what it took."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Protocol

from rewards.critic_verdict import PairVerdict
from rewards.errors import RewardError
from rewards.rubric import Rubric
from rewards.task import Message

MOST_PROBLEMS = 5  # told of one report


@dataclass(frozen=True, slots=True, kw_only=True)
class Answer:
    """What a model said."""

    text: str  # special tokens removed
    truncated: bool  # stopped by its token budget
    tokens: int  # generated
    prompt_tokens: int


class NoAnswer(RewardError):
    """One question was not answered, though others may be."""


class Ask(Protocol):
    """A model that answers messages. How many it answers at once is its own affair."""

    async def __call__(
        self, messages: Sequence[Message], *, max_tokens: int, temperature: float
    ) -> Answer:
        """One answer.

        Raises:
            ValueError: messages and answer do not fit the model's context.
            NoAnswer: this question was not answered, in spite of retries.
            RewardError: the model cannot be reached.
        """
        ...


@dataclass(frozen=True, slots=True, kw_only=True)
class Pair:
    """One comparison to make."""

    prompt: tuple[Message, ...]
    answers: tuple[str, str]
    rubrics: tuple[Rubric, ...] = ()  # the task's own


@dataclass(frozen=True, slots=True, kw_only=True)
class Judged:
    """One comparison in one order, after all tries."""

    verdict: PairVerdict | None  # None: unreadable
    says: float | None  # how much the answer shown as A is preferred
    last: Answer | None  # the model's last words; None: the last try was not answered
    retries: int  # tries beyond the first
    tokens: int  # generated, retries included
    prompt_tokens: int
    problem: str | None  # why there is no verdict


@dataclass(frozen=True, slots=True, kw_only=True)
class PairOutcome:
    """One comparison in both orders."""

    first: PairVerdict | None  # answers[0] is shown as A; None: unreadable
    second: PairVerdict | None  # answers[1] is shown as A
    says: tuple[float | None, float | None]  # by order: how much the one shown as A is preferred
    preference: float | None  # of answers[0]: 1, 0, or 0.5 for a tie or orders that disagree
    judgements: int
    retries: int  # tries beyond the first of each judgement
    tokens: int  # generated, retries included
    prompt_tokens: int
    problems: tuple[str, ...]  # why what could not be read could not


@dataclass(frozen=True, slots=True, kw_only=True)
class CriticReport:
    """What comparisons took and what was seen in them; reports add up."""

    pairs: int = 0  # that the critic was asked about
    judgements: int = 0  # two for each
    retries: int = 0
    unreadable: int = 0  # judgements without a verdict after all tries
    inconsistent: int = 0  # pairs whose verdict changes with the order
    ties: int = 0  # pairs that are called a tie in both orders
    says_a: int = 0  # judgements that prefer the answer shown as A: half, without position bias
    says_b: int = 0
    tokens: int = 0  # generated
    prompt_tokens: int = 0
    disqualified: int = 0  # answers that lost by rule
    problems: tuple[str, ...] = ()  # the first few

    def __add__(self, other: "CriticReport") -> "CriticReport":
        """Both together."""
        return CriticReport(
            pairs=self.pairs + other.pairs,
            judgements=self.judgements + other.judgements,
            retries=self.retries + other.retries,
            unreadable=self.unreadable + other.unreadable,
            inconsistent=self.inconsistent + other.inconsistent,
            ties=self.ties + other.ties,
            says_a=self.says_a + other.says_a,
            says_b=self.says_b + other.says_b,
            tokens=self.tokens + other.tokens,
            prompt_tokens=self.prompt_tokens + other.prompt_tokens,
            disqualified=self.disqualified + other.disqualified,
            problems=(self.problems + other.problems)[:MOST_PROBLEMS],
        )


def report_on(outcomes: Iterable[PairOutcome], disqualified: int = 0) -> CriticReport:
    """The report on comparisons, and on answers that lost without one."""
    return sum(map(_report_on_one, outcomes), CriticReport(disqualified=disqualified))


def _report_on_one(outcome: PairOutcome) -> CriticReport:
    first, second = outcome.says
    turns = first is not None and second is not None and first != 1.0 - second
    return CriticReport(
        pairs=int(outcome.judgements > 0),
        judgements=outcome.judgements,
        retries=outcome.retries,
        unreadable=outcome.judgements - (first is not None) - (second is not None),
        inconsistent=int(turns),
        ties=int(first == second == 0.5),
        says_a=outcome.says.count(1.0),
        says_b=outcome.says.count(0.0),
        tokens=outcome.tokens,
        prompt_tokens=outcome.prompt_tokens,
        problems=outcome.problems[:MOST_PROBLEMS],
    )
