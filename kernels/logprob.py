"""Log-probability of given tokens, and entropy, from hidden states, without ever holding [T, V].

Shapes: T tokens, D hidden, V vocabulary.
"""

from collections.abc import Iterator
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor

CPU_CHUNK = 1 << 18  # logits held at once: on CPU they should stay in cache,
GPU_CHUNK = 1 << 27  # on GPU they should fill the machine


def naive_token_logprobs(
    hidden: Float[Tensor, "T D"],
    weight: Float[Tensor, "V D"],
    targets: Int[Tensor, " T"],
    temperature: Float[Tensor, " T"] | float = 1.0,
) -> tuple[Float[Tensor, " T"], Float[Tensor, " T"]]:
    """The specification, all logits at once. Same contract as `token_logprobs`."""
    logits = hidden.to(weight.dtype) @ weight.T
    logits = logits.to(torch.promote_types(logits.dtype, torch.float32))
    if isinstance(temperature, Tensor):
        temperature = temperature[:, None].to(logits.dtype)
    logprobs = (logits / temperature).log_softmax(-1)
    entropy = -(logprobs.exp() * logprobs).sum(-1).detach()
    return logprobs.gather(1, targets[:, None])[:, 0], entropy


def _chunks(hidden: Tensor, weight: Tensor) -> Iterator[slice]:
    """Slices over T."""
    elements = CPU_CHUNK if hidden.device.type == "cpu" else GPU_CHUNK
    size = max(64, elements // weight.shape[0])
    return (slice(begin, begin + size) for begin in range(0, len(hidden), size))


def _logits(hidden: Tensor, weight: Tensor, temperature: Tensor) -> Tensor:
    """One chunk of logits over temperature, at least fp32."""
    logits = hidden.to(weight.dtype) @ weight.T
    return logits.to(temperature.dtype).div_(temperature[:, None])


class _TokenLogprobs(torch.autograd.Function):
    """Chunks over T; the backward pass computes the logits once more."""

    @staticmethod
    def forward(
        ctx: Any, hidden: Tensor, weight: Tensor, targets: Tensor, temperature: Tensor
    ) -> tuple[Tensor, Tensor]:
        logprobs, logsumexp = temperature.new_empty(2, len(hidden)).unbind(0)
        entropy = torch.empty_like(logprobs)
        for rows in _chunks(hidden, weight):
            logits = _logits(hidden[rows], weight, temperature[rows])
            logsumexp[rows] = logits.logsumexp(-1)
            logprobs[rows] = logits.gather(1, targets[rows, None])[:, 0] - logsumexp[rows]
            probs = (logits - logsumexp[rows, None]).exp_()
            entropy[rows] = logsumexp[rows] - torch.linalg.vecdot(probs, logits)
        ctx.save_for_backward(hidden, weight, targets, temperature, logsumexp)
        ctx.mark_non_differentiable(entropy)
        return logprobs, entropy

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        hidden, weight, targets, temperature, logsumexp = ctx.saved_tensors
        slope = grads[0] / temperature
        dhidden, narrow = torch.empty_like(hidden), weight.to(hidden.dtype)
        dweight = torch.zeros_like(weight, dtype=temperature.dtype)
        for rows in _chunks(hidden, weight):
            # d logprob / d logit = onehot - p
            dlogits = _logits(hidden[rows], weight, temperature[rows])
            dlogits.sub_(logsumexp[rows, None]).exp_().mul_(-slope[rows, None])
            dlogits.scatter_add_(1, targets[rows, None], slope[rows, None])
            dlogits = dlogits.to(hidden.dtype)
            dhidden[rows] = dlogits @ narrow
            dweight += dlogits.T @ hidden[rows]
        return dhidden, dweight.to(weight.dtype), None, None


def token_logprobs(
    hidden: Float[Tensor, "T D"],
    weight: Float[Tensor, "V D"],
    targets: Int[Tensor, " T"],
    temperature: Float[Tensor, " T"] | float = 1.0,
) -> tuple[Float[Tensor, " T"], Float[Tensor, " T"]]:
    """ln p(targets[t] | hidden[t]) and the entropy of p = softmax(hidden weight^T / temperature).

    Logits are computed in the weight's precision, the softmax in at least fp32, products of the
    backward pass in the precision of `hidden`. The entropy has no gradient.
    """
    dtype = torch.promote_types(weight.dtype, torch.float32)
    tempered = torch.as_tensor(temperature, dtype=dtype, device=hidden.device).expand(len(hidden))
    return _TokenLogprobs.apply(hidden, weight, targets, tempered)
