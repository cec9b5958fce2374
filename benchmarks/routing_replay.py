"""How far engine and learner are apart with and without the engine's experts, and what those cost.

Two random K2 networks on a vLLM engine that computes in bfloat16, several seeds of each: `tiny`
chooses 2 of 16 experts in 2 layers, `wide` 8 of 64 in 6. The learner has the weights that the
engine was sent (rounded to bfloat16) and computes in float32 or in bfloat16. On the tokens that the
engine sampled: mean and largest |log-prob: learner - engine|, and the share of the engine's choices
that the learner's own routers would not make, with the learner's own experts and with the engine's.

Then the cost: tokens per second, and per second of processor time (which other jobs on the machine
lengthen less), of an engine that records and of one that does not, on the same prompts, one after
the other in every round; and the bytes that a token's record takes.

    OMP_NUM_THREADS=1 python -m benchmarks.routing_replay
"""

import argparse
import asyncio
import json
import statistics
import tempfile
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import psutil
import torch
from safetensors.torch import load_file

from benchmarks.machine import hardware
from model.config import K2Config
from model.k2 import K2
from model.load import load_k2, save_k2
from model.policy import Policy
from model.send_weights import WeightSender
from model.tiny import create_tiny, tiny_config
from rl.batch import Batch, micro_batches, pack
from rl.sample import Sample
from rollout.config import Dtype, EngineConfig
from rollout.engine import Engine
from rollout.episode import Completion

DATA = Path(__file__).resolve().parent / "data" / "routing_replay.json"
PROMPT, TOKENS, SAMPLES = 16, 64, 32
MICRO_BATCH = 2048


@dataclass(frozen=True, slots=True, kw_only=True)
class Gap:
    """Of learner and engine on the same tokens."""

    mean: float  # |difference of log-probs|, nats
    largest: float
    experts: float  # share of the engine's choices that the learner's routers would not make


@dataclass(frozen=True, slots=True, kw_only=True)
class Seed:
    """One network, and one learner's precision."""

    network: str
    compute: str
    seed: int
    tokens: int
    own: Gap  # with the learner's own experts
    replayed: Gap


@dataclass(frozen=True, slots=True, kw_only=True)
class Speed:
    """Of an engine and its owner."""

    tokens_per_s: float
    tokens_per_cpu_s: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Cost:
    """Of recording, on one engine."""

    network: str
    sequences: int  # decoded together
    rounds: int
    off: Speed  # medians
    on: Speed
    wall_ratio: float  # median of the rounds' on / off
    cpu_ratio: float
    bytes_per_token: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Measured:
    """One network."""

    gaps: list[Seed]
    cost: Cost


def config_of(network: str) -> K2Config:
    """The sizes of one of the two."""
    tiny = tiny_config(512)
    if network == "tiny":
        return tiny
    return replace(
        tiny,
        num_hidden_layers=7,
        n_routed_experts=64,
        num_experts_per_tok=8,
        moe_intermediate_size=64,
    )


def make(network: str, seed: int, folder: Path) -> None:
    """A checkpoint with distributions as sharp as a trained one's, and a router bias."""
    folder.mkdir()
    create_tiny(folder / "tiny", ["one two three 1 + 2 = 3"], seed)
    model = K2(config_of(network))
    model.initialize_(seed)
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.ndim > 1:
                parameter.mul_(2)
        for name, buffer in model.named_buffers():
            if name.endswith("e_score_correction_bias"):
                buffer.normal_(0, 0.05, generator=generator)
    save_k2(model, folder / "model", torch.bfloat16, tokenizer_from=folder / "tiny")


def prompts(count: int, seed: int) -> list[list[int]]:
    """Random ones, of the same length."""
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(0, 504, (count, PROMPT), generator=generator).tolist()


def settings(*, recording: bool) -> EngineConfig:
    """An engine's."""
    return EngineConfig(
        dtype=Dtype.bfloat16,
        max_model_len=PROMPT + TOKENS,
        max_num_seqs=SAMPLES,
        kv_cache_bytes=1 << 28,
        routing_replay=recording,
    )


async def drawn_by(engine: Engine, asked: Sequence[Sequence[int]]) -> list[Completion]:
    """A completion of every prompt."""
    draws = (engine.draw(prompt, max_tokens=TOKENS, temperature=1.0) for prompt in asked)
    return await asyncio.gather(*draws)


@torch.no_grad()
def gap_of(model: K2, batch: Batch, *, follow: bool) -> Gap:
    """Between the learner's and the recorded log-probs."""
    model.follow_(follow)
    differences, differing, recorded = [], 0, 0
    for part in micro_batches(batch, MICRO_BATCH):
        assert part.routing is not None
        replay = part.routing.movedim(1, 0)
        arguments = (part.ids.long(), part.loss_mask, part.lengths, part.temperatures)
        found = Policy(model)(*arguments, replay).logprobs
        differences.append((found - part.behaviour_logprobs[part.loss_mask]).abs())
        assert model.differing is not None
        differing += int(model.differing)
        recorded += int((replay >= 0).sum())
    apart = torch.cat(differences)
    return Gap(mean=apart.mean().item(), largest=apart.max().item(), experts=differing / recorded)


def compare(network: str, seed: int, folder: Path, drawn: Sequence[Completion]) -> list[Seed]:
    """What an engine sampled, against learners of both precisions."""
    batch = pack([Sample(completion=each, oldest=0, advantage=0.0) for each in drawn])
    rows = []
    for compute in (torch.float32, torch.bfloat16):
        model = load_k2(folder / "model", compute_dtype=compute)
        row = Seed(
            network=network,
            compute=str(compute).removeprefix("torch."),
            seed=seed,
            tokens=batch.total_loss_tokens,
            own=gap_of(model, batch, follow=False),
            replayed=gap_of(model, batch, follow=True),
        )
        print(row, flush=True)
        rows.append(row)
    return rows


async def seeds_of(network: str, engine: Engine, folder: Path, seeds: int) -> list[Seed]:
    """The engine has the weights of seed 0, and takes those of the others."""
    rows = []
    with tempfile.TemporaryDirectory(dir="/dev/shm") as shared:
        sender = WeightSender(bucket_bytes=1 << 24, root=Path(shared))
        for seed in range(seeds):
            if seed:
                make(network, seed, folder / str(seed))
                new = load_file(folder / str(seed) / "model" / "model.safetensors")
                await engine.receive(sender.publish(iter(new.items()), seed))
            drawn = await drawn_by(engine, prompts(SAMPLES, seed))
            rows += compare(network, seed, folder / str(seed), drawn)
        sender.close()
    return rows


def cpu_seconds() -> float:
    """Processor time of this process and its children."""
    own = psutil.Process()
    times = (each.cpu_times() for each in (own, *own.children(recursive=True)))
    return sum(each.user + each.system for each in times)


async def speed_of(engine: Engine, asked: Sequence[Sequence[int]]) -> tuple[Speed, Completion]:
    """Of one batch of completions, and one of them."""
    started, busy = time.perf_counter(), cpu_seconds()
    drawn = await drawn_by(engine, asked)
    wall, cpu = time.perf_counter() - started, cpu_seconds() - busy
    tokens = sum(len(each.token_ids) for each in drawn)
    return Speed(tokens_per_s=tokens / wall, tokens_per_cpu_s=tokens / cpu), drawn[0]


async def cost_of(network: str, engines: Mapping[bool, Engine], rounds: int) -> Cost:
    """Two engines that take turns, one of which records; the first round warms up."""
    speeds: dict[bool, list[Speed]] = {False: [], True: []}
    size = 0
    for count in range(rounds + 1):
        for on in (False, True) if count % 2 else (True, False):
            speed, drawn = await speed_of(engines[on], prompts(SAMPLES, count))
            speeds[on] += [speed] if count else []
            assert (drawn.routing is not None) == on
            size = drawn.routing[0].nbytes if drawn.routing is not None else size
    medians = {
        on: Speed(
            tokens_per_s=statistics.median(s.tokens_per_s for s in each),
            tokens_per_cpu_s=statistics.median(s.tokens_per_cpu_s for s in each),
        )
        for on, each in speeds.items()
    }
    pairs = list(zip(speeds[False], speeds[True], strict=True))
    cost = Cost(
        network=network,
        sequences=SAMPLES,
        rounds=rounds,
        off=medians[False],
        on=medians[True],
        wall_ratio=statistics.median(on.tokens_per_s / off.tokens_per_s for off, on in pairs),
        cpu_ratio=statistics.median(
            on.tokens_per_cpu_s / off.tokens_per_cpu_s for off, on in pairs
        ),
        bytes_per_token=size,
    )
    print(cost, flush=True)
    return cost


async def measure(network: str, seeds: int, rounds: int) -> Measured:
    """Both halves, with two engines of one network."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        make(network, 0, folder / "0")
        engines: dict[bool, Engine] = {}
        try:
            for on in (True, False):
                engines[on] = await Engine.start(settings(recording=on), folder / "0" / "model")
            rows = await seeds_of(network, engines[True], folder, seeds)
            return Measured(gaps=rows, cost=await cost_of(network, engines, rounds))
        finally:
            for engine in engines.values():
                await engine.shutdown()


def main() -> None:
    """Measure, and write the data after each network."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--networks", nargs="+", default=["wide", "tiny"])
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--rounds", type=int, default=9)
    options = parser.parse_args()
    torch.set_num_threads(1)
    before = hardware("cpu")
    found: list[Measured] = []
    for network in options.networks:
        found.append(asyncio.run(measure(network, options.seeds, options.rounds)))
        result = {"hardware": before, "networks": [asdict(each) for each in found]}
        DATA.write_text(json.dumps(result, indent=1) + "\n")


if __name__ == "__main__":
    main()
