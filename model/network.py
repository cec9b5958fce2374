"""What every network gives the learner, whatever its architecture.

Shapes: T packed tokens, D hidden, L attention layers, N heads, K experts per token.
"""

from abc import abstractmethod
from collections.abc import Iterator, Sequence
from typing import NamedTuple

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn


class NetworkOutput(NamedTuple):
    """One forward pass. The head turns `hidden` into log-probs without ever building [T, V]."""

    hidden: Float[Tensor, "T D"]  # after the final norm
    max_logits: Float[Tensor, "L N"]  # largest scaled attention logit of every head, no gradient


class Network(nn.Module):
    """A causal language model over packed sequences."""

    lm_head: nn.Linear
    context: int  # most tokens of one sequence
    compute_dtype: torch.dtype  # of activations
    load: Int[Tensor, "moe_layers E"] | None = None  # tokens of every expert, if they are counted
    qk_clip_note: str | None = None  # why QK-Clip leaves this network alone; None where it applies

    @abstractmethod
    def forward(
        self,
        ids: Int[Tensor, " T"],
        lengths: Sequence[int],
        replay: Int[Tensor, "layers T K"] | None = None,
    ) -> NetworkOutput:
        """Hidden states of sequences laid end to end; `lengths` are theirs and sum to T.

        `replay`: the experts that the rollout engine chose in every MoE layer; the weights of a
        token's experts are still computed here.
        """

    @abstractmethod
    def clip_rows(
        self, gamma: Float[Tensor, "L N"]
    ) -> Iterator[tuple[str, Float[Tensor, " rows"]]]:
        """What QK-Clip multiplies: parameter names with one factor for each of their rows.

        `gamma` is below one for the heads to scale down, one for the others. A network whose heads
        cannot be scaled by their weights yields nothing.
        """

    def embeddings(self) -> set[str]:
        """Names of the weights of embeddings, which are tables, no matrices."""
        modules = self.named_modules()
        return {f"{name}.weight" for name, module in modules if isinstance(module, nn.Embedding)}

    def derive_(self, module: nn.Module) -> None:
        """Give a module of the network, fresh in memory, what follows from the config alone."""
