"""Episode -> what the learner trains on."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch

from rl.advantages import group_advantages
from rl.objective_config import Kind
from rollout.episode import Completion, Group, StopReason, kept
from rollout.versions import Versions

NO_VERSION = -1  # of tokens that are not the policy's


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Sample:
    """One sequence, and what its loss needs to know of it. It holds no copy of the tokens.

    Tokens of the prompt, and those of versions before `oldest`, are context and not in the loss.
    """

    completion: Completion
    oldest: int
    advantage: float  # of the whole sequence

    @property
    def length(self) -> int:
        """Tokens, the prompt included."""
        return len(self.completion.prompt_ids) + len(self.completion.token_ids)

    @property
    def loss_tokens(self) -> int:
        """Tokens in the loss."""
        runs = self.completion.versions.runs()
        return sum(tokens for version, tokens in runs if version >= self.oldest)


def samples_of(
    group: Group, rewards: Sequence[float], *, oldest: int, kind: Kind = Kind.k2
) -> list[Sample]:
    """The group's episodes as samples, with the advantages of the objective over `rewards` [K].

    Tokens of versions before `oldest` are context, not in the loss (K1.5 sec. 2.6.2). An episode
    without any other still counts in the mean, and in the number of samples.
    """
    advantages = group_advantages(torch.tensor(rewards, dtype=torch.float64), kind).tolist()
    return [
        Sample(completion=episode.completion, oldest=oldest, advantage=advantage)
        for episode, advantage in zip(group.episodes, advantages, strict=True)
    ]


def supervised_sample(prompt_ids: Sequence[int], response_ids: Sequence[int]) -> Sample:
    """A worked solution to imitate: no behaviour policy, no advantage, temperature 1."""
    solution = Completion(
        prompt_ids=kept(prompt_ids, np.int32),
        token_ids=kept(response_ids, np.int32),
        logprobs=np.zeros(len(response_ids), np.float32),
        versions=Versions.of_runs([(NO_VERSION, len(response_ids))]),
        stop_reason=StopReason.stop,
        temperature=1.0,
    )
    return Sample(completion=solution, oldest=NO_VERSION, advantage=0.0)
