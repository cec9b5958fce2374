"""Log-probs of packed tokens under the network: the one path of every model and every loss.

T is the number of packed tokens, S the number of sequences, N the number of loss tokens.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from kernels.logprob import token_logprobs
from model.k2 import K2


@dataclass(frozen=True, slots=True, kw_only=True)
class PolicyOutput:
    """What one forward pass tells the learner."""

    logprobs: Float[Tensor, " N"]  # with gradient
    entropy: Float[Tensor, " N"]  # nats, without gradient
    max_logits: Float[Tensor, "layers heads"]  # largest attention logit, for QK-Clip


def loss_token_logprobs(
    model: K2,
    ids: Int[Tensor, " T"],
    loss_mask: Bool[Tensor, " T"],
    lengths: Sequence[int],
    temperatures: Float[Tensor, " S"],
) -> PolicyOutput:
    """Log-probs of the tokens in the loss, each given what precedes it in its own sequence.

    The head is applied only where a loss token is predicted: prompts cost no logits.

    Args:
        model: the network.
        ids: sequences laid end to end.
        loss_mask: true on tokens in the loss; false on the first token of every sequence.
        lengths: tokens of each sequence.
        temperatures: logits of a sequence are divided by its temperature.
    """
    output = model(ids, lengths)
    targets = loss_mask.nonzero().squeeze(-1)
    owner = torch.repeat_interleave(temperatures, torch.tensor(lengths))
    logprobs, entropy = token_logprobs(
        output.hidden[targets - 1], model.lm_head.weight, ids[targets], owner[targets]
    )
    return PolicyOutput(logprobs=logprobs, entropy=entropy, max_logits=output.max_logits)
