"""How long new weights take into a running engine on this host, against the machine's memcpy.

A K2 network with random bfloat16 weights of about 1 GB, and the tiny one in float32 (as the
quickstart has it), on a vLLM engine each.
Per round, one after another: a copy of as many bytes on one thread and on two; publishing (copy
into shared memory that is there from versions before, with digests); verifying (digests, in the
engine's owner, while requests run); loading (generation is paused for it: into the layouts of the
kernels). Medians of wall time, and of processor time in the process that does it, which other jobs
on the machine do not lengthen as much. Beside loading stands what vLLM's own operator takes to pack
the routed experts alone: no loading can take less. With --layerwise vLLM's own reload runs, too.

What an update in flight costs generation: the samples of a quickstart's step are drawn with and
without one, in turns. The difference is what it stalls for: loading, while nothing is generated,
and keys and values that are computed again under the new weights, unless engine.recompute_kv=false
keeps those of the weights before (the third of the turns).

Then what changes cost and save: bytes sent, and seconds to find and to apply them, when a share of
the elements has changed.

    OMP_NUM_THREADS=1 python -m benchmarks.weight_update
"""

import argparse
import asyncio
import contextlib
import json
import os
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from operator import sub
from pathlib import Path
from typing import Any

import psutil
import torch
from torch import Tensor
from vllm.model_executor.layers.fused_moe.routed_experts import RoutedExperts

from benchmarks.machine import hardware
from model.config import K2Config, RopeScaling
from model.formats import KEEPS_FP32, release
from model.k2 import K2
from model.load import write_config
from model.send_weights import WeightSender, WeightUpdate
from model.shards import merge_index, write_shards
from model.tiny import tiny_config
from rollout.config import Dtype, EngineConfig
from rollout.engine import Engine
from rollout.receive_changes import HeldCopy
from rollout.receive_plan import packed_experts

DATA = Path(__file__).resolve().parent / "data" / "weight_update.json"
SHARES = (0.001, 0.01, 0.1, 0.5)  # of elements that change
PAUSES = 7  # rounds in flight
STEP = {"samples": 128, "max_tokens": 64}  # what the quickstart draws for one step
WARM = 2  # rounds that make and map both sets of files
TRANSFER = (
    "publish",
    "verify",
)  # from the learner's tensors to verified bytes in an engine's reach
ALL = (*TRANSFER, "load")


def gigabyte_config() -> K2Config:
    """1.05 GB in bfloat16, 96 % of it routed experts."""
    return K2Config(
        vocab_size=512,
        hidden_size=1024,
        intermediate_size=2048,
        moe_intermediate_size=512,
        num_hidden_layers=6,
        num_attention_heads=4,
        num_key_value_heads=4,
        n_routed_experts=64,
        num_experts_per_tok=4,
        q_lora_rank=256,
        kv_lora_rank=512,
        qk_nope_head_dim=64,
        qk_rope_head_dim=64,
        v_head_dim=64,
        rope_scaling=RopeScaling(),
        max_position_embeddings=4096,
        bos_token_id=504,
        eos_token_id=506,
        pad_token_id=511,
    )


CONFIGS: dict[str, tuple[Callable[[], K2Config], Dtype]] = {
    "tiny": (lambda: tiny_config(512), Dtype.float32),
    "gigabyte": (gigabyte_config, Dtype.bfloat16),
}


@dataclass(frozen=True, kw_only=True)
class Stall:
    """What one update in flight adds to the generation of a step's samples; medians."""

    step_seconds: float
    added_seconds: float
    step_cpu_seconds: float  # of the engine's core
    added_cpu_seconds: float
    kept_added_seconds: float  # if keys and values are kept
    kept_added_cpu_seconds: float


@dataclass(frozen=True, kw_only=True)
class Result:
    """One model: medians in seconds."""

    name: str
    num_bytes: int
    direct: bool
    seconds: dict[str, float]  # of the wall clock
    cpu_seconds: dict[str, float]
    pack_cpu_seconds: float  # of vLLM's operator for all routed experts
    stall: Stall | None
    changes: list[dict[str, float]]

    def ratio(self, stages: Sequence[str]) -> float:
        """Rate of these stages together as a share of that of memcpy on one thread; of the CPU."""
        return self.cpu_seconds["memcpy_1"] / sum(self.cpu_seconds[stage] for stage in stages)


def random_weights(config: K2Config, dtype: torch.dtype) -> dict[str, Tensor]:
    """Released names; the experts of a layer in one block, as a learner has them."""
    torch.manual_seed(0)
    with torch.device("meta"):
        shapes = {name: each.shape for name, each in K2(config).state_dict().items()}
    weights: dict[str, Tensor] = {}
    for name, shape in shapes.items():
        kept = torch.float32 if name.endswith(KEEPS_FP32) else dtype
        tensor = torch.empty(shape, dtype=kept).normal_(0, 0.02)
        weights |= release(name, tensor + name.endswith("norm.weight"))
    return weights


def write_checkpoint(
    config: K2Config, weights: dict[str, Tensor], dtype: torch.dtype, folder: Path
) -> None:
    """A folder that vLLM starts from."""
    folder.mkdir()
    write_shards(weights.items(), folder, 1 << 30)
    merge_index(folder)
    write_config(config, folder, dtype)


class Stopwatch:
    """Wall and CPU seconds of stages, round after round."""

    def __init__(self) -> None:
        self.taken: dict[str, list[tuple[float, float]]] = {}

    @contextlib.contextmanager
    def time(
        self, stage: str, processor: Callable[[], float] = time.process_time
    ) -> Iterator[None]:
        """Time what is inside; `processor` tells the CPU seconds of the process that does it."""
        wall, cpu = time.perf_counter(), processor()
        yield
        found = time.perf_counter() - wall, processor() - cpu
        self.taken.setdefault(stage, []).append(found)

    def medians(self, clock: int, skip: int) -> dict[str, float]:
        """Of every stage: wall (0) or CPU (1), without the first rounds."""
        return {
            stage: statistics.median(each[clock] for each in rounds[skip:])
            for stage, rounds in self.taken.items()
        }


def core_seconds() -> float:
    """CPU seconds of the engine's core process."""
    (core,) = (c for c in psutil.Process().children() if "EngineCore" in c.name())
    times = core.cpu_times()
    return times.user + times.system


def memcpy(num_bytes: int, threads: int) -> Callable[[], None]:
    """A copy of so many bytes, in memory that is there."""
    source = torch.ones(num_bytes, dtype=torch.uint8)
    target = torch.zeros(num_bytes, dtype=torch.uint8)

    def run() -> None:
        before = torch.get_num_threads()
        torch.set_num_threads(threads)
        target.copy_(source)
        torch.set_num_threads(before)

    return run


async def rounds_of(
    engine: Engine, sender: WeightSender, weights: dict[str, Tensor], rounds: int
) -> Stopwatch:
    """Time every stage."""
    size = sum(each.nbytes for each in weights.values())
    watch = Stopwatch()
    copies = {f"memcpy_{n}": memcpy(size, n) for n in (1, 2)}
    for number in range(1, rounds + WARM + 1):
        for name, copy in copies.items():
            with watch.time(name):
                copy()
        with watch.time("publish"):
            update = sender.publish(weights.items(), number)
        with watch.time("verify"):
            here = await engine._arrivals.verified(update)
        with watch.time("load", core_seconds):
            await engine._load(here, ())
        sender.release(number)
    return watch


async def stall(
    engine: Engine, sender: WeightSender, weights: dict[str, Tensor], rounds: int
) -> Stall:
    """A step's samples with and without an update in flight."""

    async def step(update: WeightUpdate | None, keeps: bool = False) -> tuple[float, float]:
        engine._recompute_kv = not keeps
        start, cpu = time.perf_counter(), core_seconds()
        requests = engine.generate([*range(9, 39)], **STEP, temperature=1.0)
        running = asyncio.create_task(requests)
        if update is not None:
            await asyncio.sleep(0.3)
            await engine.receive(update)
        await running
        return time.perf_counter() - start, core_seconds() - cpu

    turns = []
    for number in range(100, 100 + rounds):
        update = sender.publish(weights.items(), number)
        turns.append([await step(None), await step(update), await step(update, keeps=True)])
        sender.release(number)

    def medians(clock: int) -> tuple[float, float, float]:
        without, again, kept = zip(*([each[clock] for each in turn] for turn in turns), strict=True)
        median = statistics.median
        return median(without), *(median(map(sub, each, without)) for each in (again, kept))

    (wall, more, kept), (cpu, more_cpu, kept_cpu) = medians(0), medians(1)
    return Stall(
        step_seconds=wall,
        added_seconds=more,
        step_cpu_seconds=cpu,
        added_cpu_seconds=more_cpu,
        kept_added_seconds=kept,
        kept_added_cpu_seconds=kept_cpu,
    )


def changes_of(weights: dict[str, Tensor], shares: tuple[float, ...]) -> list[dict[str, float]]:
    """What changes of a share of all elements cost (CPU seconds) and save."""
    found = []
    sender, held = WeightSender(delta=True), HeldCopy()
    try:
        for number in range(2):  # both sets of files
            held.take(sender.publish(weights.items(), number))
            sender.release(number)
        for number, share in enumerate(shares, 2):
            for tensor in weights.values():
                flat = tensor.view(-1)
                hit = torch.randint(len(flat), (int(share * len(flat)),))
                flat[hit] = torch.nextafter(flat[hit], torch.ones((), dtype=flat.dtype))
            start = time.process_time()
            update = sender.publish(weights.items(), number)
            middle = time.process_time()
            held.take(update)
            end = time.process_time()
            assert update.changes is not None
            found.append(
                {
                    "share": share,
                    "bytes_ratio": update.changes.num_bytes / update.num_bytes,
                    "publish": middle - start,
                    "apply": end - middle,
                }
            )
            sender.release(number)
    finally:
        sender.close()
        held.close()
    return found


async def measure(name: str, rounds: int, layerwise: bool) -> Result:
    """Start an engine on random weights and update it."""
    make, precision = CONFIGS[name]
    config, dtype = make(), getattr(torch, precision.value)
    weights = random_weights(config, dtype)
    with tempfile.TemporaryDirectory() as folder:
        checkpoint = Path(folder, "model")
        write_checkpoint(config, weights, dtype, checkpoint)
        settings = EngineConfig(dtype=precision, max_model_len=256, kv_cache_bytes=1 << 28)
        engine = await Engine.start(settings, checkpoint)
    sender = WeightSender()
    core: Any = engine._llm
    try:
        if layerwise:
            await core.collective_rpc(forget_plan)
        direct = (await core.collective_rpc(has_plan))[0]
        watch = await rounds_of(engine, sender, weights, rounds)
        packing = (await core.collective_rpc(packing_seconds, args=(rounds,)))[0]
        stalled = await stall(engine, sender, weights, PAUSES) if name == "tiny" else None
    finally:
        sender.close()
        await engine.shutdown()
    return Result(
        name=name,
        num_bytes=sum(each.nbytes for each in weights.values()),
        direct=direct,
        seconds=watch.medians(0, WARM),
        cpu_seconds=watch.medians(1, WARM),
        pack_cpu_seconds=packing,
        stall=stalled,
        changes=changes_of(weights, SHARES) if name == "gigabyte" and not layerwise else [],
    )


def forget_plan(worker: Any) -> None:
    """In the core process: let vLLM reload layer by layer."""
    worker.worker.weight_transfer_engine._plan = None


def packing_seconds(worker: Any, rounds: int) -> float:
    """In the core process: CPU seconds to pack as many bytes of experts, all memory being there."""
    layers = [m for m in worker.worker.get_model().modules() if isinstance(m, RoutedExperts)]
    shapes = layers[0].w13_weight, layers[0].w2_weight  # of all of them
    targets = [partial(torch.nn.Identity(), torch.zeros_like(each)) for each in shapes]
    seconds = []
    for _ in range(rounds):
        start = time.process_time()
        for layer in layers:
            isa = layer.quant_method.moe_kernel.fused_experts.isa
            for source, target in zip((layer.w13_weight, layer.w2_weight), targets, strict=True):
                packed_experts(target, isa, 1)(source.data.unbind())
        seconds.append(time.process_time() - start)
    return statistics.median(seconds)


def has_plan(worker: Any) -> bool:
    """In the core process: are tensors loaded directly?"""
    return worker.worker.weight_transfer_engine._plan is not None


def print_result(result: Result) -> None:
    """Rates, and shares of memcpy."""
    way = "direct" if result.direct else "layer by layer"
    print(f"{result.name}: {result.num_bytes / 1e9:.3f} GB, {way}")
    for stage, seconds in result.seconds.items():
        cpu = result.cpu_seconds[stage]
        print(
            f"  {stage:>8}: {1e3 * seconds:8.1f} ms; CPU {1e3 * cpu:8.1f} ms, "
            f"{result.num_bytes / max(cpu, 1e-9) / 1e9:6.2f} GB/s"
        )
    pack = result.pack_cpu_seconds
    print(f"  packing by vLLM's operator: CPU {1e3 * pack:.1f} ms")
    print(f"  of memcpy: transfer {result.ratio(TRANSFER):.2f}, all {result.ratio(ALL):.2f}")
    if result.stall is not None:
        print_stall(result.stall, result.cpu_seconds["load"])
    for each in result.changes:
        print(
            f"  {each['share']:6.1%} changed: {each['bytes_ratio']:.3f} of the bytes, "
            f"publish {each['publish']:.2f} CPU-s, apply {each['apply']:.2f}"
        )


def print_stall(at: Stall, load: float) -> None:
    """What an update adds to a step's generation; of the CPU's time, loading too."""
    step, cpu = at.step_seconds, at.step_cpu_seconds
    print(f"  an update in flight adds to a step's generation of {step:.2f} s, CPU {cpu:.2f} s:")
    for way, more, more_cpu in (
        ("computed again", at.added_seconds, at.added_cpu_seconds),
        ("kept", at.kept_added_seconds, at.kept_added_cpu_seconds),
    ):
        print(
            f"    keys and values {way}: {1e3 * more:.0f} ms ({more / step:.1%}); "
            f"CPU {1e3 * more_cpu:.0f} ms ({more_cpu / cpu:.1%}, of it loading {load / cpu:.1%})"
        )


def results(arguments: argparse.Namespace) -> Iterator[Result]:
    """Each asked for."""
    for name in arguments.models:
        for layerwise in (False, True) if arguments.layerwise else (False,):
            yield asyncio.run(measure(name, arguments.rounds, layerwise))


def main() -> None:
    """Measure, keep, print."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--models", nargs="+", choices=CONFIGS, default=list(CONFIGS))
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--layerwise", action="store_true", help="vLLM's own reload, too")
    arguments = parser.parse_args()
    os.environ["VLLM_ALLOW_INSECURE_SERIALIZATION"] = "1"  # to reach into the core process
    kept = json.loads(DATA.read_text()) if DATA.exists() else {}
    for result in results(arguments):
        print_result(result)
        key = result.name if result.direct else f"{result.name}_layerwise"
        kept[key] = {
            "hardware": hardware("cpu"),
            **asdict(result),
            "memcpy_ratio": {
                "transfer": round(result.ratio(TRANSFER), 3),
                "all": round(result.ratio(ALL), 3),
            },
        }
    DATA.write_text(json.dumps(kept, indent=1) + "\n")


if __name__ == "__main__":
    main()
