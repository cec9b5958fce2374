"""What does the sandbox cost, beside running a program and its asserts in a bare subprocess?

Each program runs by turns bare (`python -I -c program+asserts`), bare without `site`
(`python -I -S -c ...`), and by the verifier (plain tests; tests that need two sandboxes); medians
of the wall time. Then all programs at once: as many threads as programs, on the verifier's bounded
pool and on as many bare processes at a time. Verdicts must agree before anything is timed.
Keeps the result with the hardware in `benchmarks/data/code_tests.json`.

    python -m benchmarks.code_tests --rounds 40 --programs 200
"""

import argparse
import json
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from pathlib import Path

import psutil

from benchmarks.machine import hardware
from rewards.code_tests import CodeVerifier
from rewards.sandbox import check_sandbox
from rewards.sandbox_config import CodeConfig

ROOT = Path(__file__).resolve().parent
DATA = ROOT / "data" / "code_tests.json"
SAMPLES = ROOT.parent / "tests" / "data" / "code_samples.jsonl"
CASE = "for _ in [0]:\n    "  # around an assert: no longer plain


@dataclass(frozen=True, kw_only=True)
class Result:
    """One run: medians in milliseconds, programs a second, and busy cores in percent."""

    sandbox: str
    rounds: int
    milliseconds: dict[str, float]
    overhead_ms: float
    overhead_without_site_ms: float
    programs: int
    threads_at_once: int
    per_second: dict[str, float]
    cpu_percent: dict[str, float]


def load() -> list[tuple[str, list[str]]]:
    """(program, asserts) of the samples with plain tests."""
    rows = map(json.loads, SAMPLES.read_text().splitlines())
    names = ("square", "mean", "most_common", "point")
    return [
        (row["canonical_solution"], row["reference"]["tests"]) for row in rows if row["id"] in names
    ]


def bare(program: str, tests: list[str], *options: str) -> bool:
    """Whether a subprocess without protection ends well."""
    text = "\n".join([program, *tests])
    command = [sys.executable, "-I", *options, "-c", text]
    return subprocess.run(command, capture_output=True, timeout=60).returncode == 0


def take_turns(
    samples: list[tuple[str, list[str]]], verifier: CodeVerifier, rounds: int
) -> dict[str, float]:
    """Median milliseconds of each way, over all samples and rounds."""

    def verify(program: str, tests: list[str]) -> bool:
        return verifier.verify(program, json.dumps({"tests": tests})).total == 1.0

    ways: dict[str, Callable[[str, list[str]], bool]] = {
        "bare": bare,
        "bare without site": lambda program, tests: bare(program, tests, "-S"),
        "sandbox": verify,
        "two sandboxes": lambda program, tests: verify(program, [relayed(test) for test in tests]),
    }
    taken: dict[str, list[float]] = {name: [] for name in ways}
    for turn in range(-1, rounds):
        for program, tests in samples:
            for name, way in ways.items():
                unlike = f"{program}\n# {name} {turn}\n"  # so that no verdict is remembered
                start = time.perf_counter()
                passed = way(unlike, tests)
                if turn >= 0:  # the first turn warms the caches
                    taken[name].append((time.perf_counter() - start) * 1e3)
                assert passed, f"{name} disagrees on {program}"
    return {name: round(statistics.median(times), 2) for name, times in taken.items()}


def relayed(test: str) -> str:
    """The same test, but not plain: it needs the second sandbox."""
    *before, last = test.split("\n")
    return "\n".join([*before, f"{CASE}{last}"])


def at_once(way: Callable[[int], bool], programs: int, threads: int) -> tuple[float, float]:
    """Programs a second, and how busy the cores were in percent."""
    psutil.cpu_percent()
    start = time.perf_counter()
    with ThreadPoolExecutor(threads) as pool:
        assert all(pool.map(way, range(programs)))
    seconds = time.perf_counter() - start
    return round(programs / seconds, 1), psutil.cpu_percent()


def measure(rounds: int, programs: int) -> Result:
    """Run everything."""
    samples = load()
    config = CodeConfig()
    verifier = CodeVerifier(config)
    milliseconds = take_turns(samples, verifier, rounds)
    threads = 2 * len(psutil.Process().cpu_affinity())

    def sandboxed(number: int) -> bool:
        program, tests = samples[number % len(samples)]
        unlike = f"{program}\n# at once {number}\n"
        return verifier.verify(unlike, json.dumps({"tests": tests})).total == 1.0

    def unprotected(number: int) -> bool:
        return bare(*samples[number % len(samples)])

    measured = {
        "bare": at_once(unprotected, programs, threads),
        "sandbox": at_once(sandboxed, programs, programs),
    }
    return Result(
        sandbox=check_sandbox(config),
        rounds=rounds,
        milliseconds=milliseconds,
        overhead_ms=round(milliseconds["sandbox"] - milliseconds["bare"], 2),
        overhead_without_site_ms=round(
            milliseconds["sandbox"] - milliseconds["bare without site"], 2
        ),
        programs=programs,
        threads_at_once=threads,
        per_second={name: speed for name, (speed, _) in measured.items()},
        cpu_percent={name: busy for name, (_, busy) in measured.items()},
    )


def main() -> None:
    """Measure, print and keep."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--rounds", type=int, default=40)
    parser.add_argument("--programs", type=int, default=200)
    options = parser.parse_args()
    result = measure(options.rounds, options.programs)
    kept = {"hardware": hardware("cpu"), "result": asdict(result)}
    DATA.write_text(json.dumps(kept, indent=2) + "\n")
    print(json.dumps(kept, indent=2))


if __name__ == "__main__":
    main()
