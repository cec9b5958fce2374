"""QK-Clip: heads whose attention logits exceed tau are scaled back (spec 2.2)."""

import torch
from jaxtyping import Float
from torch import Tensor


def qk_clip_gamma(
    max_logits: Float[Tensor, "layers heads"], tau: float
) -> Float[Tensor, "layers heads"]:
    """gamma = tau / max for heads over tau, else 1: what a head's logits are to be multiplied by.

    max_logits are the largest over the whole optimiser batch and all shards. Raises
    FloatingPointError on a non-finite one.
    """
    if not bool(torch.isfinite(max_logits).all()):
        layer, head = (~torch.isfinite(max_logits)).nonzero()[0].tolist()
        value = max_logits[layer, head].item()
        raise FloatingPointError(f"attention logit of layer {layer}, head {head} is {value}")
    return torch.where(max_logits > tau, tau / max_logits, torch.ones_like(max_logits))
