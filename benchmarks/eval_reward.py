"""How long does `temper eval-reward` take with a recorded judge, from start to exit?

Pairs of the size of JudgeBench's (about 4.6 kB a row, some of them ties) with scores of a judge
that is right three times in four: a whole process, from its start over reading, every statistic
and the page to its end. The figures it prints are held against counts of our own. Keeps seconds and
the most memory, with the hardware, in `benchmarks/data/eval_reward.json`.

    OMP_NUM_THREADS=1 python -m benchmarks.eval_reward
"""

import json
import os
import random
import subprocess
import sys
import tempfile
import time
from dataclasses import asdict, dataclass
from pathlib import Path

from benchmarks.machine import hardware

DATA = Path(__file__).resolve().parent / "data" / "eval_reward.json"
SIZES = (620, 100_000)
LIMITS_S = {620: 10.0, 100_000: 60.0}
SOURCES = ("mmlu-pro-law", "livebench-reasoning", "livebench-math", "livecodebench")
SENTENCE = "the answer is that each of these would follow from what was said before"


@dataclass(frozen=True, kw_only=True)
class Run:
    """One run of the command."""

    pairs: int
    megabytes: float  # of data
    seconds: float  # wall
    cpu_seconds: float
    peak_mebibytes: float
    accuracy: float


@dataclass(frozen=True, kw_only=True)
class Written:
    """Counts of the files that were written."""

    right: int
    ties: int


def text(source: random.Random, characters: int) -> str:
    """Words, about so many characters."""
    return " ".join(source.choices(SENTENCE.split(), k=characters // 5))


def write(data: Path, scores: Path, pairs: int) -> Written:
    """Pairs and the scores of a judge."""
    source = random.Random(0)
    parts = [text(source, 600) for _ in range(50)]
    right = ties = 0
    with data.open("w") as rows, scores.open("w") as said:
        for number in range(pairs):
            label = source.choice(("A>B", "B>A"))
            row = {
                "pair_id": f"pair-{number}",
                "source": source.choice(SOURCES),
                "question": f"{number} {source.choice(parts)}",
                "response_A": " ".join(source.choices(parts, k=3)),
                "response_B": " ".join(source.choices(parts, k=3)) + ".",
                "label": label,
            }
            rows.write(json.dumps(row) + "\n")
            margin = round(source.gauss(0.67, 1.0), 2) * (1 if label == "A>B" else -1)
            said.write(
                json.dumps({"id": f"pair-{number}", "scores": {"A": margin, "B": 0.0}}) + "\n"
            )
            right += (margin > 0) == (label == "A>B") and margin != 0
            ties += margin == 0
    return Written(right=right, ties=ties)


def measure(pairs: int) -> Run:
    """Write, run, check, measure."""
    with tempfile.TemporaryDirectory() as folder:
        data, scores = Path(folder, "pairs.jsonl"), Path(folder, "scores.jsonl")
        written = write(data, scores, pairs)
        out, log = Path(folder, "out"), Path(folder, "log")
        command = [sys.executable, "-m", "rl.cli", "eval-reward", str(data)]
        command += ["--scores", str(scores), "--out", str(out), "--json"]
        start = time.perf_counter()
        with log.open("wb") as file:
            process = subprocess.Popen(command, stdout=file)
            _, status, usage = os.wait4(process.pid, 0)
        seconds = time.perf_counter() - start
        assert status == 0, "the command failed"
        found = json.loads(log.read_text())
        overall = found["overall"]
        assert (overall["right"], overall["ties"]) == (written.right, written.ties)
        assert (out / "report.html").stat().st_size > 0
        return Run(
            pairs=pairs,
            megabytes=data.stat().st_size / 1e6,
            seconds=seconds,
            cpu_seconds=usage.ru_utime + usage.ru_stime,
            peak_mebibytes=usage.ru_maxrss / 1024,
            accuracy=overall["accuracy"]["value"],
        )


def main() -> None:
    """Measure, keep, print."""
    runs = [measure(pairs) for pairs in SIZES]
    kept = {"hardware": hardware("cpu"), "runs": [asdict(run) for run in runs]}
    DATA.write_text(json.dumps(kept, indent=1) + "\n")
    print(f"{'pairs':>8}{'MB':>8}{'seconds':>10}{'limit':>8}{'CPU s':>8}{'MiB':>8}{'accuracy':>10}")
    for run in runs:
        print(
            f"{run.pairs:8}{run.megabytes:8.0f}{run.seconds:10.2f}{LIMITS_S[run.pairs]:8.0f}"
            f"{run.cpu_seconds:8.2f}{run.peak_mebibytes:8.0f}{run.accuracy:10.4f}"
        )


if __name__ == "__main__":
    main()
