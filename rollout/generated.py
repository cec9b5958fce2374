"""Problems that are made by rule, without a file and without an end."""

import json
import random
import re
from collections.abc import Mapping, Sequence
from dataclasses import fields
from difflib import get_close_matches
from typing import Any

from reasoning_gym.factory import DATASETS, create_dataset

from rewards.critic_config import INSTRUCTION
from rewards.rubric import RUBRICS, Rubric
from rewards.rubric_files import open_rubrics
from rewards.task import TaskKind
from rollout.config import FamilyConfig, Source
from rollout.draws import wide_hash
from rollout.explanations import careless_answer, make_explanation
from rollout.judgements import Judged, judged_explanations, judged_solutions, judgement
from rollout.problem import DataError, Problem, user_turn
from rollout.programs import make_program
from rollout.worked import WRITERS, boxed

TERSE_ONLY = ("basic_arithmetic", "count_bits", "count_primes", "lcm", "letter_counting")
"""Generators without a worked writer whose one right answer can be checked by value."""

BOILERPLATE = (
    re.compile(r"^Your task is to .*?\n\nNow, ", re.DOTALL),
    re.compile(r" Give only the \w+ as your final answer\."),
)
"""Cut from a generator's question: what repeats the question, or forbids to show the steps."""


class Procedural:
    """A reasoning_gym generator; the index seeds the item."""

    size: int | None = None
    note = ""

    def __init__(self, family: FamilyConfig, seed: int) -> None:
        """Raise `DataError` for an unknown generator or option, with the nearest name."""
        known = [*WRITERS, *TERSE_ONLY]
        if family.name not in known:
            raise DataError(
                f"no generator {family.name!r} whose answers can be checked by value"
                f"{_nearest(family.name, known)}; known: {', '.join(known)}"
            )
        options = [field.name for field in fields(DATASETS[family.name][1])]
        options = sorted(set(options) - {"seed", "size"})  # the stream's own
        _check_options(family, options)
        try:
            # An item is drawn from random.Random(seed + index): hashed, nearby seeds do not overlap
            # and families do not repeat one another's numbers.
            wide = wide_hash(str(seed), family.name, repr(sorted(family.options.items())))
            self._items = create_dataset(family.name, seed=wide, size=2**62, **family.options)
            self._items[0]
        except (AssertionError, TypeError, ValueError) as error:
            raise DataError(f"families[{family.name}].options {family.options}: {error}") from error
        self._instruction = family.instruction
        self._writer = WRITERS.get(family.name)

    def problem(self, index: int) -> Problem:
        """Generate item `index`."""
        item = self._items[index]
        question = item["question"]
        for pattern in BOILERPLATE:
            question = pattern.sub("", question)
        question = question[:1].upper() + question[1:].strip()
        answer = str(item["answer"])
        return Problem(
            kind=TaskKind.math,
            messages=user_turn(question, self._instruction),
            question=question,
            reference=answer,
            worked=self._writer(item["metadata"]) if self._writer else None,
            hasty=boxed(answer),
        )


class Programs:
    """Tiny programs to write; the index seeds each."""

    size: int | None = None
    note = ""

    def __init__(self, family: FamilyConfig, seed: int) -> None:
        """Raise `DataError` for an option that is not `steps`, or is no small number."""
        _check_options(family, ["steps"])
        self._steps = family.options.get("steps", 2)
        if type(self._steps) is not int or not 1 <= self._steps <= 9:
            raise DataError(
                f"families[{family.name}].options.steps must lie in [1, 9], got {self._steps!r}"
            )
        self._instruction = family.instruction
        self._words = (str(seed), family.name, str(self._steps))

    def problem(self, index: int) -> Problem:
        """Make program `index`."""
        made = make_program(random.Random(wide_hash(*self._words, str(index))), self._steps)
        return Problem(
            kind=TaskKind.code,
            messages=user_turn(made.question, self._instruction),
            question=made.question,
            reference=json.dumps({"tests": made.tests}),
            worked=made.careful,
            hasty=made.careless,
        )


class Explanations:
    """Open-ended: tell something about a product; the index seeds each."""

    size: int | None = None
    note = ""

    def __init__(self, family: FamilyConfig, seed: int) -> None:
        """Raise `DataError` for an option: there is none."""
        _check_options(family, [])
        self._instruction = family.instruction
        self._words = (str(seed), family.name)

    def problem(self, index: int) -> Problem:
        """Make task `index`."""
        made = make_explanation(random.Random(wide_hash(*self._words, str(index))))
        return Problem(
            kind=TaskKind.open,
            messages=user_turn(made.question, self._instruction),
            question=made.question,
            reference=json.dumps({"result": made.result}),
            worked=made.careful,
            hasty=made.careless,
        )


class Judgements:
    """Critic tasks about problems of other generated families; the index seeds each."""

    size: int | None = None
    note = ""

    def __init__(self, family: FamilyConfig, seed: int) -> None:
        """Raise `DataError` for options that name no rubrics or no families to judge."""
        _check_options(family, ["instruction", "rubrics", "of"])
        where = f"families[{family.name}].options"
        self._instruction = str(family.options.get("instruction", INSTRUCTION))
        try:
            names = [str(name) for name in family.options.get("rubrics", ["k2"])]
            self._rubrics: tuple[Rubric, ...] = open_rubrics(names, RUBRICS)
        except ValueError as error:
            raise DataError(f"{where}.rubrics: {error}") from error
        judged = [_judged_family(each, where) for each in family.options.get("of", ())]
        if not judged:
            raise DataError(f"{where}.of is empty: name the generated families that are judged")
        self._sources: list[ProblemMaker] = [_maker(each, seed) for each in judged]
        self._words = (str(seed), family.name)

    def problem(self, index: int) -> Problem:
        """Make judgement `index`."""
        rng = random.Random(wide_hash(*self._words, str(index)))
        source = self._sources[index % len(self._sources)]
        asked = source.problem(rng.randrange(2**40))
        made = judgement(
            rng,
            _judged(rng, asked),
            asked.messages,
            instruction=self._instruction,
            rubrics=self._rubrics,
        )
        return Problem(
            kind=TaskKind.critic,
            messages=made.messages,
            question=made.messages[-1].content,
            reference=made.better,
            worked=made.careful,
            hasty=made.hasty,
        )


ProblemMaker = Procedural | Explanations


def _judged(rng: random.Random, asked: Problem) -> Judged:
    assert asked.worked is not None, "checked by _judged_family"
    if asked.kind is TaskKind.open:
        factors = [int(word) for word in re.findall(r"\d+", asked.question)]
        careless = [careless_answer(rng, factors) for _ in range(3)]
        return judged_explanations(rng, asked.worked, [asked.worked, *careless])
    return judged_solutions(rng, asked.worked)


def _judged_family(given: FamilyConfig | Mapping[str, Any], where: str) -> FamilyConfig:
    """One of the families `of` which answers are judged."""
    if isinstance(given, FamilyConfig):
        family = given
    else:
        try:
            source = Source[str(given.get("source", Source.reasoning_gym.name))]
            family = FamilyConfig(**{**given, "source": source})
        except (KeyError, TypeError, ValueError) as error:
            raise DataError(f"{where}.of: {given!r:.100} is no family: {error}") from error
    written = family.source is Source.reasoning_gym and family.name in WRITERS
    if not written and family.source is not Source.explanations:
        raise DataError(
            f"{where}.of names {family.name!r}, of which no spoilt answers can be made; known: "
            f"explanations, {', '.join(WRITERS)}"
        )
    return family


def _maker(family: FamilyConfig, seed: int) -> ProblemMaker:
    if family.source is Source.explanations:
        return Explanations(family, seed)
    return Procedural(family, seed)


def _check_options(family: FamilyConfig, known: Sequence[str]) -> None:
    for option in family.options:
        if option not in known:
            raise DataError(
                f"families[{family.name}].options has no {option!r}"
                f"{_nearest(option, known)}; known: {', '.join(known) or 'none'}"
            )


def _nearest(name: str, known: Sequence[str]) -> str:
    near = get_close_matches(name, known, n=1)
    return f" (did you mean {near[0]!r}?)" if near else ""
