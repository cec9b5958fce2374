"""A reward model of transformers as a judge of single responses."""

import json
import sys
from collections.abc import Iterator, Sequence
from contextlib import redirect_stdout
from hashlib import sha256
from pathlib import Path

from model.reward_model import RewardModel
from rewards.preference.judges import Failure, Judgement, Question, score_of


class RewardModelJudge:
    """Scores the prompt with one response after another."""

    compares = False

    def __init__(self, checkpoint: Path, *, max_tokens: int | None = None) -> None:
        """Load the checkpoint. Raises `CheckpointError`."""
        with redirect_stdout(sys.stderr):  # libraries greet on standard output, where JSON goes
            self._model = RewardModel(checkpoint, max_tokens=max_tokens)
        self.name = checkpoint.resolve().name
        files = sorted(each for each in checkpoint.iterdir() if each.is_file())
        stamps = [(each.name, each.stat().st_size, each.stat().st_mtime_ns) for each in files]
        asked = (stamps, self._model.max_tokens, self._model.dtype)
        self.identity = f"reward model {sha256(json.dumps(asked).encode()).hexdigest()}"

    def judge(self, questions: Sequence[Question]) -> Iterator[tuple[int, Judgement | Failure]]:
        """One at a time, in order."""
        for index, question in enumerate(questions):
            turns = [(message.role, message.content) for message in question.prompt]
            reward = self._model.score([*turns, ("assistant", question.responses[0])])
            said = score_of(reward.value)
            if isinstance(said, Judgement):
                said = Judgement(value=said.value, truncated=reward.truncated)
            yield index, said

    def close(self) -> None:
        """The process ends soon."""
