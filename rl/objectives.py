"""Policy objectives: pure functions of log-probs that read like the papers.

N is the number of loss tokens, S the number of sequences they belong to. A sequence y_i has
|y_i| loss tokens, advantage A_i, and at each token the ratio u = pi_theta / pi_old. Denominators
are arguments, so that micro-batches and shards add up to exactly the gradient of one large batch.

Every token has a weight w >= 0 that stands where the papers have their 0/1 loss mask: the
importance weight of `rl.corrections`. With weight 0 a token takes part in nothing.
"""

from dataclasses import dataclass
from typing import NamedTuple

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from rl.objective_config import Clip

MAX_LOG_RATIO = 20.0  # beyond it e^x is no ratio to learn from, and soon not finite


@dataclass(frozen=True, slots=True, kw_only=True)
class Tokens:
    """The loss tokens of a micro-batch, of whole sequences."""

    logprobs: Float[Tensor, " N"]  # ln pi_theta, with gradient
    old_logprobs: Float[Tensor, " N"]  # ln pi_old
    weights: Float[Tensor, " N"]  # of each token's loss
    sequence: Int[Tensor, " N"]  # the sequence that each token belongs to, in [0, S)
    advantages: Float[Tensor, " S"]

    @property
    def log_ratio(self) -> Float[Tensor, " N"]:
        """The ratio's logarithm, ln u."""
        return self.logprobs - self.old_logprobs

    @property
    def lengths(self) -> Int[Tensor, " S"]:
        """Loss tokens of each sequence, |y_i|; 1 for none."""
        return torch.bincount(self.sequence, minlength=len(self.advantages)).clamp(min=1)

    def sums(self, values: Float[Tensor, " N"]) -> Float[Tensor, " S"]:
        """Of a value of each token over its sequence."""
        zeros = values.new_zeros(len(self.advantages))
        return zeros.index_add(0, self.sequence, values)


class Loss(NamedTuple):
    """The loss of a micro-batch, and what its bounds did."""

    value: Float[Tensor, ""]
    clipped: Bool[Tensor, " N"]  # tokens whose ratio met a bound that held their gradient back


def ratio_of(log_ratio: Float[Tensor, " N"]) -> Float[Tensor, " N"]:
    """The ratio itself, finite whatever its logarithm."""
    return log_ratio.clamp(-MAX_LOG_RATIO, MAX_LOG_RATIO).exp()


def k2_loss(
    tokens: Tokens, *, tau: float, total_sequences: int, length_normalised: bool = False
) -> Loss:
    """K2's squared-residual objective in the form whose gradient is free of the constant 2 tau.

    `loss_i = -A_i sum_t w ln pi_theta(y_t) + (tau/2) rho_i^2`, `rho_i = sum_t w ln u`, averaged
    over sequences. With w = 1 its gradient is that of `(A_i - tau rho_i)^2 / (2 tau)` (K2 sec.
    3.2.3; K1.5 eq. 3), with other weights that gradient with each token's part times w.

    Args:
        tokens: with advantages r_i - rbar.
        tau: weight of the regulariser; small for long outputs, since rho is a sum.
        total_sequences: sequences in the whole optimiser step (the denominator).
        length_normalised: divide rho by the number of tokens. A departure from K2.
    """
    rho = tokens.sums(tokens.weights * tokens.log_ratio)
    if length_normalised:
        rho = rho / tokens.lengths
    logprob = tokens.sums(tokens.weights * tokens.logprobs)
    per_sequence = -tokens.advantages * logprob + 0.5 * tau * rho.square()
    nothing = torch.zeros_like(tokens.sequence, dtype=torch.bool)
    return Loss(per_sequence.sum() / total_sequences, nothing)


def k2p5_loss(tokens: Tokens, *, tau: float, clip: Clip, total_tokens: int) -> Loss:
    """K2.5's token-level objective (arXiv 2602.02276 eq. 1), as a loss.

    `-(1/N) sum_i sum_t w [ Clip(u, alpha, beta) A_i - tau (ln u)^2 ]`. Outside the bounds the
    first term has no gradient whatever the sign of A_i; the second remains. The paper prints the
    bounds on the ratio and speaks of the log-ratio: `ln alpha <= ln u <= ln beta` is the same.

    Args:
        tokens: with advantages r_i - rbar.
        tau: weight of the squared log-ratio.
        clip: alpha = 1 - low, beta = 1 + high.
        total_tokens: loss tokens of the whole optimiser step (the denominator N).
    """
    advantages = tokens.advantages[tokens.sequence]
    ratio = ratio_of(tokens.log_ratio)
    bounded = ratio.clamp(1 - clip.low, 1 + clip.high)
    gain = bounded * advantages - tau * tokens.log_ratio.square()
    return Loss(-(tokens.weights * gain).sum() / total_tokens, bounded != ratio)


def _surrogate(
    ratio: Float[Tensor, " N"], advantages: Float[Tensor, " N"], clip: Clip
) -> tuple[Float[Tensor, " N"], Bool[Tensor, " N"]]:
    """PPO's `min(u A, clip(u) A)` (arXiv 1707.06347 eq. 7), and where the bound is the lesser."""
    free = ratio * advantages
    bounded = ratio.clamp(1 - clip.low, 1 + clip.high) * advantages
    return torch.minimum(free, bounded), bounded < free


def grpo_loss(tokens: Tokens, *, clip: Clip, total_sequences: int) -> Loss:
    """GRPO (DeepSeekMath, arXiv 2402.03300 eq. 3): the mean over sequences of token means.

    `-(1/S) sum_i (1/|y_i|) sum_t w min(u A_i, clip(u) A_i)`. Without the paper's KL to a reference
    model: there is none beside pi_old.

    Args:
        tokens: with advantages (r_i - rbar) / std.
        clip: low = high = epsilon.
        total_sequences: sequences in the whole optimiser step (the denominator).
    """
    advantages = tokens.advantages[tokens.sequence]
    gain, clipped = _surrogate(ratio_of(tokens.log_ratio), advantages, clip)
    per_sequence = tokens.sums(tokens.weights * gain) / tokens.lengths
    return Loss(-per_sequence.sum() / total_sequences, clipped)


def dapo_loss(tokens: Tokens, *, clip: Clip, total_tokens: int) -> Loss:
    """DAPO (arXiv 2503.14476): GRPO with a higher upper bound, and every token alike.

    `-(1/N) sum_i sum_t w min(u A_i, clip(u) A_i)`. The paper's N are the tokens of one group;
    here they are those of the whole step.

    Args:
        tokens: with advantages (r_i - rbar) / std.
        clip: epsilon_low and epsilon_high.
        total_tokens: loss tokens of the whole optimiser step (the denominator N).
    """
    advantages = tokens.advantages[tokens.sequence]
    gain, clipped = _surrogate(ratio_of(tokens.log_ratio), advantages, clip)
    return Loss(-(tokens.weights * gain).sum() / total_tokens, clipped)


def dr_grpo_loss(tokens: Tokens, *, clip: Clip, total_sequences: int) -> Loss:
    """Dr. GRPO (arXiv 2503.20783 sec. 3.2): GRPO without its two divisions, by std and by length.

    `-(1/S) sum_i sum_t w min(u A_i, clip(u) A_i)`: a sum over tokens, as K2's objective is.

    Args:
        tokens: with advantages r_i - rbar.
        clip: low = high = epsilon.
        total_sequences: sequences in the whole optimiser step (the denominator).
    """
    advantages = tokens.advantages[tokens.sequence]
    gain, clipped = _surrogate(ratio_of(tokens.log_ratio), advantages, clip)
    return Loss(-(tokens.weights * gain).sum() / total_sequences, clipped)


def gspo_loss(tokens: Tokens, *, clip: Clip, total_sequences: int) -> Loss:
    """GSPO (arXiv 2507.18071 eq. 5-7): one ratio for a sequence, clipped as a whole.

    `-(1/S) sum_i min(s_i A_i, clip(s_i) A_i)`, `s_i = (pi_theta(y_i) / pi_old(y_i))^(1/|y_i|)`.
    Written as the paper's GSPO-token (eq. 13-14), which has the same value and gradient, and a
    place for w: `s_it = sg(s_i) pi_theta(y_t) / sg(pi_theta(y_t))`, averaged over the sequence.
    Tokens of weight 0 are left out of s_i.

    Args:
        tokens: with advantages (r_i - rbar) / std.
        clip: the left and right range, far smaller than those of token ratios.
        total_sequences: sequences in the whole optimiser step (the denominator).
    """
    kept = tokens.weights > 0
    counts = tokens.sums(kept.to(tokens.logprobs.dtype)).clamp(min=1)
    log_ratio = tokens.log_ratio.detach().where(kept, 0.0)
    mean = (tokens.sums(log_ratio) / counts)[tokens.sequence]
    ratio = ratio_of(mean) * (tokens.logprobs - tokens.logprobs.detach()).exp()
    gain, clipped = _surrogate(ratio, tokens.advantages[tokens.sequence], clip)
    per_sequence = tokens.sums(tokens.weights * gain) / tokens.lengths
    return Loss(-per_sequence.sum() / total_sequences, clipped)


def cispo_loss(tokens: Tokens, *, clip: Clip, total_tokens: int) -> Loss:
    """CISPO (MiniMax-M1, arXiv 2506.13585 eq. 4-5): the weight is clipped, no token is dropped.

    `-(1/N) sum_i sum_t w sg(clip(u)) A_i ln pi_theta(y_t)`. The paper's N are the tokens of one
    group; here they are those of the whole step.

    Args:
        tokens: with advantages (r_i - rbar) / std.
        clip: low = 1 is no lower bound, as in the paper.
        total_tokens: loss tokens of the whole optimiser step (the denominator N).
    """
    ratio = ratio_of(tokens.log_ratio.detach())
    bounded = ratio.clamp(1 - clip.low, 1 + clip.high)
    gain = bounded * tokens.advantages[tokens.sequence] * tokens.logprobs
    return Loss(-(tokens.weights * gain).sum() / total_tokens, bounded != ratio)


def ptx_loss(logprobs: Float[Tensor, " N"], *, total_tokens: int) -> Float[Tensor, ""]:
    """Negative log-likelihood of the supervised set, averaged over its tokens (K2 sec. 3.2.3).

    Args:
        logprobs: ln pi_theta of the tokens of this micro-batch.
        total_tokens: tokens of the whole optimiser step (the denominator).
    """
    return -logprobs.sum() / total_tokens
