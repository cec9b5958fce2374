"""What stands after attention: SwiGLU, and the mixture of experts with its router (spec 1.2, 1.4).

Shapes: T packed tokens, D hidden, E experts, K experts per token, I expert width.
"""

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


class Router(nn.Module):
    """Sigmoid router (spec 1.4): the bias helps to choose the experts, never to weight them."""

    e_score_correction_bias: Tensor  # [E] fp32

    def __init__(self, config: K2Config) -> None:
        super().__init__()
        self.per_token, self.factor = config.num_experts_per_tok, config.routed_scaling_factor
        self.groups, self.kept_groups = config.n_group, config.topk_group
        self.weight = nn.Parameter(torch.empty(config.n_routed_experts, config.hidden_size))
        self.register_buffer("e_score_correction_bias", torch.zeros(config.n_routed_experts))

    def forward(
        self, x: Float[Tensor, "T D"], replay: Int[Tensor, "T K"] | None = None
    ) -> tuple[Int[Tensor, "T K"], Float[Tensor, "T K"]]:
        """Chosen experts, those of `replay` if given, and their weights."""
        precise = torch.promote_types(x.dtype, torch.float32)
        scores = functional.linear(x.to(precise), self.weight.to(precise)).sigmoid()
        chosen = self._choose(scores.detach()) if replay is None else replay
        mine = scores.gather(1, chosen)
        return chosen, self.factor * mine / (mine.sum(-1, keepdim=True) + 1e-20)

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
    ) -> tuple[Float[Tensor, "T D"], Int[Tensor, "T K"]]:
        """sum_i g_i Expert_i(x) + SharedExpert(x), and the chosen experts."""
        chosen, weights = self.gate(x, replay)
        return self.experts(x, chosen, weights) + self.shared_experts(x), chosen
