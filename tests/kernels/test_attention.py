"""The fast attention is the naive one, outputs and gradients."""

from collections.abc import Callable

import pytest
import torch

from kernels import attention
from kernels.attention import causal_attention, naive_causal_attention


def _inputs(tokens: int, dtype: torch.dtype, seed: int = 0) -> list[torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    shapes = [(tokens, 3, 8), (tokens, 3, 8), (tokens, 3, 6)]
    return [
        torch.randn(shape, generator=generator, dtype=dtype).requires_grad_() for shape in shapes
    ]


@pytest.mark.parametrize("lengths", [[1], [7], [1, 1, 1], [5, 40, 1, 13, 6, 6], [3, 21]])
@pytest.mark.parametrize(("queries", "block"), [(512, 1 << 19), (4, 1 << 19), (512, 1)])
def test_equals_naive_with_gradients(
    lengths: list[int], queries: int, block: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(attention, "QUERIES", queries)
    monkeypatch.setattr(attention, "CPU_BLOCK", block)
    attention._layout.cache_clear()
    inputs = _inputs(sum(lengths), torch.float64)
    ours, top = causal_attention(*inputs, lengths, 0.3)
    naive, naive_top = naive_causal_attention(*inputs, lengths, 0.3)
    attention._layout.cache_clear()
    torch.testing.assert_close(ours, naive, rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(top, naive_top, rtol=1e-12, atol=1e-12)
    dout = torch.randn(ours.shape, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    torch.testing.assert_close(
        torch.autograd.grad(ours, inputs, dout),
        torch.autograd.grad(naive, inputs, dout),
        rtol=1e-11,
        atol=1e-12,
    )


def test_maximum_ignores_what_no_query_sees() -> None:
    q, k = torch.tensor([[[1.0]], [[2.0]], [[-1.0]]]), torch.tensor([[[-3.0]], [[-5.0]], [[100.0]]])
    _, top = causal_attention(q, k, k, [2, 1], 0.5)
    # Seen: 1*-3, 2*-3, 2*-5 in the first sequence, -1*100 in the second; halved.
    torch.testing.assert_close(top, torch.tensor([-1.5]))


def test_bfloat16_keeps_logits_in_float32() -> None:
    q, k, v = _inputs(50, torch.bfloat16)
    out, top = causal_attention(q, k, v, [20, 30], 1.0)
    exact, exact_top = naive_causal_attention(q.double(), k.double(), v.double(), [20, 30], 1.0)
    assert top.dtype == torch.float32 and out.dtype == torch.bfloat16
    torch.testing.assert_close(top.double(), exact_top, rtol=1e-6, atol=1e-6)
    torch.testing.assert_close(out.double(), exact, rtol=0.02, atol=0.02)


def test_never_holds_all_logits_of_a_sequence(
    largest_result: Callable[[Callable[[], object]], int], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(attention, "QUERIES", 16)
    inputs = _inputs(304, torch.float32)

    def sliced() -> None:
        causal_attention(*inputs, [304], 0.3)[0].sum().backward()

    def naive() -> None:
        naive_causal_attention(*inputs, [304], 0.3)[0].sum().backward()

    assert largest_result(naive) == 3 * 304 * 304
    assert largest_result(sliced) == 3 * 16 * 304
