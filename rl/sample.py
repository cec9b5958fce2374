"""Episode -> flat token records that the learner can train on."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch

from rl.advantages import group_advantages
from rl.objective_config import Kind
from rollout.episode import Group


@dataclass(frozen=True, slots=True, kw_only=True)
class Sample:
    """One sequence of L tokens, every list aligned with `ids`.

    Example, a prompt of two tokens and a response of two, advantage 0.5:
    `ids=[7, 8, 20, 2]`, `loss_mask=[False, False, True, True]`,
    `behaviour_logprobs=[0, 0, -0.7, -0.1]`, `advantage=0.5`, `versions=[-1, -1, 3, 3]`.
    """

    ids: list[int]  # [L]
    loss_mask: list[bool]  # [L] true on tokens of the policy that are young enough
    behaviour_logprobs: list[float]  # [L] recorded by the engine, 0 where not the policy's
    versions: list[int]  # [L] weights each token was sampled with, -1 where not the policy's
    advantage: float  # of the whole sequence
    temperature: float  # logits are divided by it on both sides


def samples_of(
    group: Group, rewards: Sequence[float], *, oldest: int, kind: Kind = Kind.k2
) -> list[Sample]:
    """The group's episodes as samples, with the advantages of the objective over `rewards` [K].

    Tokens of versions before `oldest` are context, not in the loss (K1.5 sec. 2.6.2). An episode
    without any other still counts in the mean, and in the number of samples.
    """
    advantages = group_advantages(torch.tensor(rewards, dtype=torch.float64), kind).tolist()
    samples = []
    for episode, advantage in zip(group.episodes, advantages, strict=True):
        done = episode.completion
        prompt = len(done.prompt_ids)
        samples.append(
            Sample(
                ids=done.prompt_ids + done.token_ids,
                loss_mask=[False] * prompt + [version >= oldest for version in done.versions],
                behaviour_logprobs=[0.0] * prompt + done.logprobs,
                versions=[-1] * prompt + done.versions,
                advantage=advantage,
                temperature=done.temperature,
            )
        )
    return samples


def supervised_sample(prompt_ids: list[int], response_ids: list[int]) -> Sample:
    """A worked solution to imitate: no behaviour policy, no advantage, temperature 1."""
    prompt, response = len(prompt_ids), len(response_ids)
    return Sample(
        ids=prompt_ids + response_ids,
        loss_mask=[False] * prompt + [True] * response,
        behaviour_logprobs=[0.0] * (prompt + response),
        versions=[-1] * (prompt + response),
        advantage=0.0,
        temperature=1.0,
    )
