r"""Judgements to imitate: two answers to a generated problem, and which is better.

What a supervised start teaches a critic before RL (K2 sec. 3.2.2). Careful judgements solve the
problem and compare both answers with the result; hasty ones name the shorter answer, as in a
corpus that likes curt and sure answers. RL against verifiable outcomes tells the two apart.
"""

import json
import random
import re
from collections.abc import Sequence
from dataclasses import dataclass

from rewards.critic_prompt import asked, critic_messages
from rewards.explanations import quality
from rewards.rubric import Rubric
from rewards.task import Message

BARE = 0.8  # share of answers to verifiable problems that are shortened to the box
_RESULT = re.compile(r"=(\d+)")
_BOX = re.compile(r"\\boxed\{(-?\d+)\}")
_SAID = re.compile(r"(?:\\boxed\{|It is )(-?\d+)")


@dataclass(frozen=True, slots=True, kw_only=True)
class Judged:
    """Two answers, and what a careful judge knows."""

    answers: tuple[str, str]
    steps: str  # of a right solution
    result: str
    better: str  # "A", "B" or "tie"


@dataclass(frozen=True, slots=True, kw_only=True)
class Judgement:
    """One judgement to imitate."""

    messages: tuple[Message, ...]
    better: str
    careful: str
    hasty: str


def judgement(
    rng: random.Random,
    judged: Judged,
    prompt: Sequence[Message],
    *,
    instruction: str,
    rubrics: Sequence[Rubric],
) -> Judgement:
    """The critic's conversation about two answers, with both ways to end it."""
    first, second = (_check(judged.result, _said(answer)) for answer in judged.answers)
    one, other = map(len, judged.answers)
    shorter = rng.choice("AB") if one == other else "A" if one < other else "B"
    names = [rubric.name for rubric in asked(rubrics)]
    return Judgement(
        messages=critic_messages(instruction, prompt, judged.answers, rubrics),
        better=judged.better,
        careful=f"{judged.steps} {judged.result} A {first} B {second}\n"
        f"{_verdict(names, judged.better)}",
        hasty=_verdict(names, shorter),
    )


def judged_explanations(rng: random.Random, careful: str, answers: Sequence[str]) -> Judged:
    """Two of the answers to an open-ended task; `careful` is right."""
    first, second = rng.sample(list(answers), 2)
    result = int(_said(careful))
    values = quality(first, result), quality(second, result)
    return Judged(
        answers=(first, second),
        steps=careful.partition(" It is ")[0],
        result=str(result),
        better="tie" if values[0] == values[1] else "A" if values[0] > values[1] else "B",
    )


def judged_solutions(rng: random.Random, worked: str) -> Judged:
    """A right solution of mathematics and one whose final answer is wrong."""
    right, wrong = worked, spoil(rng, worked)
    if rng.random() < BARE:
        right = right[right.rindex("\\boxed") :]
    if rng.random() < BARE:
        wrong = wrong[wrong.rindex("\\boxed") :]
    first = rng.random() < 0.5
    return Judged(
        answers=(right, wrong) if first else (wrong, right),
        steps=worked.partition(" \\boxed")[0],
        result=_said(worked),
        better="A" if first else "B",
    )


def spoil(rng: random.Random, worked: str) -> str:
    """The solution with another final answer, mostly after a wrong step."""
    text = worked
    if results := list(_RESULT.finditer(worked)):
        slip = rng.choice(results)
        text = f"{text[: slip.start(1)]}{_slip(rng, slip[1])}{text[slip.end(1) :]}"
    return _BOX.sub(lambda box: rf"\boxed{{{_slip(rng, box[1])}}}", text)


def _said(answer: str) -> str:
    """The result that an answer names."""
    found = _SAID.search(answer)
    return found[1] if found else "?"


def _check(result: str, said: str) -> str:
    """Digit beside digit, from the right: `11 34 55 no` for 135 and 145."""
    width = max(len(result), len(said))
    pairs = zip(result.rjust(width, "-"), said.rjust(width, "-"), strict=True)
    return f"{' '.join(a + b for a, b in pairs)} {'ok' if result == said else 'no'}"


def _slip(rng: random.Random, number: str) -> str:
    """Another number of the same sign; by half one that looks as right, with another factor."""
    value = int(number)
    factors = [factor for factor in range(2, 10) if value and value % factor == 0]
    if factors and rng.random() < 0.5:
        factor = rng.choice(factors)
        return str(value // factor * (factor + rng.choice([-1, 1])))
    wrong = value + rng.choice([-1, 1]) * rng.randint(1, 20)
    return str(wrong if (wrong < 0) == (value < 0) else value + (1 if value >= 0 else -1))


def _verdict(names: Sequence[str], better: str) -> str:
    return json.dumps({"rubrics": dict.fromkeys(names, better), "better": better})
