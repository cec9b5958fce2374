"""MuonClip's optimiser: Muon for matrices, AdamW for gains, embedding and head (spec 2.1).

The clip is `model.qk_clip`. Departure from K2's listing: the momentum is Nesterov's, as in
Moonlight's code.
"""

import math
from collections import defaultdict
from collections.abc import Callable, Iterable
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from model.config import MuonClipConfig
from model.k2 import K2

NS_COEFFICIENTS = (3.4445, -4.7750, 2.0315)
NS_BATCH_ELEMENTS = (
    1 << 25
)  # matrices orthogonalised together: bounds the copies, 64 MiB each in bf16


def parameter_groups(model: K2) -> list[dict[str, Any]]:
    """Who is updated by Muon and who by AdamW.

    Muon sees the matrices of the released checkpoint: every expert alone, gate and up apart.
    `stacked` says how many of them lie above one another in a tensor.
    """
    adamw, single, double = [], [], []
    for name, parameter in model.named_parameters():
        if parameter.dim() == 1 or name in ("model.embed_tokens.weight", "lm_head.weight"):
            adamw.append(parameter)
        elif name.endswith("experts.gate_up_proj"):
            double.append(parameter)
        else:
            single.append(parameter)
    groups = [
        {"params": single, "muon": True, "stacked": 1},
        {"params": double, "muon": True, "stacked": 2},
        {"params": adamw, "muon": False, "stacked": 1},
    ]
    return [group for group in groups if group["params"]]


@torch.no_grad()
def newton_schulz(
    x: Float[Tensor, "B n m"], steps: int, dtype: torch.dtype
) -> Float[Tensor, "B n m"]:
    """Singular values of every matrix (n <= m) towards one: 0.68-1.13 after 5 steps.

    A zero matrix stays zero.
    """
    a, b, c = NS_COEFFICIENTS
    x = (x / (torch.linalg.vector_norm(x, dim=(-2, -1), keepdim=True) + 1e-7)).to(dtype)
    for _ in range(steps):
        gram = x @ x.mT
        x = torch.baddbmm(x, torch.baddbmm(gram, gram, gram, beta=b, alpha=c), x, beta=a)
    return x


class MuonClip(torch.optim.Optimizer):
    """Takes `parameter_groups(model)`.

    State: one fp32 buffer per matrix, two moments per AdamW parameter. ns_dtype is the precision of
    Newton-Schulz: bf16 as published, also the fastest on CPUs that have it.
    """

    def __init__(
        self,
        groups: Iterable[dict[str, Any]],
        config: MuonClipConfig,
        ns_dtype: torch.dtype = torch.bfloat16,
    ) -> None:
        defaults = {
            "lr": config.learning_rate,
            "weight_decay": config.weight_decay,
            "momentum": config.momentum,
            "ns_steps": config.ns_steps,
            "betas": tuple(config.adam_betas),
            "eps": config.adam_eps,
            "muon": True,
            "stacked": 1,
        }
        super().__init__(groups, defaults)
        self.ns_dtype = ns_dtype
        self._squares: list[tuple[Tensor, int]] = []

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> None:  # type: ignore[override]
        """One update of every parameter that has a gradient."""
        if closure is not None:
            raise ValueError("MuonClip takes no closure")
        self._squares = []
        for group in self.param_groups:
            if group["muon"]:
                self._muon(group)
            else:
                for parameter in group["params"]:
                    if parameter.grad is not None:
                        self._adamw(parameter, group)

    def reset(self) -> None:
        """Forget momentum and moments, as at the start of an iteration (spec 3.1)."""
        self.state.clear()

    def update_rms(self) -> float:
        """RMS of the last step's Muon updates before the learning rate: about 0.14-0.19."""
        count = sum(size for _, size in self._squares)
        return (
            math.sqrt(sum(float(square) for square, _ in self._squares) / count) if count else 0.0
        )

    def _muon(self, group: dict[str, Any]) -> None:
        """Matrices of one shape are orthogonalised together; a tall one is transposed first."""
        by_shape: dict[tuple[int, int], list[tuple[Tensor, Tensor]]] = defaultdict(list)
        for parameter in group["params"]:
            if parameter.grad is None:
                continue
            state = self.state[parameter]
            if not state:
                state["momentum"] = torch.zeros_like(parameter, dtype=torch.float32)
            grad = parameter.grad.to(torch.float32)
            momentum = state["momentum"].mul_(group["momentum"]).add_(grad)
            nesterov = grad.add(momentum, alpha=group["momentum"])
            weight, direction = (_matrices(x, group["stacked"]) for x in (parameter.data, nesterov))
            if weight.shape[1] > weight.shape[2]:
                weight, direction = weight.mT, direction.mT
            by_shape[weight.shape[1], weight.shape[2]].append((weight, direction))
        for (rows, columns), members in by_shape.items():
            most = max(1, NS_BATCH_ELEMENTS // (rows * columns))
            for batch in _batches(members, most):
                self._update_matrices(batch, group)

    def _update_matrices(self, batch: list[tuple[Tensor, Tensor]], group: dict[str, Any]) -> None:
        """W <- W - eta (0.2 sqrt(max(n, m)) O + lambda W), for (weight, direction) of one shape."""
        directions = torch.cat([direction for _, direction in batch])
        update = newton_schulz(directions, group["ns_steps"], self.ns_dtype).to(torch.float32)
        update.mul_(0.2 * math.sqrt(update.shape[-1]))
        self._squares.append((torch.linalg.vector_norm(update).square(), update.numel()))
        for (weight, _), mine in zip(
            batch, update.split([len(weight) for weight, _ in batch]), strict=True
        ):
            weight.mul_(1 - group["lr"] * group["weight_decay"]).add_(
                mine.to(weight.dtype), alpha=-group["lr"]
            )

    def _adamw(self, parameter: Tensor, group: dict[str, Any]) -> None:
        """AdamW with bias correction and decoupled decay."""
        state, grad = self.state[parameter], parameter.grad
        assert grad is not None
        if not state:
            state["step"] = 0
            state["exp_avg"] = torch.zeros_like(parameter, dtype=torch.float32)
            state["exp_avg_sq"] = torch.zeros_like(parameter, dtype=torch.float32)
        state["step"] += 1
        beta1, beta2 = group["betas"]
        grad = grad.to(torch.float32)
        mean = state["exp_avg"].lerp_(grad, 1 - beta1)
        square = state["exp_avg_sq"].mul_(beta2).addcmul_(grad, grad, value=1 - beta2)
        spread = square.sqrt().div_(math.sqrt(1 - beta2 ** state["step"])).add_(group["eps"])
        size = group["lr"] / (1 - beta1 ** state["step"])
        parameter.mul_(1 - group["lr"] * group["weight_decay"]).addcdiv_(mean, spread, value=-size)


def _matrices(x: Tensor, stacked: int) -> Float[Tensor, "B n m"]:
    """The tensor as a view on its matrices: [n, m], or experts [E, stacked * n, m]."""
    return x.reshape(-1, x.shape[-2] // stacked, x.shape[-1])


def _batches(
    members: list[tuple[Tensor, Tensor]], most: int
) -> Iterable[list[tuple[Tensor, Tensor]]]:
    """Lists of about `most` matrices; a tensor of more is cut."""
    batch: list[tuple[Tensor, Tensor]] = []
    for weight, direction in members:
        for piece in zip(weight.split(most), direction.split(most), strict=True):
            if batch and sum(len(w) for w, _ in batch) + len(piece[0]) > most:
                yield batch
                batch = []
            batch.append(piece)
    yield batch
