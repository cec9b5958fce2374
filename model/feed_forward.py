"""What stands after attention: SwiGLU, and the mixture of experts with its router (spec 1.2, 1.4).

Shapes: T packed tokens, D hidden, E experts, K experts per token, I expert width.
"""

from typing import NamedTuple

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn
from torch.nn import functional

from kernels.experts import routed_experts
from kernels.int4 import fake_quantise
from model.k2_config import K2Config


class Linear(nn.Linear):
    """No bias; the weight is cast to the activation's precision."""

    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__(inputs, outputs, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        """x @ weight.T."""
        return functional.linear(x, self.weight.to(x.dtype))


class SwiGLU(nn.Module):
    """down( silu(gate(x)) * up(x) )."""

    def __init__(self, hidden: int, width: int) -> None:
        super().__init__()
        self.gate_proj = Linear(hidden, width)
        self.up_proj = Linear(hidden, width)
        self.down_proj = Linear(width, hidden)

    def forward(self, x: Float[Tensor, "T D"]) -> Float[Tensor, "T D"]:
        """Spec 1.2."""
        return self.down_proj(functional.silu(self.gate_proj(x)) * self.up_proj(x))


class Routed(NamedTuple):
    """Where a router sends its tokens."""

    chosen: Int[Tensor, "T K"]
    weights: Float[Tensor, "T K"]
    differing: Int[Tensor, ""] | None  # choices of a replay that it would not have made itself


class Router(nn.Module):
    """Sigmoid router (spec 1.4): the bias helps to choose the experts, never to weight them.

    It may be given the choices of the rollout engine (R3, arXiv 2510.11370). Weights are of its own
    scores all the same: their gradient reaches the scores of the experts that were replayed.
    """

    e_score_correction_bias: Tensor  # [E] fp32
    follows = True
    """Whether it takes a replay's experts; else it only counts where its own choice differs."""

    def __init__(self, config: K2Config) -> None:
        super().__init__()
        self.per_token, self.factor = config.num_experts_per_tok, config.routed_scaling_factor
        self.groups, self.kept_groups = config.n_group, config.topk_group
        self.weight = nn.Parameter(torch.empty(config.n_routed_experts, config.hidden_size))
        self.register_buffer("e_score_correction_bias", torch.zeros(config.n_routed_experts))

    def forward(self, x: Float[Tensor, "T D"], replay: Int[Tensor, "T K"] | None = None) -> Routed:
        """Chosen experts, those of `replay` where it names any (-1: it does not), and weights."""
        precise = torch.promote_types(x.dtype, torch.float32)
        scores = functional.linear(x.to(precise), self.weight.to(precise)).sigmoid()
        chosen, differing = self._choose(scores.detach()), None
        if replay is not None:
            chosen, differing = self._replayed(chosen, replay)
        mine = scores.gather(1, chosen)
        weights = self.factor * mine / (mine.sum(-1, keepdim=True) + 1e-20)
        return Routed(chosen, weights, differing)

    def _replayed(
        self, own: Int[Tensor, "T K"], replay: Int[Tensor, "T K"]
    ) -> tuple[Int[Tensor, "T K"], Int[Tensor, ""]]:
        """The experts to take, and how many of the replay's are not among the own."""
        recorded = replay[:, :1] >= 0
        shared = (replay[:, :, None] == own[:, None]).any(-1)
        differing = (recorded & ~shared).sum()
        return torch.where(recorded, replay, own) if self.follows else own, differing

    def _choose(self, scores: Float[Tensor, "T E"]) -> Int[Tensor, "T K"]:
        """The best biased scores, of the best groups only if there are groups (DeepSeek-V3)."""
        biased = scores + self.e_score_correction_bias
        if self.groups > 1:
            grouped = biased.unflatten(-1, (self.groups, -1))
            ranks = grouped.topk(2, dim=-1).values.sum(-1)
            best = ranks.topk(self.kept_groups, dim=-1, sorted=False).indices
            out = torch.ones_like(ranks, dtype=torch.bool).scatter_(1, best, False)
            biased = grouped.masked_fill(out[..., None], -torch.inf).flatten(1)
        return biased.topk(self.per_token, dim=-1, sorted=False).indices

    @torch.no_grad()
    def balance_(self, load: Int[Tensor, " E"], rate: float) -> None:
        """One step of auxiliary-loss-free balancing, b += u (sign(e) - mean sign(e)) (spec 1.4).

        `load` counts the tokens of every expert over the whole batch; e is what each lacks to the
        mean. Off in RL: there the bias is frozen.
        """
        lacking = (load.double().mean() - load).sign()
        self.e_score_correction_bias += (rate * (lacking - lacking.mean())).to(torch.float32)


class Experts(nn.Module):
    """The routed experts of one layer; an expert's gate rows come before its up rows."""

    def __init__(self, config: K2Config, int4: bool = False) -> None:
        super().__init__()
        experts, hidden, width = (
            config.n_routed_experts,
            config.hidden_size,
            config.moe_intermediate_size,
        )
        self.int4 = int4
        self.gate_up_proj = nn.Parameter(torch.empty(experts, 2 * width, hidden))
        self.down_proj = nn.Parameter(torch.empty(experts, hidden, width))

    def forward(self, x: Tensor, chosen: Tensor, weights: Tensor) -> Float[Tensor, "T D"]:
        """Weighted sum over a token's experts."""
        gate_up, down = (
            expert_weight(weight, x.dtype, int4=self.int4)
            for weight in (self.gate_up_proj, self.down_proj)
        )
        return routed_experts(x, gate_up, down, chosen, weights)


def expert_weight(weight: Tensor, dtype: torch.dtype, *, int4: bool) -> Tensor:
    """What the activations meet: the weight in `dtype` or, in INT4 training, w_hat (spec 7)."""
    return fake_quantise(weight, dtype=dtype) if int4 else weight.to(dtype)


class MixtureOfExperts(nn.Module):
    """Routed experts plus the shared expert, which is unscaled (spec 1.4)."""

    def __init__(self, config: K2Config, int4: bool = False) -> None:
        super().__init__()
        self.gate = Router(config)
        self.experts = Experts(config, int4)
        self.shared_experts = SwiGLU(
            config.hidden_size, config.n_shared_experts * config.moe_intermediate_size
        )

    def forward(
        self, x: Float[Tensor, "T D"], replay: Int[Tensor, "T K"] | None = None
    ) -> tuple[Float[Tensor, "T D"], Routed]:
        """sum_i g_i Expert_i(x) + SharedExpert(x), and where the router sent the tokens."""
        routed = self.gate(x, replay)
        return self.experts(x, routed.chosen, routed.weights) + self.shared_experts(x), routed
