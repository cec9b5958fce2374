"""Does `temper plan` predict the learner's memory? Measured in fresh processes, on CPU.

For every case a child builds the learner's shard (one rank), takes two optimiser steps of two
micro-batches each, and reports two heights: of the tensors alive (`model.live_bytes`, exact) and of
its resident memory over what it held after its imports. Adds them to
`benchmarks/data/plan_memory.json` and prints them beside the prediction.

    python benchmarks/plan_memory.py
    python benchmarks/plan_memory.py --only tiny --stages 1
"""

import argparse
import gc
import json
import os
import resource
import socket
import subprocess
import sys
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
from torch import Tensor

from model.config import MuonClipConfig, ParallelConfig, Rank
from model.inventory import inventory, parameter_count
from model.k2 import K2
from model.k2_config import K2Config
from model.live_bytes import LiveBytes
from model.parallel import Shard, join
from model.tiny import tiny_config
from rl.config import PolicyConfig, TrainConfig
from rl.hardware import load_hardware
from rl.plan_memory import LearnerMemory, learner_memory
from rollout.config import Dtype

DATA = Path(__file__).resolve().parent / "data" / "plan_memory.json"
LENGTH = 256


def small_config() -> K2Config:
    """110 M parameters: seven layers, six of them with 24 experts."""
    return K2Config(
        vocab_size=8192,
        hidden_size=512,
        intermediate_size=2048,
        moe_intermediate_size=384,
        num_hidden_layers=7,
        num_attention_heads=8,
        num_key_value_heads=8,
        n_routed_experts=24,
        num_experts_per_tok=4,
        q_lora_rank=256,
        kv_lora_rank=512,
        qk_nope_head_dim=64,
        qk_rope_head_dim=64,
        v_head_dim=64,
        bos_token_id=0,
        eos_token_id=1,
        pad_token_id=2,
    )


MODELS = {"tiny": (lambda: tiny_config(512), 2048), "small": (small_config, 1024)}


@dataclass(frozen=True, kw_only=True)
class Result:
    """Bytes of one case."""

    model: str
    parameters: int
    zero_stage: int
    tokens: int  # of a micro-batch
    predicted: int
    predicted_states: int  # what is there before a step
    live: int  # tensors alive at the height
    live_states: int  # tensors alive then
    resident: int  # resident memory at the height, over that after the imports


@torch.no_grad()
def fill(slots: dict[str, Tensor], first: int) -> None:
    """Weights of the usual size; the content does not matter here."""
    for tensor in slots.values():
        tensor.fill_(1.0) if tensor.dim() == 1 else tensor.normal_(0, 0.02)


def resident() -> int:
    """Resident memory now."""
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * resource.getpagesize()


def measure(model: str, stage: int) -> Result:
    """Run one case in this process."""
    make, tokens = MODELS[model]
    config, parallel = make(), ParallelConfig(zero_stage=stage)
    torch.set_num_threads(1)
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    join(Rank(rank=0, size=1, address="127.0.0.1", port=port), timeout_seconds=120)
    with torch.device("meta"):
        network = K2(config)
    lengths = [LENGTH] * (tokens // LENGTH)
    ids = torch.randint(0, 500, (tokens,))
    mask = torch.ones(tokens, dtype=torch.bool)
    mask[::LENGTH] = False
    gc.collect()
    start = resident()
    Path("/proc/self/clear_refs").write_text("5")  # forget the height of resident memory so far
    with LiveBytes() as live:
        shard = Shard(network, fill, MuonClipConfig(), parallel)
        for tensor in (*shard.policy.parameters(), *shard.policy.buffers()):
            live.watch(tensor.data)
        live.reset_peak()
        states = 0
        for _ in range(2):
            for last in (False, True):
                out = shard.forward(ids, mask, lengths, torch.ones(len(lengths)))
                shard.backward(-out.logprobs.mean(), last=last)
                max_logits = out.max_logits
                del out
            gc.collect()
            states = live.now
            shard.step(max_logits, learning_rate=1e-4)
    recipe = TrainConfig(
        policy=PolicyConfig(micro_batch_tokens=tokens, dtype=Dtype.float32), parallel=parallel
    )
    plan = learner_memory(recipe, config, inventory(config), load_hardware("cpu"))
    return Result(
        model=model,
        parameters=parameter_count(config),
        zero_stage=stage,
        tokens=tokens,
        predicted=plan.total - plan.reserved - plan.transfer,
        predicted_states=states_of(plan, stage),
        live=live.peak,
        live_states=states,
        resident=height() - start,
    )


def states_of(plan: LearnerMemory, stage: int) -> int:
    """Weights, gradients, optimiser; ZeRO-3 keeps its bucket between passes too."""
    states = plan.weights + plan.gradients + plan.optimizer
    return states + (plan.buckets if stage == 3 else 0)


def height() -> int:
    """Largest resident memory since it was last forgotten."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return 1024 * next(int(line.split()[1]) for line in lines if line.startswith("VmHWM:"))


def in_child(model: str, stage: int) -> Result:
    """The same in a fresh process, whose allocator gives back what is freed."""
    command = [sys.executable, __file__, "--child", "--only", model, "--stages", str(stage)]
    environment = os.environ | {
        "MALLOC_MMAP_THRESHOLD_": str(1 << 16),
        "MALLOC_TRIM_THRESHOLD_": "0",
        "OMP_NUM_THREADS": "1",
    }
    done = subprocess.run(command, env=environment, check=True, capture_output=True, text=True)
    return Result(**json.loads(done.stdout.splitlines()[-1]))


def keep(results: list[Result]) -> list[Result]:
    """Put `results` in place of earlier ones of the same case; all that is kept then."""
    kept = json.loads(DATA.read_text())["results"] if DATA.exists() else []
    by_case = {(r["model"], r["zero_stage"]): Result(**r) for r in kept}
    by_case |= {(r.model, r.zero_stage): r for r in results}
    ordered = [by_case[key] for key in sorted(by_case)]
    content = {"torch": torch.__version__, "results": [asdict(r) for r in ordered]}
    DATA.parent.mkdir(exist_ok=True)
    DATA.write_text(json.dumps(content, indent=1) + "\n")
    return ordered


def print_table(results: list[Result]) -> None:
    """One line a case."""
    columns = ("model", "ZeRO", "predicted", "live", "ratio", "resident", "ratio", "states")
    print("".join(f"{column:>12}" for column in columns), "(MB; states: predicted / live)")
    for r in results:
        cells = (
            r.model, r.zero_stage, f"{r.predicted / 1e6:.1f}", f"{r.live / 1e6:.1f}",
            f"{r.predicted / r.live:.3f}", f"{r.resident / 1e6:.1f}",
            f"{r.predicted / r.resident:.3f}", f"{r.predicted_states / r.live_states:.3f}",
        )  # fmt: skip
        print("".join(f"{cell:>12}" for cell in cells))


def main() -> None:
    """Run, keep, print."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--only", choices=sorted(MODELS), help="one model (default: all)")
    parser.add_argument("--stages", type=int, nargs="+", default=[1, 2, 3])
    parser.add_argument("--child", action="store_true", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    models = [arguments.only] if arguments.only else sorted(MODELS)
    if arguments.child:
        print(json.dumps(asdict(measure(models[0], arguments.stages[0]))))
        sys.stdout.flush()
        os._exit(0)  # nothing of the job is left to put away
    results: list[Result] = []
    for model in models:
        for stage in arguments.stages:
            results = keep([in_child(model, stage)])
    print_table(results)


if __name__ == "__main__":
    main()
