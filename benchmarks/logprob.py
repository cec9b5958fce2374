"""What `kernels.logprob` costs at K2's vocabulary, against all logits at once.

Time is that of a forward and a backward pass, the two versions by turns in one process, medians;
on one CPU thread the processor's time, which other jobs do not lengthen.
Memory is the peak of one such pass over what it starts with: on CPU in a fresh process for each
version, on CUDA by torch's own count. Both versions must write the gradients of hidden states and
head, so the table gives the ratio with them and without. Keeps the rows with the hardware in
`benchmarks/data/logprob.json`.

    OMP_NUM_THREADS=1 python -m benchmarks.logprob
    python -m benchmarks.logprob --device cuda --tokens 4096 --hidden 7168
"""

import argparse
import json
import subprocess
import sys
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path

import torch
from torch import Tensor

from benchmarks.machine import hardware, take_turns
from kernels.logprob import naive_token_logprobs, token_logprobs

VOCABULARY = 163840
VERSIONS = {"naive": naive_token_logprobs, "tiled": token_logprobs}
DATA = Path(__file__).resolve().parent / "data" / "logprob.json"
TIME_BAR, MEMORY_BAR = 1.4, 1 / 8


@dataclass(frozen=True, kw_only=True)
class Case:
    """One shape. `dtype` is that of the hidden states; the head's weights are float32."""

    tokens: int
    hidden: int
    dtype: str
    device: str

    @property
    def gradient_bytes(self) -> int:
        """Gradients of hidden states and head, which both versions must write."""
        width = getattr(torch, self.dtype).itemsize
        return 4 * VOCABULARY * self.hidden + width * self.tokens * self.hidden


@dataclass(frozen=True, kw_only=True)
class Row:
    """One measured shape: medians in seconds, peaks in bytes."""

    case: Case
    seconds: dict[str, float]
    peak_bytes: dict[str, int]

    @property
    def time_ratio(self) -> float:
        """Tiled over naive."""
        return self.seconds["tiled"] / self.seconds["naive"]

    def memory_ratio(self, *, gradients: bool) -> float:
        """Tiled over naive, with what both must write or without."""
        less = 0 if gradients else self.case.gradient_bytes
        tiled, naive = (self.peak_bytes[version] - less for version in ("tiled", "naive"))
        return max(tiled, 0) / naive


@dataclass(frozen=True)
class Operands:
    """What a pass starts with."""

    hidden: Tensor
    weight: Tensor
    targets: Tensor
    slope: Tensor


def make(case: Case) -> Operands:
    """The same numbers in every process; made in place, so that nothing larger was ever held."""
    torch.manual_seed(0)
    dtype = getattr(torch, case.dtype)
    hidden = torch.empty(case.tokens, case.hidden, dtype=dtype, device=case.device).normal_()
    weight = torch.empty(VOCABULARY, case.hidden, device=case.device).normal_(0, 0.02)
    targets = torch.randint(VOCABULARY, (case.tokens,), device=case.device)
    slope = torch.randn(case.tokens, device=case.device)
    return Operands(hidden.requires_grad_(), weight.requires_grad_(), targets, slope)


def one_pass(version: str, operands: Operands) -> None:
    """Forward and backward; the gradients are dropped."""
    logprobs, _ = VERSIONS[version](operands.hidden, operands.weight, operands.targets)
    torch.autograd.grad(logprobs, [operands.hidden, operands.weight], operands.slope)
    if operands.hidden.is_cuda:
        torch.cuda.synchronize()


def resident_peak() -> int:
    """High-water mark of this process, in bytes."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return 1024 * next(int(line.split()[1]) for line in lines if line.startswith("VmHWM"))


def peak_bytes(version: str, case: Case) -> int:
    """Peak of one pass over its operands, in this process."""
    # Libraries allocate on first use.
    few = make(Case(tokens=8, hidden=case.hidden, dtype=case.dtype, device=case.device))
    one_pass("tiled", few)
    del few
    operands = make(case)
    if case.device == "cuda":
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        one_pass(version, operands)
        return torch.cuda.max_memory_allocated() - before
    Path("/proc/self/clear_refs").write_text("5")  # the high-water mark starts again from here
    before = resident_peak()
    one_pass(version, operands)
    return resident_peak() - before


def measure(case: Case, rounds: int) -> Row:
    """Time by turns here, memory in children."""
    peaks = {}
    for version in VERSIONS:
        child = [sys.executable, "-m", "benchmarks.logprob", "--child", version]
        child += ["--device", case.device, "--tokens", str(case.tokens)]
        child += ["--hidden", str(case.hidden), "--dtypes", case.dtype]
        peaks[version] = int(subprocess.run(child, capture_output=True, check=True).stdout)
    operands = make(case)
    contenders = {version: partial(one_pass, version, operands) for version in VERSIONS}
    return Row(case=case, seconds=take_turns(contenders, rounds, case.device), peak_bytes=peaks)


def keep(rows: list[Row], device: str) -> None:
    """Put these rows in place of all earlier ones of the device."""
    kept = json.loads(DATA.read_text()) if DATA.exists() else {}
    kept[device] = {"hardware": hardware(device), "rows": [asdict(row) for row in rows]}
    DATA.write_text(json.dumps(kept, indent=1) + "\n")


def print_table(rows: list[Row]) -> None:
    """One line a shape."""
    columns = ("tokens", "hidden", "dtype", "naive s", "tiled s", "time", "naive MB", "tiled MB")
    print("".join(f"{column:>10}" for column in (*columns, "memory", "no grads")))
    for row in rows:
        cells = (
            row.case.tokens, row.case.hidden, row.case.dtype,
            *(f"{value:.2f}" for value in row.seconds.values()), f"{row.time_ratio:.2f}",
            *(f"{value / 1e6:.0f}" for value in row.peak_bytes.values()),
            f"{row.memory_ratio(gradients=True):.3f}", f"{row.memory_ratio(gradients=False):.3f}",
        )  # fmt: skip
        print("".join(f"{cell:>10}" for cell in cells))
    met = all(
        row.time_ratio <= TIME_BAR and row.memory_ratio(gradients=False) <= MEMORY_BAR
        for row in rows
    )
    print(f"time at most {TIME_BAR} and memory at most {MEMORY_BAR}: {'yes' if met else 'NO'}")


def main() -> None:
    """Measure, keep, print."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--device", choices=["cpu", "cuda"], default="cpu")
    parser.add_argument("--tokens", type=int, nargs="+", default=[512, 1024])
    parser.add_argument("--hidden", type=int, nargs="+", default=[256, 512])
    parser.add_argument("--dtypes", nargs="+", default=["float32", "bfloat16"])
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--child", choices=list(VERSIONS), help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    cases = [
        Case(tokens=tokens, hidden=hidden, dtype=dtype, device=arguments.device)
        for tokens in arguments.tokens
        for hidden in arguments.hidden
        for dtype in arguments.dtypes
    ]
    if arguments.child:
        print(peak_bytes(arguments.child, cases[0]))
        return
    rows = [measure(case, arguments.rounds) for case in cases]
    keep(rows, arguments.device)
    print_table(rows)


if __name__ == "__main__":
    main()
