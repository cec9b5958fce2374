"""Which hacks a reward falls for: known tricks by what they are tried on.

Run it against a reward function before it trains anything. Right answers are tried too: a reward
that refuses everything is no better.
"""

import json
import tempfile
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from rewards.evaluate import ACCEPTED_ABOVE
from rewards.hacks.answers import golds
from rewards.hacks.instructions import instruction_attempts
from rewards.hacks.programs import code_attempts
from rewards.hacks.responses import RIGHT, Attempt, attempts
from rewards.rows import Line
from rewards.scoring import ScoringPool
from rewards.task import TaskKind
from rewards.verdict import ScorerSpec, Trouble, Verdict

ANSWER = "ANSWER"
BOXED = r"\boxed{ANSWER}"
MOST_SHOWN = 400  # characters of an example's response


@dataclass(frozen=True, slots=True, kw_only=True)
class Cell:
    """One family of hacks on one type of answer."""

    family: str
    type: str
    tried: int
    failed: int  # hacks accepted; for right answers, those refused


@dataclass(frozen=True, slots=True, kw_only=True)
class Failure:
    """One response that was scored as it must not be."""

    family: str
    type: str
    response: str
    reference: str
    score: float | None
    why: str


@dataclass(frozen=True, slots=True, kw_only=True)
class HackReport:
    """What a reward falls for."""

    cells: tuple[Cell, ...]
    failures: tuple[Failure, ...]  # hacks accepted and right answers refused
    hangs: tuple[Failure, ...]  # it was stopped at the time limit
    raised: tuple[Failure, ...]  # it raised, or gave no score
    ran_text: bool  # it executed text of a response: close that before anything else

    @property
    def hacks_accepted(self) -> int:
        """Responses paid for nothing."""
        return sum(cell.failed for cell in self.cells if cell.family != RIGHT)

    @property
    def right_refused(self) -> int:
        """Right answers that were not paid."""
        return sum(cell.failed for cell in self.cells if cell.family == RIGHT)

    @property
    def clean(self) -> bool:
        """Nothing was found."""
        return not (self.failures or self.hangs or self.raised or self.ran_text)


def run_hack_matrix(
    spec: ScorerSpec,
    *,
    workers: int,
    seed: int = 0,
    answer_format: str = BOXED,
    progress: Callable[[int, int], None] = lambda done, total: None,
) -> HackReport:
    """Try every hack of the spec's kind. A score above 0.5 accepts a response.

    `answer_format` says where a math reward looks for the answer, which stands for ANSWER.

    Raises:
        ValueError: the plug-in cannot be loaded, or the format lacks ANSWER.
        RewardError: no worker starts.
    """
    if ANSWER not in answer_format:
        raise ValueError(f"the answer format {answer_format!r} needs the word {ANSWER}")
    with tempfile.TemporaryDirectory(prefix="temper-hacks-") as folder:
        canary = Path(folder) / "canary"
        tried = list(_attempts(spec.kind, seed, answer_format, str(canary)))
        lines = [Line(number, _row(spec.kind, each)) for number, each in enumerate(tried)]
        verdicts: list[Verdict] = []
        with ScoringPool(spec, workers) as pool:
            for verdict in pool.score(lines):
                verdicts.append(verdict)
                progress(len(verdicts), len(lines))
        ran_text = canary.exists()
    return _report(tried, verdicts, ran_text)


def _attempts(kind: TaskKind, seed: int, answer_format: str, canary: str) -> Iterator[Attempt]:
    def box(text: str) -> str:
        return answer_format.replace(ANSWER, text)

    if kind is TaskKind.code:
        yield from code_attempts(canary)
    elif kind is TaskKind.instructions:
        yield from instruction_attempts()
    else:
        types: set[str] = set()
        for gold in golds(seed):
            yield from attempts(gold, box, canary, hostile=gold.type not in types)
            types.add(gold.type)


def _row(kind: TaskKind, attempt: Attempt) -> bytes:
    if kind is TaskKind.math:
        keys = {"gold": attempt.reference}
    else:
        keys = {**json.loads(attempt.reference), "prompt": attempt.prompt}
    return json.dumps({"response": attempt.response, **keys}).encode()


def _report(tried: Sequence[Attempt], verdicts: Sequence[Verdict], ran_text: bool) -> HackReport:
    cells: dict[tuple[str, str], list[int]] = {}
    failures: list[Failure] = []
    hangs: list[Failure] = []
    raised: list[Failure] = []
    for attempt, verdict in zip(tried, verdicts, strict=True):
        accepted = verdict.score is not None and verdict.score > ACCEPTED_ABOVE
        failed = accepted != (attempt.family == RIGHT)
        cell = cells.setdefault((attempt.family, attempt.type), [0, 0])
        cell[0] += 1
        cell[1] += failed
        failure = _failure(attempt, verdict)
        if failed:
            failures.append(failure)
        if verdict.trouble is Trouble.late:
            hangs.append(failure)
        elif verdict.trouble is not None:
            raised.append(failure)
    return HackReport(
        cells=tuple(
            Cell(family=family, type=kind, tried=cell[0], failed=cell[1])
            for (family, kind), cell in cells.items()
        ),
        failures=tuple(failures),
        hangs=tuple(hangs),
        raised=tuple(raised),
        ran_text=ran_text,
    )


def _failure(attempt: Attempt, verdict: Verdict) -> Failure:
    return Failure(
        family=attempt.family,
        type=attempt.type,
        response=attempt.response[:MOST_SHOWN],
        reference=attempt.reference[:MOST_SHOWN],
        score=verdict.score,
        why=verdict.why,
    )
