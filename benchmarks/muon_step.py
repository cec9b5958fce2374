"""How much of the machine's GEMM rate does a Muon step reach?

For every shape: the bare products of the plain form, X X^T, R R and R X five times for every
matrix, give the GEMM rate. A step is everything: momentum, Newton-Schulz, decay, update of fp32
weights from fp32 gradients. Its share is the time of the bare products over its own; it can exceed
one, since symmetric products and the Gram form multiply less. `executed` counts only what is
multiplied. Beside MuonClip: torch.optim.Muon (bfloat16 only), and DeepSpeed's step of one process,
with its plain and its Gram form. All by turns in one process, medians; DeepSpeed's functions are
compiled unless TORCH_COMPILE_DISABLE is 1. Keeps the rows with the hardware in
`benchmarks/data/muon_step.json`.

    DS_ACCELERATOR=cpu TORCH_COMPILE_DISABLE=1 OMP_NUM_THREADS=1 python -m benchmarks.muon_step
    python -m benchmarks.muon_step --device cuda --shapes 1x7168x18432 48x2048x7168
"""

import argparse
import json
import os
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
from deepspeed.runtime.zero.muon.original_muon import SingleDeviceMuon, ns_compute_dtype
from torch import Tensor, nn

from benchmarks.machine import hardware, take_turns
from kernels.newton_schulz import BLOCK_ROWS, GRAM_ASPECT, RESTART, SYMMETRIC_FROM
from model.config import MuonClipConfig
from model.muonclip import MuonClip, parameter_groups

DATA = Path(__file__).resolve().parent / "data" / "muon_step.json"
BAR = 0.8
STEPS = 5
SHAPES = ["1x1024x1024", "1x1024x4096", "1x4096x1024", "1x1408x2048", "16x1024x2048"]


@dataclass(frozen=True, kw_only=True)
class Row:
    """One shape and precision."""

    matrices: int
    rows: int
    columns: int
    dtype: str  # of Newton-Schulz
    gemm_flops: float  # per second, of the bare products
    executed: float  # products MuonClip multiplies, as a share of the bare ones
    seconds: dict[str, float]

    def share(self, name: str) -> float:
        """Of the GEMM rate."""
        return self.seconds["gemm"] / self.seconds[name]


def plain_flops(n: int, m: int) -> int:
    """Of the plain form, all steps, for one matrix."""
    short, long = sorted((n, m))
    return STEPS * (4 * short * short * long + 2 * short**3)


def executed_flops(n: int, m: int) -> float:
    """Of what `kernels.newton_schulz` multiplies for one matrix."""
    short, long = sorted((n, m))
    blocks = BLOCK_ROWS if short >= SYMMETRIC_FROM else 1
    part = (blocks + 1) / (2 * blocks)  # of a symmetric product
    stride = RESTART if long >= GRAM_ASPECT * short else 1
    total = 0.0
    for done in range(0, STEPS, stride):
        squares = 1 + 4 * (min(stride, STEPS - done) - 1)
        total += part * (2 * short * short * long + squares * 2 * short**3)
        total += 2 * short * short * long
    return total


def bare_products(gradient: Tensor, dtype: torch.dtype) -> Callable[[], None]:
    """The products of the plain form, one matrix at a time, nothing else."""
    wide = gradient if gradient.shape[1] <= gradient.shape[2] else gradient.mT
    x = wide.to(dtype).contiguous()
    square = torch.empty(x.shape[1], x.shape[1], dtype=dtype, device=x.device)
    result, out = torch.empty_like(square), torch.empty_like(x[0])
    torch.mm(x[0], x[0].T, out=square)

    def run() -> None:
        for each in x:
            for _ in range(STEPS):
                torch.mm(each, each.T, out=result)
                torch.mm(square, square, out=result)
                torch.mm(square, each, out=out)

    return run


def measure(shape: tuple[int, int, int], dtype: torch.dtype, device: str, rounds: int) -> Row:
    """Race the steps on gradients of one shape."""
    torch.manual_seed(0)
    gradient = torch.randn(shape, device=device)
    ours, stacked = (nn.Parameter(torch.zeros_like(gradient)) for _ in range(2))
    single = [nn.Parameter(matrix.clone()) for matrix in stacked.detach()]
    stacked.is_expert_group = True  # type: ignore[attr-defined]
    groups = parameter_groups([("model.layers.1.mlp.experts.down_proj", ours)])
    clip = MuonClip(groups, MuonClipConfig(learning_rate=0.01), dtype)
    contenders: dict[str, Callable[[], object]] = {
        "gemm": bare_products(gradient, dtype),
        "muonclip": clip.step,
    }
    if dtype == torch.bfloat16:
        theirs = torch.optim.Muon(single, lr=0.01, adjust_lr_fn="match_rms_adamw")
        contenders["torch"] = theirs.step
    for method in ("standard", "gram"):
        if ns_compute_dtype(method).itemsize == dtype.itemsize:  # fp16 runs against bf16
            other = SingleDeviceMuon([stacked], lr=0.01, weight_decay=0.1, ns_method=method)
            contenders[f"deepspeed {method}"] = other.step

    def fresh_gradients() -> None:
        """A step of MuonClip uses its gradients up."""
        ours.grad = gradient.clone()
        stacked.grad = gradient.clone()
        for parameter, matrix in zip(single, gradient, strict=True):
            parameter.grad = matrix.clone()

    seconds = take_turns(contenders, rounds, device, fresh_gradients)
    plain_total = plain_flops(*shape[1:])
    return Row(
        matrices=shape[0],
        rows=shape[1],
        columns=shape[2],
        dtype=str(dtype).removeprefix("torch."),
        gemm_flops=shape[0] * plain_total / seconds["gemm"],
        executed=executed_flops(*shape[1:]) / plain_total,
        seconds=seconds,
    )


def keep(rows: list[Row], device: str) -> list[Row]:
    """Put these rows in place of earlier ones of the same shapes; all that is kept then."""
    kept = json.loads(DATA.read_text()) if DATA.exists() else {}
    earlier = [Row(**row) for row in kept.get(device, {"rows": []})["rows"]]
    by_case = {(r.dtype, r.matrices, r.rows, r.columns): r for r in [*earlier, *rows]}
    ordered = [by_case[case] for case in sorted(by_case)]
    kept[device] = {
        "hardware": hardware(device),
        "deepspeed_compiled": os.environ.get("TORCH_COMPILE_DISABLE") != "1",
        "rows": [asdict(row) for row in ordered],
    }
    DATA.write_text(json.dumps(kept, indent=1) + "\n")
    return ordered


def print_table(rows: list[Row]) -> None:
    """Shares of the GEMM rate, one line a shape."""
    columns = ("GEMM GF/s", "muonclip", "executed", "torch", "deepspeed", "ds gram")
    print(f"{'matrices':>14}{'dtype':>10}" + "".join(f"{column:>11}" for column in columns))
    for row in rows:
        shares = {name: f"{row.share(name):.2f}" for name in row.seconds}
        cells = (
            f"{row.gemm_flops / 1e9:.0f}", shares["muonclip"],
            f"{row.share('muonclip') * row.executed:.2f}", shares.get("torch", "-"),
            shares.get("deepspeed standard", "-"), shares.get("deepspeed gram", "-"),
        )  # fmt: skip
        shape = f"{row.matrices}x{row.rows}x{row.columns}"
        print(f"{shape:>14}{row.dtype:>10}" + "".join(f"{cell:>11}" for cell in cells))
    met = all(row.share("muonclip") >= BAR for row in rows)
    print(f"MuonClip at {BAR} of the GEMM rate or more: {'yes' if met else 'NO'}")


def main() -> None:
    """Measure, keep, print."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--device", choices=["cpu", "cuda"], default="cpu")
    parser.add_argument("--shapes", nargs="+", default=SHAPES, metavar="BxNxM")
    parser.add_argument("--dtypes", nargs="+", default=["bfloat16", "float32"])
    parser.add_argument("--rounds", type=int, default=3)
    arguments = parser.parse_args()
    rows = []
    for dtype in arguments.dtypes:
        for shape in arguments.shapes:
            count, n, m = (int(size) for size in shape.split("x"))
            precision = getattr(torch, dtype)
            rows.append(measure((count, n, m), precision, arguments.device, arguments.rounds))
    print_table(keep(rows, arguments.device))


if __name__ == "__main__":
    main()
