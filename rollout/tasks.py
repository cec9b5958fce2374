"""The stream of tasks: a mixture of families, the same at every position on every machine.

Nothing but the position is state, so a run resumes anywhere. What is held out is decided by a hash
of the question, or by the file of a whole test family: none is both trained on and tested, whatever
family or position it comes from.
"""

from collections.abc import Iterator, Set
from enum import StrEnum

from rewards.task import Task
from rollout.config import FamilyConfig, Source, TasksConfig
from rollout.draws import shuffled, uniform
from rollout.problem import DataError, Problem
from rollout.sources import ProblemSource, open_source

CYCLE = 1000  # positions after which the pattern of families repeats
STRIDE = 4096  # generator items that belong to one training position: most tries for one


class Split(StrEnum):
    """What a task may be used for."""

    train = "train"
    held_out = "held_out"


class TaskStream:
    """Tasks by position, mixed by weight. The held-out split never repeats a question."""

    def __init__(self, config: TasksConfig, split: Split, *, supervised: bool = False) -> None:
        """Open every family; `supervised` adds those that are only imitated.

        Raises `DataError` for a family that cannot be read or generated.
        """
        if not config.families:
            raise DataError("tasks.families is empty: name at least one family")
        whole = [family for family in config.test_families if family.whole]
        by_hash = split is Split.train or len(whole) < max(len(config.test_families), 1)
        empty = 100 if split is Split.train else 0
        if by_hash and config.held_out_percent == empty:
            raise DataError(f"tasks.held_out_percent={empty} leaves nothing for split {split}")
        self._config, self._split = config, split
        tested = split is Split.held_out and config.test_families
        chosen = config.test_families if tested else config.families
        for family in chosen:
            if family.source is Source.judgements:
                raise DataError(
                    f"families[{family.name}]: source judgements is to be imitated, and has no "
                    "reward: move it to tasks.supervised_families"
                )
        if supervised:
            chosen = [*chosen, *config.supervised_families]
        only_tested = {question for family in whole for question in _questions(family, config)}
        self._families = [Family(family, config, split, only_tested) for family in chosen]
        self.notes = [family.note for family in self._families if family.note]
        self.kinds = {kind for family in self._families for kind in family.kinds}
        self.rubric_names = {name for family in self._families for name in family.rubric_names}
        self._cycle = _cycle([family.weight for family in chosen])
        self._counts = [self._cycle.count(place) for place in range(len(chosen))]
        for family, count in zip(chosen, self._counts, strict=True):
            if not count:
                raise DataError(
                    f"families[{family.name}].weight={family.weight:g} is less than a task in "
                    f"{CYCLE} beside the others' weights, and none would ever come: raise it"
                )
        seen = [0] * len(self._families)
        self._ranks = []  # how often a position's family came earlier in the cycle
        for place in self._cycle:
            self._ranks.append(seen[place])
            seen[place] += 1
        self._held_out: list[tuple[Family, Problem]] = []
        self._questions: set[str] = set()

    def at(self, position: int) -> Task:
        """The task at `position` (from 0).

        A training task costs the same at every position. Held-out ones are distinct, so a position
        is found by walking there from the start, once; `DataError` if a family has no more of them.
        """
        family, problem = self.problem(position)
        config = family.config
        task_id = f"{config.name}/{self._split}/{position}"
        solution = problem.worked
        if family.procedural:
            careful = uniform(self._config.seed, "worked", task_id) < config.worked_share
            solution = solution if solution and careful else problem.hasty
        budget = config.token_budget or problem.token_budget
        return Task(
            id=task_id,
            kind=problem.kind,
            messages=problem.messages,
            reference=problem.reference,
            token_budget=budget or self._config.token_budgets.of(problem.kind),
            solution=solution,
            tags=(config.name, *problem.tags),
            rubrics=problem.rubrics,
        )

    def problem(self, position: int) -> tuple["Family", Problem]:
        """The problem behind the task at `position`, with the family it comes from."""
        if position < 0:
            raise DataError(f"a position is 0 or more, got {position}")
        return self._train(position) if self._split is Split.train else self._test(position)

    def _train(self, position: int) -> tuple["Family", Problem]:
        turn, step = divmod(position, CYCLE)
        place = self._cycle[step]
        family = self._families[place]
        return family, family.train(turn * self._counts[place] + self._ranks[step])

    def _test(self, position: int) -> tuple["Family", Problem]:
        while len(self._held_out) <= position:
            family = self._families[self._cycle[len(self._held_out) % CYCLE]]
            self._held_out.append((family, family.next_held_out(self._questions)))
        return self._held_out[position]


def corpus(config: TasksConfig, size: int) -> Iterator[str]:
    """Texts of the first `size` training tasks, question and solution, for a tokenizer."""
    stream = TaskStream(config, Split.train, supervised=True)
    for position in range(size):
        _, problem = stream.problem(position)
        yield "\n".join(message.content for message in problem.messages)
        if solution := problem.worked or problem.hasty:
            yield solution


class Family:
    """One family's share of a split."""

    def __init__(
        self, config: FamilyConfig, tasks: TasksConfig, split: Split, only_tested: Set[str]
    ) -> None:
        self.config = config
        self._tasks, self._only_tested = tasks, only_tested
        self._source: ProblemSource = open_source(config, tasks.seed)
        self.procedural = self._source.size is None
        self.note = self._source.note
        # What is generated is all of one kind.
        some = [self._source.problem(index) for index in range(self._source.size or 1)]
        self.kinds = {problem.kind for problem in some}
        self.rubric_names = {rubric.name for problem in some for rubric in problem.rubrics}
        self._next = 0  # held out: the first index not looked at yet
        self._rows: list[int] = []
        self._order: tuple[int, list[int]] = (-1, [])
        if self._source.size is not None and split is Split.train:
            rows = range(self._source.size)
            self._rows = [row for row in rows if not self._tests(self._source.problem(row))]
            if not self._rows:
                raise DataError(f"families[{config.name}]: every row of {config.path} is held out")

    def train(self, ordinal: int) -> Problem:
        """Training problem number `ordinal`: rows in a new order every epoch, or generated."""
        if not self.procedural:
            epoch, step = divmod(ordinal, len(self._rows))
            if self._order[0] != epoch:
                self._order = epoch, shuffled(self._tasks.seed, epoch, len(self._rows))
            return self._source.problem(self._rows[self._order[1][step]])
        for index in range(ordinal * STRIDE, (ordinal + 1) * STRIDE):
            problem = self._source.problem(index)
            if not self._tests(problem):
                return problem
        raise DataError(f"families[{self.config.name}]: (almost) every question is held out")

    def next_held_out(self, seen: set[str]) -> Problem:
        """The next problem that is held out and whose question is not in `seen`; adds it there."""
        size = self._source.size
        stop = self._next + STRIDE if size is None else size
        for index in range(self._next, stop):
            problem = self._source.problem(index)
            if self._tests(problem) and problem.question not in seen:
                self._next = index + 1
                seen.add(problem.question)
                return problem
        raise DataError(
            f"families[{self.config.name}] has no more distinct held-out questions ({len(seen)} in "
            "all families): ask for fewer, raise tasks.held_out_percent, widen its options, or "
            "name others in tasks.test_families"
        )

    def _tests(self, problem: Problem) -> bool:
        if problem.question in self._only_tested:
            return True
        share = uniform(self._tasks.seed, "held out", problem.question)
        return share * 100 < self._tasks.held_out_percent


def _questions(family: FamilyConfig, tasks: TasksConfig) -> Iterator[str]:
    """All of a file."""
    source = open_source(family, tasks.seed)
    for index in range(source.size or 0):
        yield source.problem(index).question


def _cycle(weights: list[float]) -> list[int]:
    """CYCLE places of families in proportion to their weights, as evenly spread as can be."""
    credit = [0.0] * len(weights)
    total = sum(weights)
    places = []
    for _ in range(CYCLE):
        credit = [have + weight for have, weight in zip(credit, weights, strict=True)]
        place = credit.index(max(credit))
        credit[place] -= total
        places.append(place)
    return places
