"""QK-Clip for MLA: heads whose attention logits exceed tau are scaled back (spec 2.2)."""

import torch
from jaxtyping import Float
from torch import Tensor

from model.k2 import K2


@torch.no_grad()
def qk_clip_(model: K2, max_logits: Float[Tensor, "layers heads"], tau: float) -> int:
    """Multiply the logits of heads over tau by gamma = tau / max, in place; returns their number.

    max_logits are the largest over the whole optimiser batch. Call after the optimiser step. The
    latents are normalised before q_b and kv_b, so the scaling of the logits is exact. Raises
    ValueError on a non-finite logit.
    """
    if not bool(torch.isfinite(max_logits).all()):
        bad = (~torch.isfinite(max_logits)).nonzero()[0].tolist()
        value = max_logits[bad[0], bad[1]].item()
        raise ValueError(f"attention logit of layer {bad[0]}, head {bad[1]} is {value}")
    exceeded = max_logits > tau
    for index in exceeded.any(1).nonzero()[:, 0].tolist():
        attention = model.model.layers[index].self_attn
        q_b, kv_b = attention.q_b_proj.weight, attention.kv_b_proj.weight
        gamma = torch.where(exceeded[index], tau / max_logits[index], 1.0).to(q_b)[:, None, None]
        q_c, q_r = q_b.unflatten(0, (attention.heads, -1)).split(
            [attention.nope, attention.rope], dim=1
        )
        k_c, _ = kv_b.unflatten(0, (attention.heads, -1)).split(
            [attention.nope, attention.value], dim=1
        )
        q_c.mul_(gamma.sqrt())
        q_r.mul_(gamma)  # k_R is shared by all heads: the query takes the whole factor
        k_c.mul_(gamma.sqrt())
    return int(exceeded.sum())
