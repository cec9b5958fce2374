"""The critic's own task: which of two answers is right, where a verifier knows (K2 sec. 3.2.2)."""

import json
from collections.abc import Sequence
from dataclasses import dataclass

from rewards.calibration import VerifiedPair
from rewards.critic_config import CriticConfig, DecidedBy
from rewards.critic_prompt import asked, critic_messages
from rewards.critic_verdict import decide, read_verdict
from rewards.rubric import Rubric
from rewards.score import Score
from rewards.task import Task, TaskKind

PART = "critic"
_NAMED = {1.0: "A", 0.5: "a tie", 0.0: "B"}


@dataclass(frozen=True, slots=True, kw_only=True)
class CriticReference:
    """What the verifier of a verdict needs."""

    right: str  # "A" or "B"
    rubrics: tuple[Rubric, ...]  # asked about; their text is not kept
    decided_by: DecidedBy


def critic_task(
    pair: VerifiedPair,
    *,
    right_first: bool,
    id: str,
    config: CriticConfig,
    rubrics: Sequence[Rubric],
) -> Task:
    """The pair as a prompt of kind critic; the right answer is shown as A if `right_first`."""
    answers = (pair.right, pair.wrong) if right_first else (pair.wrong, pair.right)
    reference = {
        "right": "A" if right_first else "B",
        "rubrics": [
            {"name": each.name, "mandatory": each.mandatory, "weight": each.weight}
            for each in asked(rubrics)
        ],
        "decided_by": config.decided_by.value,
    }
    return Task(
        id=id,
        kind=TaskKind.critic,
        messages=critic_messages(config.instruction, pair.prompt, answers, rubrics),
        reference=json.dumps(reference, ensure_ascii=False),
        token_budget=config.token_budget,
        tags=(PART, pair.family),
    )


def parse_reference(reference: str) -> CriticReference:
    """Read the reference of a critic task.

    Raises:
        ValueError: it is not what `critic_task` writes.
    """
    try:
        content = json.loads(reference)
        right, rows = content["right"], content["rubrics"]
        rubrics = tuple(_rubric(row["name"], row["mandatory"], row["weight"]) for row in rows)
        decided_by = DecidedBy(content["decided_by"])
    except (ValueError, KeyError, TypeError, RecursionError) as error:
        raise ValueError(
            'the reference of a critic task must be {"right": "A" or "B", "rubrics": [{"name": '
            'text, "mandatory": true or false, "weight": number}, ...], "decided_by": "overall" or '
            f'"rubrics"}}, got {reference!r:.200}: {error}'
        ) from error
    if right not in ("A", "B"):
        raise ValueError(f'a critic task\'s right must be "A" or "B", got {right!r}')
    return CriticReference(right=right, rubrics=rubrics, decided_by=decided_by)


def verify(response: str, reference: str) -> Score:
    """1 if the verdict is for the right answer; a tie or an unreadable verdict is 0.

    What decides is the overall word or the vote of the rubrics, as where groups are ranked.

    Raises:
        ValueError: the reference cannot be read.
    """
    truth = parse_reference(reference)
    verdict = read_verdict(response, truth.rubrics)
    if isinstance(verdict, str):
        return Score(total=0.0, parts={PART: 0.0}, why=f"unreadable verdict: {verdict}")
    named = _NAMED[decide(verdict, truth.rubrics, truth.decided_by)]
    total = float(named == truth.right)
    return Score(total=total, parts={PART: total}, why=f"names {named}, the verifier {truth.right}")


def _rubric(name: object, mandatory: object, weight: object) -> Rubric:
    if not isinstance(name, str) or not isinstance(mandatory, bool):
        raise TypeError(f"rubric {name!r} with mandatory {mandatory!r}")
    if isinstance(weight, bool) or not isinstance(weight, int | float):
        raise TypeError(f"rubric {name!r} with weight {weight!r}")
    return Rubric(name=name, text=name, mandatory=mandatory, weight=weight)
