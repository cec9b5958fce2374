"""Log-probability of given tokens, and entropy, from hidden states, without ever holding [T, V].

Shapes: T tokens, D hidden, V vocabulary. A tile is a slice `rows` of T times one `columns` of V.
"""

from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor

CPU_TILE = 1 << 18  # logits held at once: on CPU they should stay in cache,
GPU_TILE = 1 << 24  # on GPU their product should fill the machine
CPU_ROWS = 1 << 9  # rows of a tile when the vocabulary is large
GPU_ROWS = 1 << 13


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


def _slices(length: int, size: int) -> list[slice]:
    return [slice(begin, min(begin + size, length)) for begin in range(0, length, size)]


def _tiles(tokens: int, vocabulary: int, device: torch.device) -> tuple[list[slice], list[slice]]:
    """Slices of T and of V. The loops keep the columns and change the rows fastest: a weight is
    read from memory once, and its gradient written once."""
    cpu = device.type == "cpu"
    tile, most = (CPU_TILE, CPU_ROWS) if cpu else (GPU_TILE, GPU_ROWS)
    columns = min(vocabulary, max(64, tile // max(1, min(tokens, most))))
    return _slices(tokens, max(64, tile // columns)), _slices(vocabulary, columns)


def _logits(hidden: Tensor, weight: Tensor, temperature: Tensor) -> Tensor:
    """One tile of logits over temperature, at least fp32."""
    return (hidden @ weight.T).to(temperature.dtype).div_(temperature[:, None])


def _places(targets: Tensor, columns: slice) -> tuple[Tensor, Tensor]:
    """Which targets lie in these columns, and where: [rows, 1] each."""
    place = targets[:, None] - columns.start
    width = columns.stop - columns.start
    return (place >= 0) & (place < width), place.clamp(0, width - 1)


def _accumulate(into: Tensor, a: Tensor, b: Tensor) -> None:
    """into += a @ b; the product is in the precision of a and b, the sum in that of `into`."""
    if a.dtype == into.dtype:
        into.addmm_(a, b)
    else:
        into += a @ b


class _TokenLogprobs(torch.autograd.Function):
    """The softmax is summed up tile by tile; the backward pass computes the logits once more."""

    @staticmethod
    def forward(
        ctx: Any, hidden: Tensor, weight: Tensor, targets: Tensor, temperature: Tensor
    ) -> tuple[Tensor, Tensor]:
        # Of the logits seen so far: maximum m, sum of e^(l - m), sum of l e^(l - m); the target's.
        top, total, moment, mine = temperature.new_zeros(4, len(hidden)).unbind(0)
        top.fill_(-torch.inf)
        wide = hidden.to(weight.dtype)
        row_slices, column_slices = _tiles(len(hidden), len(weight), hidden.device)
        for columns in column_slices:
            for rows in row_slices:
                logits = _logits(wide[rows], weight[columns], temperature[rows])
                inside, place = _places(targets[rows], columns)
                mine[rows] += torch.where(inside, logits.gather(1, place), 0)[:, 0]
                before = top[rows].clone()
                top[rows] = torch.maximum(before, logits.amax(-1))
                shrink = (before - top[rows]).exp_()
                scaled = (logits - top[rows, None]).exp_()
                total[rows] = total[rows] * shrink + scaled.sum(-1)
                moment[rows] = moment[rows] * shrink + torch.linalg.vecdot(scaled, logits)
        logsumexp = total.log() + top
        entropy = logsumexp - moment / total
        ctx.save_for_backward(hidden, weight, targets, temperature, logsumexp)
        ctx.mark_non_differentiable(entropy)
        return mine - logsumexp, entropy

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        hidden, weight, targets, temperature, logsumexp = ctx.saved_tensors
        slope, wide = (grads[0] / temperature)[:, None], hidden.to(weight.dtype)
        dhidden = torch.zeros_like(hidden, dtype=temperature.dtype)
        dweight = torch.empty_like(weight)
        row_slices, column_slices = _tiles(len(hidden), len(weight), hidden.device)
        for columns in column_slices:
            narrow = weight[columns].to(hidden.dtype)
            # The gradient itself when it is wide enough to be summed up in.
            total = dweight[columns].to(temperature.dtype).zero_()
            for rows in row_slices:
                # d logprob / d logit = onehot - p
                dlogits = _logits(wide[rows], weight[columns], temperature[rows])
                dlogits.sub_(logsumexp[rows, None]).exp_().mul_(-slope[rows])
                inside, place = _places(targets[rows], columns)
                dlogits.scatter_add_(1, place, torch.where(inside, slope[rows], 0))
                dlogits = dlogits.to(hidden.dtype)
                _accumulate(dhidden[rows], dlogits, narrow)
                _accumulate(total, dlogits.T, hidden[rows])
            if total.dtype != dweight.dtype:
                dweight[columns] = total
        return dhidden.to(hidden.dtype), dweight, None, None


def token_logprobs(
    hidden: Float[Tensor, "T D"],
    weight: Float[Tensor, "V D"],
    targets: Int[Tensor, " T"],
    temperature: Float[Tensor, " T"] | float = 1.0,
) -> tuple[Float[Tensor, " T"], Float[Tensor, " T"]]:
    """ln p(targets[t] | hidden[t]) and the entropy of p = softmax(hidden weight^T / temperature).

    Logits are computed in the weight's precision, the softmax in at least fp32, products of the
    backward pass in the precision of `hidden`. The entropy has no gradient. Raises ValueError on a
    target outside the vocabulary.
    """
    outside = (targets < 0) | (targets >= len(weight))
    if bool(outside.any()):
        raise ValueError(
            f"target token {int(targets[outside][0])} is not in the vocabulary of {len(weight)}"
        )
    dtype = torch.promote_types(weight.dtype, torch.float32)
    tempered = torch.as_tensor(temperature, dtype=dtype, device=hidden.device).expand(len(hidden))
    return _TokenLogprobs.apply(hidden, weight, targets, tempered)
