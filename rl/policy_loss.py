"""From the settings and a micro-batch's log-probs to its loss and its share of the metrics.

Four policies meet at a loss token. The rollout sampled it, with an engine's numerics and weights
that are `lag` versions old, and recorded its log-prob. The learner starts the iteration with the
weights of its own version (start), and takes a step on each minibatch (theta). With
`old_logprobs=learner`, pi_old is the start: ratios and K2's rho measure how far the iteration has
moved, and nothing of the numerics or of the age of the token; the gap between rollout and start
is corrected by the importance weight `start / rollout` (the decoupled form of PPO: Hilton et al.,
arXiv 2110.00641; AReaL, arXiv 2505.24298). With `old_logprobs=rollout`, pi_old is the recorded
policy, and ratios and rho hold all of it.
"""

from collections.abc import Mapping

import torch
from jaxtyping import Float, Int
from torch import Tensor

from model.policy import PolicyOutput
from rl.batch import Batch
from rl.corrections import (
    Weights,
    effective_sample_size,
    masked_weights,
    sequence_log_ratios,
    staleness_weights,
    truncated_weights,
)
from rl.mismatch import Mismatch
from rl.objective_config import Correction, Kind, Level, ObjectiveConfig, OldLogprobs
from rl.objectives import (
    Loss,
    Tokens,
    cispo_loss,
    dapo_loss,
    dr_grpo_loss,
    grpo_loss,
    gspo_loss,
    k2_loss,
    k2p5_loss,
)

POLICY_TOTALS = (
    "objective/loss",
    "objective/rho",
    "objective/entropy",
    "objective/clipped",
    "correction/cut",
    "correction/weight",
    "correction/weight_square",
)
"""What micro-batches and shards add up, each over the denominator of the whole step."""


class PolicyLoss:
    """The objective of one iteration, and the mismatch seen under the weights it starts with."""

    def __init__(self, config: ObjectiveConfig, version: int, device: torch.device) -> None:
        """Nothing seen yet.

        Args:
            config: which objective.
            version: of the weights that the iteration starts with.
            device: where log-probs are.
        """
        self.mismatch = Mismatch(device)
        self._config = config
        self._version = version
        self._device = device

    def observe(self, part: Batch, start: Float[Tensor, " N"]) -> None:
        """Compare log-probs under the weights that the iteration starts with to the recorded."""
        self.mismatch.add(start, self._recorded(part), self._lags(part))

    def first(self, part: Batch, output: PolicyOutput) -> tuple[Tensor, dict[str, float]]:
        """Loss and totals of a micro-batch of the first minibatch: its pass is the start's."""
        start = output.logprobs.detach()
        self.observe(part, start)
        return self.later(part, output, start)

    def later(
        self, part: Batch, output: PolicyOutput, start: Float[Tensor, " N"] | None
    ) -> tuple[Tensor, dict[str, float]]:
        """Loss and totals of a micro-batch.

        Args:
            part: the micro-batch.
            output: of the policy on it, with gradient.
            start: its log-probs under the weights that the iteration starts with; None with
                old_logprobs=rollout.
        """
        recorded = self._recorded(part)
        old = recorded
        if self._config.old_logprobs is OldLogprobs.learner:
            assert start is not None
            old = start
        sequence = part.sequence_of_loss_tokens().to(self._device)
        weights = self._weights(old - recorded, sequence, part)
        tokens = Tokens(
            logprobs=output.logprobs,
            old_logprobs=old,
            weights=weights.values,
            sequence=sequence,
            advantages=part.advantages.to(self._device),
        )
        loss = policy_loss(self._config, tokens, part)
        return loss.value, _totals(loss, tokens, weights, output, part)

    def _weights(
        self, log_ratio: Float[Tensor, " N"], sequence: Int[Tensor, " N"], part: Batch
    ) -> Weights:
        config = self._config
        weights = Weights(torch.ones_like(log_ratio), torch.zeros_like(log_ratio, dtype=torch.bool))
        if config.correction is not Correction.none:
            if config.correction_level is Level.sequence:
                log_ratio = sequence_log_ratios(log_ratio, sequence, len(part.lengths))
            truncate = config.correction is Correction.truncate
            weights_of = truncated_weights if truncate else masked_weights
            weights = weights_of(log_ratio, config.correction_cap)
        if config.staleness_power:
            trust = staleness_weights(self._lags(part), config.staleness_power)
            weights = weights._replace(values=weights.values * trust)
        return weights

    def _recorded(self, part: Batch) -> Float[Tensor, " N"]:
        return part.behaviour_logprobs[part.loss_mask].to(self._device)

    def _lags(self, part: Batch) -> Int[Tensor, " N"]:
        lags = (self._version - part.versions[part.loss_mask]).clamp(min=0)
        return lags.to(self._device, torch.long)


def policy_loss(config: ObjectiveConfig, tokens: Tokens, part: Batch) -> Loss:
    """The objective of the settings, over the denominators of the whole optimiser step."""
    sequences, total, clip = part.total_sequences, loss_tokens(part), config.clip
    match config.kind:
        case Kind.k2:
            return k2_loss(
                tokens,
                tau=config.tau,
                total_sequences=sequences,
                length_normalised=config.length_normalised,
            )
        case Kind.k2p5:
            return k2p5_loss(tokens, tau=config.tau, clip=clip, total_tokens=total)
        case Kind.grpo:
            return grpo_loss(tokens, clip=clip, total_sequences=sequences)
        case Kind.dapo:
            return dapo_loss(tokens, clip=clip, total_tokens=total)
        case Kind.dr_grpo:
            return dr_grpo_loss(tokens, clip=clip, total_sequences=sequences)
        case Kind.gspo:
            return gspo_loss(tokens, clip=clip, total_sequences=sequences)
        case Kind.cispo:
            return cispo_loss(tokens, clip=clip, total_tokens=total)


def loss_tokens(part: Batch) -> int:
    """Loss tokens of the whole optimiser step; 1 for none, where all were too old."""
    return max(part.total_loss_tokens, 1)


def policy_metrics(totals: Mapping[str, float]) -> dict[str, float]:
    """Totals of a whole optimiser step as metrics."""
    metrics = dict(totals)
    metrics["correction/ess"] = effective_sample_size(
        metrics["correction/weight"], metrics.pop("correction/weight_square")
    )
    return metrics


@torch.no_grad()
def _totals(
    loss: Loss, tokens: Tokens, weights: Weights, output: PolicyOutput, part: Batch
) -> dict[str, float]:
    per_token = torch.stack(
        [
            output.entropy.sum(),
            loss.clipped.sum(),
            weights.cut.sum(),
            weights.values.sum(),
            weights.values.square().sum(),
        ]
    )
    values = [
        loss.value,
        tokens.sums(tokens.log_ratio).abs().sum() / part.total_sequences,
        *(per_token / loss_tokens(part)),
    ]
    return dict(zip(POLICY_TOTALS, torch.stack(values).tolist(), strict=True))
