"""Newton-Schulz orthogonalisation: the core of Muon (spec 2.1), for batches of matrices.

Every singular value s of X / ||X||_F goes through s -> a s + b s^3 + c s^5 a few times: 0.68-1.13
after five, once s > 0.02.

Two forms that are equal in exact arithmetic. Plain: X <- (a + b R + c R^2) X, R = X X^T, every
step. Gram: R follows from step to step by itself, so the wide X is touched once in several steps;
rounding errors of R grow by a^2 = 12 a step (after five steps in bfloat16 they exceed the result),
so X is brought up to date and R computed afresh every RESTART steps. With RESTART = 2 the Gram form
is as exact as the plain one: spectra from flat to rank one, fp32 and bfloat16 (see the tests).

All the square matrices are polynomials of one R: symmetric, so only their upper blocks are
multiplied.

Shapes: B matrices [n, m]; s = min(n, m); L = max(n, m).
"""

from typing import Literal

import torch
from jaxtyping import Float
from torch import Tensor

COEFFICIENTS = (3.4445, -4.7750, 2.0315)
EPS = 1e-7
RESTART = 2
GRAM_ASPECT = 1.25  # L / s from which the Gram form is the faster
SYMMETRIC_FROM = 512  # s from which multiplying the upper blocks alone is faster
BLOCK_ROWS = 4  # 10 of 16 blocks are multiplied
CPU_CHUNK = 1 << 18  # elements orthogonalised together: on CPU they should stay in cache,
GPU_CHUNK = 1 << 27  # on GPU they should fill the machine

Form = Literal["auto", "plain", "gram"]


def naive_newton_schulz(x: Float[Tensor, "n m"], steps: int = 5) -> Float[Tensor, "n m"]:
    """The specification, for one matrix, in its own precision."""
    a, b, c = COEFFICIENTS
    tall = x.shape[0] > x.shape[1]
    x = x.T if tall else x
    x = x / (x.norm() + EPS)
    for _ in range(steps):
        gram = x @ x.T
        x = a * x + (b * gram + c * gram @ gram) @ x
    return x.T if tall else x


def _multiply(
    left: Float[Tensor, "B i k"],
    right: Float[Tensor, "B k j"],
    out: Float[Tensor, "B i j"],
    plus: Float[Tensor, "B i j"],
    beta: float,
    alpha: float,
) -> None:
    """out = beta plus + alpha left right."""
    if len(out) == 1:
        # On CPU, bmm copies a slice of a transposed matrix before it multiplies; mm does not.
        torch.addmm(plus[0], left[0], right[0], beta=beta, alpha=alpha, out=out[0])
    else:
        torch.baddbmm(plus, left, right, beta=beta, alpha=alpha, out=out)


def _symmetric_product(
    left: Float[Tensor, "B s k"],
    right: Float[Tensor, "B k s"],
    out: Float[Tensor, "B s s"],
    plus: Float[Tensor, "B s s"],
    beta: float,
    alpha: float = 1.0,
) -> None:
    """out = beta plus + alpha left right where the result is symmetric; out is not an operand."""
    size = out.shape[-1]
    step = -(-size // (BLOCK_ROWS if size >= SYMMETRIC_FROM else 1))
    for begin in range(0, size, step):
        rows, rest, below = (
            slice(begin, begin + step),
            slice(begin, size),
            slice(begin + step, size),
        )
        upper = out[:, rows, rest]
        _multiply(left[:, rows], right[:, :, rest], upper, plus[:, rows, rest], beta, alpha)
        out[:, below, rows] = out[:, rows, below].mT


class _Iteration:
    """A chunk of matrices with the buffers of its iteration, which allocates nothing."""

    def __init__(self, x: Float[Tensor, "B n m"]) -> None:
        self.x, self.spare = x, torch.empty_like(x)
        self.tall = x.shape[1] > x.shape[2]
        size = min(x.shape[1:])
        self.squares = [x.new_empty(len(x), size, size) for _ in range(4)]

    def advance(self, steps: int) -> None:
        """X <- P_steps(R) ... P_1(R) X with one Gram matrix R, P(R) = a + b R + c R^2."""
        a, b, c = COEFFICIENTS
        r, z, q, spare = self.squares
        left, right = (self.x.mT, self.x) if self.tall else (self.x, self.x.mT)
        _symmetric_product(left, right, r, r, 0.0)
        _symmetric_product(r, r, z, r, b, c)
        if steps == 1:
            self._apply(z, a)
            return
        q.copy_(z).diagonal(dim1=1, dim2=2).add_(a)
        for _ in range(steps - 1):
            _symmetric_product(z, r, spare, r, a)
            _symmetric_product(z, spare, r, spare, a)
            _symmetric_product(r, r, z, r, b, c)
            _symmetric_product(z, q, spare, q, a)
            q, spare = spare, q
        self._apply(q, 0.0)

    def _apply(self, square: Float[Tensor, "B s s"], beta: float) -> None:
        """X <- beta X + square X; square stands on the right of a tall X."""
        left, right = (self.x, square) if self.tall else (square, self.x)
        _multiply(left, right, self.spare, self.x, beta, 1.0)
        self.x, self.spare = self.spare, self.x


@torch.no_grad()
def newton_schulz(
    x: Float[Tensor, "B n m"],
    steps: int = 5,
    dtype: torch.dtype = torch.bfloat16,
    form: Form = "auto",
) -> Float[Tensor, "B n m"]:
    """Singular values of every matrix towards one, computed and returned in `dtype`.

    The cast comes first, the norm is that of the cast values, in at least fp32: whoever sends
    matrices in `dtype` before this call changes nothing. A zero matrix stays zero.
    """
    size, length = sorted(x.shape[1:])
    gram = form == "gram" or (form == "auto" and length >= GRAM_ASPECT * size)
    stride = RESTART if gram else 1
    out = torch.empty(x.shape, dtype=dtype, device=x.device)
    elements = CPU_CHUNK if x.device.type == "cpu" else GPU_CHUNK
    most = max(1, elements // max(1, size * length))
    for chunk, target in zip(x.split(most), out.split(most), strict=True):
        iteration = _Iteration(_normalised(chunk.to(dtype)))
        for done in range(0, steps, stride):
            iteration.advance(min(stride, steps - done))
        target.copy_(iteration.x)
    return out


def _normalised(x: Float[Tensor, "B n m"]) -> Float[Tensor, "B n m"]:
    """x / (||x||_F + 1e-7), contiguous; the norm in at least fp32."""
    precise = torch.promote_types(x.dtype, torch.float32)
    # Rows first: one fp32 sum over millions of squares is wrong in the fifth digit.
    rows = torch.linalg.vector_norm(x, dim=2, keepdim=True, dtype=precise)
    norm = torch.linalg.vector_norm(rows, dim=1, keepdim=True)
    out = torch.empty_like(x, memory_format=torch.contiguous_format)
    return torch.div(x, norm + EPS, out=out)
