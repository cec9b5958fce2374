"""Routed experts of one layer spread over shards: tokens travel to their experts and back.

Shapes: T tokens, K experts per token, E experts, R shards, D hidden.
"""

from collections.abc import Sequence
from typing import Any

import torch
import torch.distributed as dist
from jaxtyping import Float, Int
from torch import Tensor, nn

from kernels.experts import routed_experts
from model.feed_forward import Experts, expert_weight


class _AllToAll(torch.autograd.Function):
    """Rows to the shards they belong to; the gradients come back the same way."""

    @staticmethod
    def forward(
        ctx: Any,
        rows: Tensor,
        sent: Sequence[int],
        received: Sequence[int],
        group: dist.ProcessGroup,
    ) -> Tensor:
        ctx.sizes = (sent, received, group)
        out = rows.new_empty(sum(received), rows.shape[1])
        dist.all_to_all_single(out, rows.contiguous(), list(received), list(sent), group=group)
        return out

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        sent, received, group = ctx.sizes
        back = grads[0].new_empty(sum(sent), grads[0].shape[1])
        dist.all_to_all_single(back, grads[0].contiguous(), list(sent), list(received), group=group)
        return back, None, None, None


class ExpertParallel(nn.Module):
    """Stands in the place of `model.k2.Experts` on each of R shards, with E / R of its experts."""

    def __init__(self, whole: Experts, group: dist.ProcessGroup) -> None:
        """Make room for this shard's experts, uninitialised.

        Raises ValueError if the R shards of `group` do not divide the E experts of `whole`.
        """
        super().__init__()
        self.group, self.int4 = group, whole.int4
        self.experts, ranks = len(whole.gate_up_proj), dist.get_world_size(group)
        if self.experts % ranks:
            raise ValueError(
                f"parallel.expert_parallel={ranks} must divide the {self.experts} routed experts"
            )
        self.local = self.experts // ranks
        self.first = self.local * dist.get_rank(group)
        self.gate_up_proj = nn.Parameter(
            whole.gate_up_proj.new_empty(self.local, *whole.gate_up_proj.shape[1:])
        )
        self.down_proj = nn.Parameter(
            whole.down_proj.new_empty(self.local, *whole.down_proj.shape[1:])
        )

    def forward(
        self, x: Float[Tensor, "T D"], chosen: Int[Tensor, "T K"], weights: Float[Tensor, "T K"]
    ) -> Float[Tensor, "T D"]:
        """Weighted sum over a token's experts. All shards of the group must call it together."""
        order = chosen.flatten().argsort(stable=True)
        counts = chosen.flatten().bincount(minlength=self.experts)
        theirs = torch.empty_like(counts)  # [R, local]: rows from each shard for each local expert
        dist.all_to_all_single(theirs, counts, group=self.group)
        sent = counts.view(-1, self.local).sum(1).tolist()
        received = theirs.view(-1, self.local).sum(1).tolist()

        rows = _AllToAll.apply(x[order // chosen.shape[1]], sent, received, self.group)
        expert = torch.arange(self.local, device=x.device).repeat(len(sent))
        expert = expert.repeat_interleave(theirs)[:, None]
        gate_up, down = (
            expert_weight(weight, x.dtype, int4=self.int4)
            for weight in (self.gate_up_proj, self.down_proj)
        )
        out = routed_experts(rows, gate_up, down, expert, rows.new_ones(expert.shape))
        back = _AllToAll.apply(out, received, sent, self.group)
        mine = torch.empty_like(order).scatter_(
            0, order, torch.arange(len(order), device=order.device)
        )
        return (weights.to(x.dtype)[:, None] @ back[mine].view(*chosen.shape, -1))[:, 0]
