"""A new version that comes from another host: whole, or layer by layer (weights.by_layer).

A K2 network with random bfloat16 weights of about 1 GB and a vLLM engine, with two relays between
them that speak over the loopback of one machine, as those of two hosts do over the network. The two
ways take turns. Seconds, medians: from what is published to an engine that draws with it, and of
these, how long generation stands still; and the most that the receiving relay held in shared
memory, over the bytes of a version: two versions, or two layers. vLLM's own reload does the loading
in both ways, as on a GPU. With two cores for sender, receiver, verification and loading little can
overlap; with processors of their own it would.

    OMP_NUM_THREADS=1 python -m benchmarks.weight_layers
"""

import argparse
import asyncio
import contextlib
import json
import os
import statistics
import tempfile
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any

import ray
import torch
from torch import Tensor

from benchmarks.machine import hardware
from benchmarks.weight_update import (
    forget_plan,
    gigabyte_config,
    random_weights,
    write_checkpoint,
)
from model.send_weights import SHARED_MEMORY, WeightSender
from rl.config import ClusterConfig, Transport
from rl.ray_parts import Actor, connect
from rl.supervision import Restarts
from rl.weight_layers import by_layer
from rl.weight_relay import WeightRelay
from rl.weight_transport import WeightTransport
from rollout.config import Dtype, EngineConfig
from rollout.engine import Engine

DATA = Path(__file__).resolve().parent / "data" / "weight_layers.json"
BUCKET = 1 << 26  # bytes of a published file
LOOK_S = 0.002
WARM = 1  # rounds


@dataclass(frozen=True, kw_only=True)
class Way:
    """One of the two; medians in seconds."""

    name: str
    num_bytes: int
    seconds: float
    standing: float  # of these, generation stands still
    held: int  # bytes that the receiving relay held at the most


class Here:
    """The engine, in the place of a rollout worker."""

    def __init__(self, engine: Engine) -> None:
        """Tell how long it stands still."""
        self.engine, self.standing = engine, 0.0

    async def call(self, method: str, *args: Any) -> Any:
        """Take a whole version, or a layer of one."""
        start = time.perf_counter()
        if method == "receive":
            (update,) = args
            here = await self.engine._arrivals.verified(update)  # generation goes on
            start = time.perf_counter()
            await self.engine._load(here, ())
        else:
            layer, first, last = args
            await self.engine.load_layer(layer, first=first, last=last)
        self.standing += time.perf_counter() - start

    def kill(self) -> None:
        """It is nobody's."""


class Parties:
    """Sender, relays and engine."""

    def __init__(self, engine: Engine) -> None:
        """Start two relays, on the first use of each."""
        self.part, self._relays, self._pids = Here(engine), list[Actor](), list[int]()

        async def start(host: str) -> Actor:
            relay = Actor(f"relay on {host}", WeightRelay, "127.0.0.1", False, max_concurrency=9)
            self._relays.append(relay)
            self._pids.append(await relay.call("__ray_call__", pid_of))
            return relay

        async def hosts_of(part: object) -> list[str]:
            return ["engine's"]

        restarts = Restarts(print, most=0)
        self.transport = WeightTransport(
            Transport.broadcast, ["learner's"], start=start, hosts_of=hosts_of, restarts=restarts
        )

    async def whole(self, sender: WeightSender, weights: dict[str, Tensor], version: int) -> float:
        """Seconds of one version, all at once."""
        update = sender.publish(weights.items(), version)
        start = time.perf_counter()
        delivery = await self.transport.begin([update], [self.part])
        await self.part.call("receive", await delivery.at(self.part))
        return time.perf_counter() - start

    async def layers(self, sender: WeightSender, weights: dict[str, Tensor], version: int) -> float:
        """Seconds of one version, layer by layer: generation waits for the network, too."""
        update = sender.publish(weights.items(), version)
        start, waiting = time.perf_counter(), 0.0
        async with contextlib.aclosing(by_layer(self.transport, [update], [self.part])) as coming:
            asked = time.perf_counter()
            async for layer in coming:
                waiting += 0.0 if layer.first else time.perf_counter() - asked
                placed = layer.placed[self.part]
                if isinstance(placed, BaseException):
                    raise placed
                await self.part.call("load_layer", placed, layer.first, layer.last)
                asked = time.perf_counter()
        self.part.standing += waiting
        return time.perf_counter() - start

    @contextlib.contextmanager
    def most_held(self) -> Iterator[list[int]]:
        """The most bytes that the relays hold in shared memory, in the end."""
        found = [0]

        async def look() -> None:
            while True:
                found[0] = max(found[0], sum(held_by(pid) for pid in self._pids))
                await asyncio.sleep(LOOK_S)

        looking = asyncio.create_task(look())
        try:
            yield found
        finally:
            looking.cancel()

    async def close(self) -> None:
        """Put everything away."""
        await self.transport.close()
        for relay in self._relays:
            await relay.call("close")


def pid_of(relay: object) -> int:
    """In a relay's process."""
    return os.getpid()


def held_by(pid: int) -> int:
    """Bytes of a process's weights in shared memory."""
    total = 0
    for file in SHARED_MEMORY.glob(f"temper-{pid}-*/*"):
        with contextlib.suppress(FileNotFoundError):  # it goes while it is looked at
            total += 512 * file.stat().st_blocks
    return total


async def measure(rounds: int) -> list[Way]:
    """Both ways, in turns."""
    config = gigabyte_config()
    weights = random_weights(config, torch.bfloat16)
    size = sum(each.nbytes for each in weights.values())
    with tempfile.TemporaryDirectory() as folder:
        checkpoint = Path(folder, "model")
        write_checkpoint(config, weights, torch.bfloat16, checkpoint)
        settings = EngineConfig(dtype=Dtype.bfloat16, max_model_len=256, kv_cache_bytes=1 << 28)
        engine = await Engine.start(settings, checkpoint)
    core: Any = engine._llm
    await core.collective_rpc(forget_plan)
    senders = [WeightSender(bucket_bytes=BUCKET, by_layer=layered) for layered in (False, True)]
    # Relays of their own: each way finds only its own files, and has them mapped.
    parties = [Parties(engine) for _ in senders]
    ways = [partial(parties[0].whole, senders[0]), partial(parties[1].layers, senders[1])]
    taken: list[list[tuple[float, float, int]]] = [[], []]
    try:
        for number in range(1, rounds + WARM + 1):
            for which, way in enumerate(ways):
                part, version = parties[which].part, 2 * number + which
                part.standing = 0.0
                with parties[which].most_held() as held:
                    seconds = await way(weights, version)
                senders[which].release(version)
                taken[which].append((seconds, part.standing, held[0]))
    finally:
        for sender in senders:
            sender.close()
        await engine.shutdown()
        for each in parties:
            await each.close()
    median = statistics.median
    return [
        Way(
            name=name,
            num_bytes=size,
            seconds=median(each[0] for each in found[WARM:]),
            standing=median(each[1] for each in found[WARM:]),
            held=max(each[2] for each in found),
        )
        for name, found in zip(("whole", "layer by layer"), taken, strict=True)
    ]


def main() -> None:
    """Measure, keep, print."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--rounds", type=int, default=5)
    arguments = parser.parse_args()
    os.environ["VLLM_ALLOW_INSECURE_SERIALIZATION"] = "1"  # to reach into the core process
    connect(ClusterConfig())
    try:
        found = asyncio.run(measure(arguments.rounds))
    finally:
        ray.shutdown()
    for way in found:
        print(
            f"{way.name:>15}: {way.num_bytes / 1e9:.2f} GB in {way.seconds:.2f} s, generation "
            f"stands still for {way.standing:.2f} s, held {way.held / way.num_bytes:.2f} versions"
        )
    content = {"hardware": hardware("cpu"), "ways": [asdict(way) for way in found]}
    DATA.write_text(json.dumps(content, indent=1) + "\n")


if __name__ == "__main__":
    main()
