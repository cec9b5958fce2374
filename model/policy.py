"""Log-probs of packed tokens under the network: the one path of every model and every loss.

T is the number of packed tokens, S the number of sequences, N the number of loss tokens.
"""

from collections.abc import Sequence
from typing import NamedTuple

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from kernels.logprob import token_logprobs
from model.network import Network


class PolicyOutput(NamedTuple):
    """What one forward pass tells the learner."""

    logprobs: Float[Tensor, " N"]  # with gradient
    entropy: Float[Tensor, " N"]  # nats, without gradient
    max_logits: Float[Tensor, "layers heads"]  # largest attention logit, for QK-Clip


class _Head(nn.Module):
    """Owns the head's weight a second time, so that an engine which gathers the weights of the
    module that runs finds it: the logits themselves are never built."""

    def __init__(self, lm_head: nn.Linear) -> None:
        super().__init__()
        self.weight = lm_head.weight

    def forward(
        self, hidden: Tensor, targets: Tensor, temperatures: Tensor
    ) -> tuple[Tensor, Tensor]:
        return token_logprobs(hidden, self.weight, targets, temperatures)


class Policy(nn.Module):
    """A network and the log-probs of its tokens."""

    def __init__(self, network: Network) -> None:
        """Wrap the network; `network.` is put before its parameters' names."""
        super().__init__()
        self.network = network
        self.head = _Head(network.lm_head)

    def forward(
        self,
        ids: Int[Tensor, " T"],
        loss_mask: Bool[Tensor, " T"],
        lengths: Sequence[int],
        temperatures: Float[Tensor, " S"],
        replay: Int[Tensor, "layers T K"] | None = None,
    ) -> PolicyOutput:
        """Log-probs of the tokens in the loss, each given what precedes it in its own sequence.

        The head is applied only where a loss token is predicted: prompts cost no logits.

        Args:
            ids: sequences laid end to end.
            loss_mask: true on tokens in the loss; false on the first token of every sequence.
            lengths: tokens of each sequence.
            temperatures: logits of a sequence are divided by its temperature.
            replay: experts that the rollout engine chose, if they are to be used again; -1 for all
                of a token whose experts are not known.
        """
        output = (
            self.network(ids, lengths, replay) if replay is not None else self.network(ids, lengths)
        )
        targets = loss_mask.nonzero().squeeze(-1)
        sizes = torch.tensor(lengths, device=temperatures.device)
        owner = torch.repeat_interleave(temperatures, sizes)
        logprobs, entropy = self.head(output.hidden[targets - 1], ids[targets], owner[targets])
        return PolicyOutput(logprobs, entropy, output.max_logits)
