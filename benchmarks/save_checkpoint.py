"""How long a checkpoint keeps a learner from its next step: copying against writing.

One shard with a K2 network of about 300 MB in float32, and as much again for each state of its
optimiser. Per round, in turns: the files written while the learner waits, and a copy after which it
goes on, the files being written by a thread. Medians of wall time and of processor time of the
learner's thread, which other jobs on the machine do not lengthen as much.

    OMP_NUM_THREADS=1 python -m benchmarks.save_checkpoint
"""

import argparse
import json
import shutil
import socket
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import torch

from benchmarks.machine import hardware
from model.config import K2Config, MuonClipConfig, ParallelConfig, Rank, RopeScaling, ScheduleConfig
from model.k2 import K2
from model.load import save_k2
from model.shards import write_shards
from model.tiny import create_tiny
from rl.batch import Batch, pack
from rl.learner import SHARD_BYTES, Learner
from rl.learner_spec import LearnerSpec
from rl.objective_config import ObjectiveConfig
from rl.sample import supervised_sample

DATA = Path(__file__).resolve().parent / "data" / "save_checkpoint.json"
CONFIG = K2Config(
    vocab_size=512,
    hidden_size=768,
    intermediate_size=2048,
    moe_intermediate_size=512,
    num_hidden_layers=3,
    num_attention_heads=4,
    num_key_value_heads=4,
    n_routed_experts=28,
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
Times = dict[str, list[tuple[float, float]]]


def learner_on(folder: Path) -> Learner:
    """One shard on random weights."""
    create_tiny(folder / "tiny", ["1 + 1 = 2"] * 50, seed=0)
    torch.manual_seed(0)
    save_k2(K2(CONFIG), folder / "start", torch.float32, tokenizer_from=folder / "tiny")
    spec = LearnerSpec(
        checkpoint=folder / "start",
        optimizer=MuonClipConfig(learning_rate=1e-4),
        schedule=ScheduleConfig(),
        parallel=ParallelConfig(),
        objective=ObjectiveConfig(),
        iterations=2,
        micro_batch_tokens=256,
        bucket_bytes=1 << 26,
        compute_dtype=torch.bfloat16,
        engine_dtype=torch.bfloat16,
        int4_experts=False,
        router_bias_rate=0.0,
        seed=0,
    )
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    return Learner(spec, [[1, 2, 3]], Rank(rank=0, size=1, address="127.0.0.1", port=port))


def write_and_wait(learner: Learner, folder: Path) -> None:
    """All files, in the learner's own thread."""
    (folder / "model").mkdir()
    weights = learner._released(torch.float32, masters=True)
    write_shards(weights, folder / "model", SHARD_BYTES)
    for file in learner._shard.state_files(folder, {"iterations": 0, "narrow": 0}):
        file.write()


def timed(times: Times, name: str, work: Callable[[], object]) -> None:
    """Wall and processor seconds of this thread."""
    wall, cpu = time.perf_counter(), time.thread_time()
    work()
    times.setdefault(name, []).append((time.perf_counter() - wall, time.thread_time() - cpu))


def rounds_of(learner: Learner, batch: Batch, folder: Path, rounds: int) -> tuple[Times, int]:
    """Times by what was done, and the bytes of one checkpoint."""
    times: Times = {}
    size = 0
    for number in range(rounds):
        each = folder / f"waiting-{number}"
        each.mkdir()
        timed(times, "write and wait", lambda at=each: write_and_wait(learner, at))  # type: ignore[misc]
        shutil.rmtree(each)
        each.mkdir()
        timed(times, "copy", lambda at=each: learner.save(at))  # type: ignore[misc]
        timed(times, "step beside writing", lambda: learner.supervise([batch], [1e-5]))
        while not (writing := learner.written()).done:
            time.sleep(0.01)
        if writing.error is not None:
            raise writing.error
        size = sum(file.stat().st_size for file in each.rglob("*") if file.is_file())
        shutil.rmtree(each)
        timed(times, "step", lambda: learner.supervise([batch], [1e-5]))
    return times, size


def main() -> None:
    """Measure, keep, print."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--rounds", type=int, default=7)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    batch = pack([supervised_sample(list(range(64)), list(range(64)))])
    with tempfile.TemporaryDirectory() as folder:
        learner = learner_on(Path(folder))
        learner.supervise([batch], [1e-5])  # momenta are there from now on
        times, size = rounds_of(learner, batch, Path(folder), arguments.rounds + 1)
        learner.close()
    print(f"{size / 1e6:.0f} MB")
    seconds, cpu_seconds = (
        {
            name: statistics.median(each[clock] for each in found[1:])
            for name, found in times.items()
        }
        for clock in (0, 1)
    )
    for name in times:
        print(f"{name:>20}: {seconds[name]:.3f} s; CPU {cpu_seconds[name]:.3f} s")
    kept = {
        "hardware": hardware("cpu"),
        "num_bytes": size,
        "seconds": seconds,
        "cpu_seconds": cpu_seconds,
    }
    DATA.write_text(json.dumps(kept, indent=1) + "\n")


if __name__ == "__main__":
    main()
