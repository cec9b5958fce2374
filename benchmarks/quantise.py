"""How fast are weights quantised and read back, beside copying as many bytes?

Expert matrices of K2, fp32 as the learner keeps them. GB/s counts what an operation must read and
what it must write once; the copy moves the same number of bytes into fresh memory, by turns in the
same process, medians. Every operation is held against its specification first. Keeps the rows with
the hardware in `benchmarks/data/quantise.json`.

    OMP_NUM_THREADS=1 python -m benchmarks.quantise
    python -m benchmarks.quantise --device cuda
"""

import argparse
import json
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
from torch import Tensor

from benchmarks.machine import hardware, take_turns
from kernels import fp8, int4

DATA = Path(__file__).resolve().parent / "data" / "quantise.json"
SHAPE = (8192, 7168)  # gate_proj of four of K2's experts: larger than any cache


@dataclass(frozen=True, kw_only=True)
class Row:
    """One operation."""

    name: str
    num_bytes: int  # read and written
    seconds: float
    copy_seconds: float

    @property
    def rate(self) -> float:
        """GB/s."""
        return self.num_bytes / self.seconds / 1e9

    @property
    def copy_rate(self) -> float:
        """GB/s of the copy."""
        return self.num_bytes / self.copy_seconds / 1e9


def operations(weight: Tensor) -> dict[str, tuple[Callable[[], object], list[Tensor]]]:
    """What is measured, and the tensors that it reads and writes."""
    blocks, groups = fp8.quantise(weight), int4.quantise(weight)
    narrow = weight.bfloat16()
    return {
        "fp8 quantise": (lambda: fp8.quantise(weight), [weight, *blocks]),
        "fp8 dequantise, fp32": (lambda: fp8.dequantise(blocks, torch.float32), [weight, *blocks]),
        "fp8 dequantise, bf16": (lambda: fp8.dequantise(blocks, torch.bfloat16), [narrow, *blocks]),
        "int4 quantise": (lambda: int4.quantise(weight), [weight, *groups]),
        "int4 dequantise, fp32": (
            lambda: int4.dequantise(groups, torch.float32),
            [weight, *groups],
        ),
        "int4 dequantise, bf16": (
            lambda: int4.dequantise(groups, torch.bfloat16),
            [narrow, *groups],
        ),
        "int4 training, bf16": (
            lambda: int4.fake_quantise(weight, dtype=torch.bfloat16),
            [weight, narrow],
        ),
    }


def check(weight: Tensor) -> None:
    """Every operation against its specification, on a corner."""
    corner = weight[:130, :288]
    blocks, groups = fp8.quantise(corner), int4.quantise(corner)
    pairs = [
        *zip(blocks, fp8.naive_quantise(corner.cpu()), strict=True),
        *zip(groups, int4.naive_quantise(corner.cpu()), strict=True),
    ]
    for dtype in (torch.float32, torch.bfloat16):
        cpu = int4.Int4(*(part.cpu() for part in groups))
        pairs += [
            (fp8.dequantise(blocks, dtype), fp8.naive_dequantise(blocks, dtype)),
            (int4.dequantise(groups, dtype), int4.naive_dequantise(cpu, dtype)),
            (int4.fake_quantise(corner, dtype=dtype), int4.naive_dequantise(cpu, dtype)),
        ]
    for found, expected in pairs:
        assert torch.equal(found.float().cpu(), expected.float().cpu())


def measure(device: str, rounds: int) -> list[Row]:
    """Every operation and its copy by turns."""
    torch.manual_seed(0)
    weight = torch.randn(SHAPE, device=device)
    check(weight)
    rows = []
    for name, (run, moved) in operations(weight).items():
        num_bytes = sum(tensor.nbytes for tensor in moved)
        source = torch.ones(num_bytes // 2, dtype=torch.uint8, device=device)
        seconds = take_turns({"run": run, "copy": source.clone}, rounds, device)
        rows.append(
            Row(
                name=name,
                num_bytes=num_bytes,
                seconds=seconds["run"],
                copy_seconds=seconds["copy"],
            )
        )
    return rows


def main() -> None:
    """Measure, keep, print."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--device", choices=["cpu", "cuda"], default="cpu")
    parser.add_argument("--rounds", type=int, default=9)
    arguments = parser.parse_args()
    rows = measure(arguments.device, arguments.rounds)
    kept = json.loads(DATA.read_text()) if DATA.exists() else {}
    kept[arguments.device] = {
        "hardware": hardware(arguments.device),
        "rows": [asdict(row) for row in rows],
    }
    DATA.write_text(json.dumps(kept, indent=1) + "\n")
    print(f"{'':24}{'GB/s':>8}{'copy':>8}{'share':>8}{'weights/s':>12}")
    for row in rows:
        share = row.rate / row.copy_rate
        weights = SHAPE[0] * SHAPE[1] / row.seconds
        print(f"{row.name:24}{row.rate:8.2f}{row.copy_rate:8.2f}{share:8.2f}{weights:12.2e}")


if __name__ == "__main__":
    main()
