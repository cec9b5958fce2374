"""Forward and backward of one K2 MoE layer's routed experts, against the machine's GEMM rate.

On CUDA the layer is full size: 384 experts of 3 x 7,168 x 2,048 in bfloat16, 34 GB of weights and
as much of gradients; elsewhere a layer scaled down, which says nothing about the full one. Tokens
choose 8 experts at random. MFU here is the three products' FLOPs, 18 T K D I, over time and over
the GEMM rate: that of one large square product, measured by turns in the same run. `bare` is the
same for the layer's own products without routing, sorting, activation and weighting: what is lost
to the shape of the blocks. Medians. Keeps the result with the hardware in
`benchmarks/data/moe_layer.json`.

    OMP_NUM_THREADS=1 python -m benchmarks.moe_layer
    python -m benchmarks.moe_layer --device cuda --tokens 16384
"""

import argparse
import json
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import torch
from torch import Tensor

from benchmarks.machine import hardware, take_turns
from kernels.experts import routed_experts

DATA = Path(__file__).resolve().parent / "data" / "moe_layer.json"


@dataclass(frozen=True, kw_only=True)
class Layer:
    """Sizes."""

    tokens: int
    experts: int = 384
    per_token: int = 8
    hidden: int = 7168
    width: int = 2048
    gemm: int = 8192  # side of the square product

    @property
    def flops(self) -> int:
        """Of gate, up and down, forward and both gradients."""
        return 18 * self.tokens * self.per_token * self.hidden * self.width


SMALL = Layer(tokens=1024, experts=16, per_token=4, hidden=512, width=256, gemm=1024)


@dataclass(frozen=True, kw_only=True)
class Result:
    """One run: medians in seconds."""

    layer: Layer
    dtype: str
    seconds: dict[str, float]
    peak_bytes: int | None  # on CUDA

    @property
    def gemm_flops(self) -> float:
        """Per second."""
        return 2 * self.layer.gemm**3 / self.seconds["gemm"]

    def mfu(self, name: str) -> float:
        """Share of the GEMM rate."""
        return self.layer.flops / self.seconds[name] / self.gemm_flops


@dataclass(frozen=True, kw_only=True)
class Operands:
    """What the layer computes with."""

    x: Tensor
    gate_up: Tensor
    down: Tensor
    chosen: Tensor
    weights: Tensor
    slope: Tensor
    square: Tensor


def make(layer: Layer, device: str) -> Operands:
    """Weights in bfloat16, made in place; a random choice of experts for every token."""
    torch.manual_seed(0)

    def normal(*shape: int, std: float) -> Tensor:
        return torch.empty(shape, dtype=torch.bfloat16, device=device).normal_(0, std)

    scores = torch.rand(layer.tokens, layer.experts, device=device)
    top = scores.topk(layer.per_token, dim=-1)
    return Operands(
        x=normal(layer.tokens, layer.hidden, std=1.0).requires_grad_(),
        gate_up=normal(layer.experts, 2 * layer.width, layer.hidden, std=0.02).requires_grad_(),
        down=normal(layer.experts, layer.hidden, layer.width, std=0.02).requires_grad_(),
        chosen=top.indices,
        weights=(top.values / top.values.sum(-1, keepdim=True)).requires_grad_(),
        slope=normal(layer.tokens, layer.hidden, std=1.0),
        square=normal(layer.gemm, layer.gemm, std=1.0),
    )


def one_pass(operands: Operands) -> None:
    """Forward and backward; the gradients are dropped."""
    x, gate_up, down, weights = operands.x, operands.gate_up, operands.down, operands.weights
    y = routed_experts(x, gate_up, down, operands.chosen, weights)
    torch.autograd.grad(y, [x, gate_up, down, weights], operands.slope)


@torch.no_grad()
def bare_products(operands: Operands) -> None:
    """The nine products of every expert on blocks of the same sizes, and nothing else."""
    counts = operands.chosen.flatten().bincount(minlength=len(operands.down)).tolist()
    width, hidden = operands.down.shape[2], operands.x.shape[1]
    rows = operands.x.new_ones(max(counts), hidden)
    inner = operands.x.new_ones(max(counts), 2 * width)
    for count, gate_up, down in zip(counts, operands.gate_up, operands.down, strict=True):
        x, h, a = rows[:count], inner[:count], inner[:count, :width]
        for left, right in ((x, gate_up.T), (a, down.T), (h, gate_up), (x, down)):
            torch.mm(left, right)
        for left, right in ((h.T, x), (x.T, a)):
            torch.mm(left, right)


def measure(layer: Layer, device: str, rounds: int) -> Result:
    """Race the layer, its bare products, and the square product."""
    operands = make(layer, device)
    contenders = {
        "gemm": lambda: operands.square @ operands.square,
        "bare": lambda: bare_products(operands),
        "layer": lambda: one_pass(operands),
    }
    seconds = take_turns(contenders, rounds, device)
    peak = torch.cuda.max_memory_allocated() if device == "cuda" else None
    return Result(layer=layer, dtype="bfloat16", seconds=seconds, peak_bytes=peak)


def keep(result: Result, device: str) -> None:
    """Put the result in place of the device's earlier one."""
    kept = json.loads(DATA.read_text()) if DATA.exists() else {}
    kept[device] = {
        "hardware": hardware(device),
        "full_size": result.layer.experts == Layer.experts,
        "mfu": {name: round(result.mfu(name), 4) for name in ("layer", "bare")},
        **asdict(result),
    }
    DATA.write_text(json.dumps(kept, indent=1) + "\n")


def print_result(result: Result) -> None:
    """Sizes, times, MFU."""
    layer = result.layer
    size = "full size" if layer.experts == Layer.experts else "scaled down: no CUDA device"
    print(
        f"{layer.experts} experts of 3 x {layer.hidden} x {layer.width}, {layer.per_token} a "
        f"token, {layer.tokens} tokens, {result.dtype} ({size})"
    )
    print(f"GEMM of {layer.gemm}: {result.gemm_flops / 1e12:.3f} TFLOP/s")
    for name in ("layer", "bare"):
        seconds = result.seconds[name]
        print(f"{name:>6}: {1e3 * seconds:.1f} ms, {result.mfu(name):.2f} of the GEMM rate")
    if result.peak_bytes:
        print(f"peak memory: {result.peak_bytes / 2**30:.1f} GiB")


def main() -> None:
    """Measure, keep, print."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--device", choices=["cpu", "cuda"])
    parser.add_argument("--tokens", type=int, help="16,384 on CUDA, 1,024 elsewhere")
    parser.add_argument("--rounds", type=int, default=5)
    arguments = parser.parse_args()
    device = arguments.device or ("cuda" if torch.cuda.is_available() else "cpu")
    layer = Layer(tokens=16384) if device == "cuda" else SMALL
    if arguments.tokens:
        layer = replace(layer, tokens=arguments.tokens)
    result = measure(layer, device, arguments.rounds)
    keep(result, device)
    print_result(result)


if __name__ == "__main__":
    main()
