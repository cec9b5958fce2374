"""What is kept of the policy before RL, to compare later ones with: `baseline.json`."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from pydantic import TypeAdapter, ValidationError

from rewards.calibration import VerifiedPair
from rewards.task import Task, TaskKind
from rl.errors import BadInput
from rl.evaluate import watched
from rollout.episode import Group


@dataclass(frozen=True, slots=True, kw_only=True)
class StartingAnswer:
    """What the policy said to an open-ended task before RL."""

    task: Task
    response: str
    watched: float | None


@dataclass(frozen=True, slots=True, kw_only=True)
class Baseline:
    """What is kept of the policy before RL, to compare with."""

    answers: tuple[StartingAnswer, ...]  # to held-out open-ended tasks
    pairs: tuple[VerifiedPair, ...]  # from held-out verifiable tasks

    def write(self, path: Path) -> None:
        """Keep it in the run folder."""
        path.write_bytes(TypeAdapter(Baseline).dump_json(self))

    @classmethod
    def read(cls, path: Path) -> "Baseline":
        """What `write` kept. Raises `BadInput` if it is not there or damaged."""
        try:
            return TypeAdapter(Baseline).validate_json(path.read_bytes())
        except (OSError, ValidationError) as error:
            raise BadInput(f"{path} cannot be read, start the run anew: {error}") from error


def starting_answers(groups: Sequence[Group]) -> Iterator[StartingAnswer]:
    """The first answer to every open-ended task."""
    for group in groups:
        first = group.episodes[0]
        if group.task.kind is TaskKind.open:
            yield StartingAnswer(
                task=group.task, response=first.transcript.response, watched=watched(first)
            )
