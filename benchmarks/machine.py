"""What a benchmark ran on, and how it takes time."""

import os
import platform
import statistics
import time
from collections.abc import Callable, Mapping
from pathlib import Path

import torch


def hardware(device: str) -> dict[str, str | int | float | None]:
    """The machine, torch's threads, and how busy the processors were."""
    cpu = next(
        line.partition(":")[2].strip()
        for line in Path("/proc/cpuinfo").read_text().splitlines()
        if line.startswith("model name")
    )
    return {
        "cpu": cpu,
        "cores": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "load": round(os.getloadavg()[0], 2),
        "gpu": torch.cuda.get_device_name() if device == "cuda" else None,
        "torch": torch.__version__,
        "python": platform.python_version(),
    }


def now(device: str) -> float:
    """Seconds. On one CPU thread the processor's time, which other jobs do not lengthen."""
    if device == "cuda":
        torch.cuda.synchronize()
    elif torch.get_num_threads() == 1:
        return time.thread_time()
    return time.perf_counter()


def take_turns(
    contenders: Mapping[str, Callable[[], object]],
    rounds: int,
    device: str,
    before: Callable[[], object] = lambda: None,
) -> dict[str, float]:
    """Median seconds of each, one after another in every round; `before` is not counted."""
    seconds: dict[str, list[float]] = {name: [] for name in contenders}
    for count in range(rounds + 1):
        for name, run in contenders.items():
            before()
            start = now(device)
            run()
            took = now(device) - start
            if count:  # the first round warms up
                seconds[name].append(took)
    return {name: statistics.median(times) for name, times in seconds.items()}
