"""Policy objectives: pure functions of log-probs that read like the papers.

T is the number of packed tokens, S the number of sequences they belong to. Denominators are
arguments, so that micro-batches add up to exactly the gradient of one large batch.
"""

from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor


@dataclass(frozen=True, slots=True, kw_only=True)
class SequenceSums:
    """What the K2 objective needs of each sequence."""

    logprob: Float[Tensor, " S"]  # sum over its loss tokens of ln pi_theta
    log_ratio: Float[Tensor, " S"]  # the same of ln pi_theta - ln pi_old
    tokens: Int[Tensor, " S"]  # number of loss tokens


def sequence_sums(
    logprobs: Float[Tensor, " T"],
    old_logprobs: Float[Tensor, " T"],
    sequence: Int[Tensor, " T"],
    sequences: int,
) -> SequenceSums:
    """Sum token log-probs by sequence.

    Args:
        logprobs: ln pi_theta of each loss token, with gradient.
        old_logprobs: ln pi_old of the same tokens, as the engine recorded them.
        sequence: index in [0, sequences) of the sequence that each token belongs to.
        sequences: S.
    """
    zeros = logprobs.new_zeros(sequences)
    return SequenceSums(
        logprob=zeros.index_add(0, sequence, logprobs),
        log_ratio=zeros.index_add(0, sequence, logprobs - old_logprobs),
        tokens=torch.bincount(sequence, minlength=sequences),
    )


def k2_loss(
    sums: SequenceSums,
    advantages: Float[Tensor, " S"],
    *,
    tau: float,
    total_sequences: int,
    length_normalised: bool = False,
) -> Float[Tensor, ""]:
    """K2's squared-residual objective in the form whose gradient is free of the constant 2 tau.

    `loss_i = -(r_i - rbar) sum_t ln pi_theta(y_t) + (tau/2) rho_i^2`,
    `rho_i = sum_t (ln pi_theta(y_t) - ln pi_old(y_t))`, averaged over all sequences of the step.
    Its gradient is that of `(r_i - rbar - tau rho_i)^2 / (2 tau)` (K2 sec. 3.2.3; K1.5 eq. 3).

    Args:
        sums: per-sequence sums.
        advantages: r_i - rbar of each sequence.
        tau: weight of the regulariser; small for long outputs, since rho is a sum.
        total_sequences: sequences in the whole optimiser step (the denominator).
        length_normalised: divide rho by the number of tokens. A departure from K2.
    """
    rho = sums.log_ratio
    if length_normalised:
        rho = rho / sums.tokens.clamp(min=1)
    per_sequence = -advantages * sums.logprob + 0.5 * tau * rho.square()
    return per_sequence.sum() / total_sequences


def ptx_loss(logprobs: Float[Tensor, " T"], *, total_tokens: int) -> Float[Tensor, ""]:
    """Negative log-likelihood of the supervised set, averaged over its tokens (K2 sec. 3.2.3).

    Args:
        logprobs: ln pi_theta of the tokens of this micro-batch.
        total_tokens: tokens of the whole optimiser step (the denominator).
    """
    return -logprobs.sum() / total_tokens
