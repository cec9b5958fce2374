"""Causal attention over packed sequences, with the largest logit of every head (spec 1.3, 2.2).

Shapes: T packed tokens, N heads, H key size, W value size; a block is B sequences padded to
length L.
"""

from collections.abc import Sequence
from functools import lru_cache
from typing import Any, NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor

QUERIES = 512  # queries of a block handled together, at the most: no [L, L] is ever held
FEWEST_QUERIES = 16  # however long the sequence
CPU_BLOCK = 1 << 19  # logits of a block: on CPU they should stay in cache,
GPU_BLOCK = 1 << 26  # on GPU they should fill the machine
GROWTH = 1.5  # longest over shortest sequence of a block: bounds the padding


def naive_causal_attention(
    q: Float[Tensor, "T N H"],
    k: Float[Tensor, "T N H"],
    v: Float[Tensor, "T N W"],
    lengths: Sequence[int],
    scale: float,
) -> tuple[Float[Tensor, "T N W"], Float[Tensor, " N"]]:
    """The specification: one sequence at a time. Same contract as `causal_attention`."""
    outs, maxima, start = [], [], 0
    for length in lengths:
        rows = slice(start, start + length)
        logits = torch.einsum("inh,jnh->nij", q[rows], k[rows]) * scale
        hidden = torch.ones(length, length, dtype=torch.bool, device=q.device).triu(1)
        logits = logits.masked_fill(hidden, -torch.inf)
        outs.append(torch.einsum("nij,jnw->inw", logits.softmax(-1), v[rows]))
        maxima.append(logits.detach().amax((1, 2)))
        start += length
    return torch.cat(outs), torch.stack(maxima).amax(0)


class _Block(NamedTuple):
    """Sequences of like length.

    A padded place repeats its sequence's last token: everything stays finite, no earlier query sees
    it, and it adds no logit that is not already there.
    """

    rows: Tensor  # [B * N * L] row of the packed [T * N, H] for every place of [B, N, L, H]
    padding: Tensor  # which of these places are padding
    batch: int  # B * N
    length: int  # L
    queries: int  # handled together


class _Layout(NamedTuple):
    blocks: list[_Block]
    back: Tensor  # [T * N] place among all blocks, end to end, of every packed row


@lru_cache(maxsize=2)  # all layers and their recomputation; entries lie on the device
def _layout(lengths: tuple[int, ...], heads: int, device: torch.device) -> _Layout:
    """Sort by length, cut into blocks."""
    sizes = torch.tensor(lengths)
    starts = sizes.cumsum(0) - sizes
    order = sizes.argsort(stable=True)
    most = CPU_BLOCK if device.type == "cpu" else GPU_BLOCK
    blocks, first, head = [], 0, torch.arange(heads)[:, None]
    while first < len(order):
        here = sizes[order[first:]]
        logits = torch.arange(1, len(here) + 1) * heads * here * here.clamp(max=QUERIES)
        last = first + max(1, int(((here <= here[0] * GROWTH) & (logits <= most)).sum()))
        members, first = order[first:last], last
        places = torch.arange(int(sizes[members[-1]]))
        ends = sizes[members, None] - 1
        token = starts[members, None] + torch.minimum(places, ends)  # [B, L]
        padded = (places > ends)[:, None].expand(-1, heads, -1).flatten()
        rows = (token[:, None] * heads + head).flatten()
        blocks.append(
            _Block(
                rows.to(device),
                padded.nonzero()[:, 0].to(device),
                len(members) * heads,
                len(places),
                max(FEWEST_QUERIES, min(QUERIES, most // (len(members) * heads * len(places)))),
            )
        )
    every = torch.cat([block.rows for block in blocks])
    # A packed row and its repetitions hold different results: the first place is the real one.
    places = torch.arange(len(every), device=device)
    back = torch.full((sum(lengths) * heads,), len(every), device=device).scatter_reduce_(
        0, every, places, "amin"
    )
    return _Layout(blocks, back)


def _pad(x: Tensor, block: _Block) -> Tensor:
    """Packed [T, N, H] -> [B * N, L, H], contiguous."""
    return (
        x.reshape(-1, x.shape[-1]).index_select(0, block.rows).view(block.batch, block.length, -1)
    )


def _unpad(parts: list[Tensor], layout: _Layout, heads: int) -> Tensor:
    """[B * N, L, H] of every block -> packed [T, N, H]."""
    flat = torch.cat([part.flatten(0, 1) for part in parts])
    return flat.index_select(0, layout.back).view(-1, heads, flat.shape[-1])


def _logits(q: Tensor, k: Tensor, queries: slice) -> Tensor:
    """Masked logits of some queries: [B * N, queries, end]; q is scaled already."""
    begin, end = queries.start, min(queries.stop, q.shape[1])
    mask = torch.full((end - begin, end), -torch.inf, dtype=q.dtype, device=q.device).triu_(
        begin + 1
    )
    return torch.baddbmm(mask, q[:, begin:end], k[:, :end].mT)


class _CausalAttention(torch.autograd.Function):
    """Blocks of sequences, slices of queries; probabilities are recomputed in backward.

    Logits are at least fp32.
    """

    @staticmethod
    def forward(
        ctx: Any, q: Tensor, k: Tensor, v: Tensor, lengths: tuple[int, ...], scale: float
    ) -> tuple[Tensor, Tensor]:
        heads = q.shape[1]
        precise = torch.promote_types(q.dtype, torch.float32)
        layout = _layout(lengths, heads, q.device)
        largest = torch.full((heads,), -torch.inf, dtype=precise, device=q.device)
        outs, saved = [], []
        for block in layout.blocks:
            qp, kp, vp = (_pad(x, block) for x in (q, k, v))
            out = torch.empty_like(vp)
            logsumexp = vp.new_empty(*vp.shape[:2], 1, dtype=precise)
            q_exact, k_exact = qp.to(precise) * scale, kp.to(precise)
            for begin in range(0, block.length, block.queries):
                queries = slice(begin, begin + block.queries)
                logits = _logits(q_exact, k_exact, queries)
                top = logits.amax(-1, keepdim=True)
                probs = logits.sub_(top).exp_()
                total = probs.sum(-1, keepdim=True)
                out[:, queries] = (probs.to(vp.dtype) @ vp[:, : probs.shape[-1]]).div_(total)
                logsumexp[:, queries] = total.log_().add_(top)
                largest = torch.maximum(largest, top.view(-1, heads, top.shape[1]).amax((0, 2)))
            outs.append(out)
            saved += [qp, kp, vp, out, logsumexp]
        ctx.save_for_backward(*saved)
        ctx.layout, ctx.scale = layout, scale
        ctx.mark_non_differentiable(largest)
        return _unpad(outs, layout, heads), largest

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        # No real query sees a padded key, and padded queries are silenced below: only real rows
        # have a gradient.
        parts: tuple[list[Tensor], ...] = ([], [], [])
        saved = ctx.saved_tensors  # once: a checkpointed layer's can be unpacked only once
        for index, block in enumerate(ctx.layout.blocks):
            dout = _pad(grads[0], block)
            dout.view(-1, dout.shape[-1]).index_fill_(
                0, block.padding, 0
            )  # padding passes nothing back
            kept = saved[5 * index : 5 * index + 5]
            found = _backward_block(dout, kept, block.queries, ctx.scale)
            for part, grad in zip(parts, found, strict=True):
                part.append(grad)
        dq, dk, dv = (_unpad(part, ctx.layout, grads[0].shape[1]) for part in parts)
        return dq, dk, dv, None, None


def _backward_block(
    dout: Tensor, kept: tuple[Tensor, ...], together: int, scale: float
) -> tuple[Tensor, Tensor, Tensor]:
    """Gradients of q, k, v of one block, from what forward kept of it."""
    q, k, v, out, logsumexp = kept
    # d logit = p (d p - sum_j p d p), and the sum is <d out, out>: known without the probabilities.
    inner = torch.linalg.vecdot(dout.to(logsumexp.dtype), out.to(logsumexp.dtype))[..., None]
    q_exact, k_exact = q.to(logsumexp.dtype) * scale, k.to(logsumexp.dtype)
    dq, dk, dv = torch.empty_like(q), torch.zeros_like(k), torch.zeros_like(v)
    for begin in range(0, q.shape[1], together):
        queries = slice(begin, begin + together)
        probs = _logits(q_exact, k_exact, queries).sub_(logsumexp[:, queries]).exp_()
        end = probs.shape[-1]
        dv[:, :end] += probs.to(v.dtype).mT @ dout[:, queries]
        dprobs = (dout[:, queries] @ v[:, :end].mT).to(probs.dtype)
        dlogits = probs.mul_(dprobs.sub_(inner[:, queries])).mul_(scale).to(q.dtype)
        dq[:, queries] = dlogits @ k[:, :end]
        dk[:, :end] += dlogits.mT @ q[:, queries]
    return dq, dk, dv


def causal_attention(
    q: Float[Tensor, "T N H"],
    k: Float[Tensor, "T N H"],
    v: Float[Tensor, "T N W"],
    lengths: Sequence[int],
    scale: float,
) -> tuple[Float[Tensor, "T N W"], Float[Tensor, " N"]]:
    """softmax(scale q k^T) v inside each sequence, and each head's largest scaled, unmasked logit.

    lengths are those of the packed sequences and sum to T. The maximum is fp32 or wider, without
    gradient.
    """
    return _CausalAttention.apply(q, k, v, tuple(lengths), scale)
