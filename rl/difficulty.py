"""How hard a task is for a model, and whether to train on it (k2-spec 3.6): pure functions.

K2 keeps tasks of moderate difficulty by pass@k of its supervised model (sec. 3.2.1). K1.5 measures
the pass rate of ten samples at a fairly high temperature, excludes multiple choice, true-or-false
and proof questions, and drops what is answered right without reasoning within eight tries
(sec. 2.1).
"""

import re
from collections.abc import Sequence
from dataclasses import dataclass, replace
from enum import StrEnum

from rewards.budget import length_budget
from rewards.task import Task, TaskKind
from rl.evaluate import pass_at_k, passed
from rl.length import family
from rollout.episode import Group

BARS = 10  # of the histogram of pass rates, over [0, 1]


class Verdict(StrEnum):
    """What becomes of a task."""

    kept = "kept"
    too_hard = "too hard"
    too_easy = "too easy"
    guessed = "guessed without reasoning"
    multiple_choice = "multiple choice"
    true_or_false = "true or false"
    proof = "proof"
    too_long = "too long for the engines"


@dataclass(frozen=True, slots=True, kw_only=True)
class TaskProfile:
    """What the samples of one task show."""

    task: str  # its id
    family: str
    question: str
    correct: int  # of `samples`
    samples: int
    mean_tokens: float  # of a response
    p80_correct_tokens: int | None  # None: no right answer
    guesses: int | None  # right answers without reasoning; None: not tried
    verdict: Verdict

    @property
    def pass_rate(self) -> float:
        """Share of the samples that are right."""
        return self.correct / self.samples

    @property
    def kept(self) -> bool:
        """Whether to train on it."""
        return self.verdict is Verdict.kept


_TRUTHS = {"true", "false", "yes", "no"}
_ASKS_TRUTH = re.compile(r"\b(true or false|yes['\"]? or ['\"]?no)\b", re.IGNORECASE)
_ASKS_PROOF = re.compile(
    r"\b(dis)?prove\b|(^|[.?!:;,]\s*|\b(and|to)\s+)show that\b", re.IGNORECASE | re.MULTILINE
)
_ASKS_CHOICE = re.compile(
    r"\bwhich (one )?of the following\b|\b(correct|following) options?\b", re.IGNORECASE
)
_MARK = re.compile(r"\(([A-Ea-e])\)|^\s*([A-E])[.:)]\s", re.MULTILINE)
_LETTER = re.compile(r"\W*(?:\\(?:text|textbf|mathrm)\W*)?[A-E]\W*")


def guessable(task: Task) -> Verdict | None:
    """The rule by which a mathematical task is easy to hack, if one applies."""
    if task.kind is not TaskKind.math:
        return None
    question = task.messages[-1].content
    words = re.sub(r"\\text\w*|\W", "", task.reference).lower()
    if words in _TRUTHS or _ASKS_TRUTH.search(question):
        return Verdict.true_or_false
    marks = {(match[1] or match[2]).upper() for match in _MARK.finditer(question)}
    if _LETTER.fullmatch(task.reference) or marks >= {"A", "B", "C"}:
        return Verdict.multiple_choice
    if _ASKS_CHOICE.search(question):
        return Verdict.multiple_choice
    return Verdict.proof if _ASKS_PROOF.search(question) else None


def profile_of(group: Group, question: str, keep: tuple[float, float]) -> TaskProfile:
    """What one group shows, before any guess; `keep` are the pass rates of moderate difficulty."""
    right = [e.transcript.response_tokens for e in group.episodes if passed(e)]
    count = len(group.episodes)
    return TaskProfile(
        task=group.task.id,
        family=family(group.task),
        question=question,
        correct=len(right),
        samples=count,
        mean_tokens=sum(e.transcript.response_tokens for e in group.episodes) / count,
        p80_correct_tokens=length_budget(right, 80.0),
        guesses=None,
        verdict=moderate(len(right) / count, keep),
    )


def with_guesses(profile: TaskProfile, group: Group) -> TaskProfile:
    """The profile, given the task's answers without reasoning: one right guess drops it."""
    right = sum(passed(e) for e in group.episodes)
    return replace(profile, guesses=right, verdict=Verdict.guessed if right else profile.verdict)


def moderate(pass_rate: float, keep: tuple[float, float]) -> Verdict:
    """Whether a pass rate lies in the interval `keep`, ends included."""
    if pass_rate < keep[0]:
        return Verdict.too_hard
    return Verdict.too_easy if pass_rate > keep[1] else Verdict.kept


def mixed_chance(samples: int, correct: int, size: int) -> float:
    """Unbiased chance that a group of `size` draws holds right and wrong answers: it can teach.

    1 - C(n-c, k) / C(n, k) - C(c, k) / C(n, k), for k <= n (after Chen et al. 2021, eq. 1).
    """
    return pass_at_k(samples, correct, size) - (1.0 - pass_at_k(samples, samples - correct, size))


def histogram(profiles: Sequence[TaskProfile]) -> list[int]:
    """Tasks [BARS] by pass rate: [0, 0.1), [0.1, 0.2), ..., [0.9, 1]."""
    counts = [0] * BARS
    for each in profiles:
        counts[min(each.correct * BARS // each.samples, BARS - 1)] += 1
    return counts


@dataclass(frozen=True, slots=True, kw_only=True)
class Shares:
    """Of the groups of one family: how many are all wrong, all right, and mixed."""

    tasks: int
    pass_rate: float
    all_wrong: float
    all_right: float
    mixed: float
    mixed_in_training: float  # expected, at the group size of the recipe
    kept: int


def shares(profiles: Sequence[TaskProfile], group_size: int) -> dict[str, Shares]:
    """Over all tasks under "all", and by family."""
    by_name: dict[str, list[TaskProfile]] = {"all": list(profiles)}
    for each in profiles:
        by_name.setdefault(each.family, []).append(each)
    return {name: _share(rows, group_size) for name, rows in by_name.items() if rows}


def _share(profiles: Sequence[TaskProfile], group_size: int) -> Shares:
    count = len(profiles)
    wrong = sum(each.correct == 0 for each in profiles) / count
    right = sum(each.correct == each.samples for each in profiles) / count
    chances = [
        mixed_chance(each.samples, each.correct, min(group_size, each.samples)) for each in profiles
    ]
    return Shares(
        tasks=count,
        pass_rate=sum(each.pass_rate for each in profiles) / count,
        all_wrong=wrong,
        all_right=right,
        mixed=1.0 - wrong - right,
        mixed_in_training=sum(chances) / count,
        kept=sum(each.kept for each in profiles),
    )
