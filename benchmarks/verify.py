"""Ten thousand recorded responses of three kinds, 2 % of them hostile, through `temper verify`.

Rows are made by code: plain right and wrong ones, and, every fiftieth, one that tries to hang, blow
up or fool its verifier. Counts rows in and out, wrong verdicts, rows per second, the processor time
that the command and all its processes took per second, and the processes left behind: orphans are
adopted by this script, so none is overlooked. Keeps the result in `benchmarks/data/verify.json`.

    OMP_NUM_THREADS=1 python -m benchmarks.verify
    python -m benchmarks.verify --rows 1000
"""

import argparse
import contextlib
import ctypes
import json
import os
import random
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path

import psutil

from benchmarks.machine import hardware
from rewards.hacks.answers import golds
from rewards.hacks.instructions import instruction_attempts
from rewards.hacks.programs import code_attempts
from rewards.hacks.responses import PYTHON, Attempt, attempts

DATA = Path(__file__).resolve().parent / "data" / "verify.json"
SHARES = {"math": 0.5, "instructions": 0.3, "code": 0.2}
HOSTILE_EVERY = 50
HOSTILE = {
    "math": {PYTHON, "hangs", "deep or huge"},
    "instructions": {"claims compliance", "prompt injection"},
    "code": {"does not end", "exhausts", "kills the judge", "leaves early", "forges a result"},
}
PR_SET_CHILD_SUBREAPER = 36

Row = dict[str, object]


@dataclass(frozen=True, slots=True, kw_only=True)
class Result:
    """One kind."""

    kind: str
    rows_in: int
    rows_out: int
    hostile: int
    wrong_verdicts: int
    late: int
    crashed: int
    rows_per_second: float  # of scoring, start of the workers included
    cores_used: float
    processes_left: int


def rows_of(kind: str, count: int, seed: int) -> Iterator[Row]:
    """`count` rows with "expected", the right score, and "hostile"."""
    rng = random.Random(seed)
    hostile = list(_hostile(kind))
    rng.shuffle(hostile)
    for number in range(count):
        if number % HOSTILE_EVERY == HOSTILE_EVERY - 1:
            yield {**hostile[number // HOSTILE_EVERY % len(hostile)], "expected": 0.0, "hostile": 1}
        else:
            right = rng.random() < 0.5
            row = {"math": _math, "code": _code, "instructions": _instructions}[kind](rng, right)
            yield {**row, "expected": float(right), "hostile": 0}


def _math(rng: random.Random, right: bool) -> Row:
    gold = rng.choice(golds(rng.randint(0, 1000), per_type=1))
    said = rng.choice([gold.gold, *gold.right]) if right else gold.wrong["neighbour"][0]
    thought = "We add what is known and simplify. " * rng.randint(1, 30)
    return {"response": f"{thought}\nSo the answer is \\boxed{{{said}}}.", "gold": gold.gold}


def _code(rng: random.Random, right: bool) -> Row:
    times, shift = rng.randint(2, 99), rng.randint(1, 99)
    said = shift if right else shift + 1
    if rng.random() < 0.5:
        program = f"def line(x):\n    return {times} * x + {said}\n"
        tests: Row = {"tests": [f"assert line({x}) == {times * x + shift}" for x in (0, 1, 7)]}
    else:
        program = f"print({times} * int(input()) + {said})\n"
        tests = {"cases": [{"stdin": f"{x}\n", "stdout": f"{times * x + shift}\n"} for x in (0, 7)]}
    return {"response": f"Here it is.\n```python\n{program}```\n", **tests}


def _instructions(rng: random.Random, right: bool) -> Row:
    words = ["tea", "rain", "stone", "lamp", "river", "grass", "quiet", "north"]
    text = " ".join(rng.choice(words) for _ in range(rng.randint(20, 300)))
    return {
        "response": text if right else f"{text}, and more",
        "prompt": "Write about tea. Use no commas and at least 10 words.",
        "instruction_id_list": ["punctuation:no_comma", "length_constraints:number_words"],
        "kwargs": [{}, {"num_words": 10, "relation": "at least"}],
    }


def _hostile(kind: str) -> Iterator[Row]:
    if kind == "math":
        made: list[Attempt] = [
            each
            for gold in golds(0, per_type=1)
            for each in attempts(gold, lambda text: rf"\boxed{{{text}}}", "/nowhere", hostile=True)
        ]
    else:
        made = list(code_attempts("/nowhere") if kind == "code" else instruction_attempts())
    for each in made:
        if each.family in HOSTILE[kind]:
            known = {"gold": each.reference} if kind == "math" else json.loads(each.reference)
            yield {"response": each.response, **known, "prompt": each.prompt}
    if kind == "instructions":
        asked = {"prompt": "-", "instruction_id_list": ["length_constraints:number_sentences"]}
        bounds = [{"num_sentences": 10_000_000, "relation": "at least"}]
        for text in ("a." * 500_000, "\ud800\x00" * 50_000, "((" * 200_000, ", " * 300_000):
            yield {"response": text, **asked, "kwargs": bounds}


def measure(kind: str, count: int, seed: int, folder: Path) -> Result:
    """One run of the command."""
    rows = list(rows_of(kind, count, seed))
    source, out = folder / f"{kind}.jsonl", folder / f"{kind}-scored.jsonl"
    source.write_text("".join(json.dumps(row) + "\n" for row in rows))
    before, started = os.times(), time.monotonic()
    done = subprocess.run(
        [sys.executable, "-m", "rl.cli", "verify", kind, str(source), str(out), "--json"],
        capture_output=True,
        text=True,
        check=True,
    )
    seconds = time.monotonic() - started
    with contextlib.suppress(ChildProcessError):
        while os.waitpid(-1, os.WNOHANG)[0]:  # orphans that ended, as init would
            pass
    after, left = os.times(), psutil.Process().children(recursive=True)
    counts = json.loads(done.stdout)
    scored = [json.loads(line) for line in out.open()]
    kept = [
        {key: value for key, value in row.items() if key not in ("score", "why")} for row in scored
    ]
    assert kept == rows, "a row was lost, moved or changed"
    used = after.children_user + after.children_system
    used -= before.children_user + before.children_system
    return Result(
        kind=kind,
        rows_in=len(rows),
        rows_out=len(scored),
        hostile=sum(row["hostile"] for row in scored),
        wrong_verdicts=sum(row["score"] != row["expected"] for row in scored),
        late=counts["late"],
        crashed=counts["crashed"],
        rows_per_second=round(counts["rows_per_second"], 1),
        cores_used=round(used / seconds, 2),
        processes_left=len(left),
    )


def main() -> None:
    """Measure every kind, print and keep the rows."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--rows", type=int, default=10_000)
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    ctypes.CDLL(None).prctl(PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0)
    results = []
    with tempfile.TemporaryDirectory() as folder:
        for kind, share in SHARES.items():
            count = round(arguments.rows * share)
            results.append(measure(kind, count, arguments.seed, Path(folder)))
            print(json.dumps(asdict(results[-1])), flush=True)
    kept = {"hardware": hardware("cpu"), "results": [asdict(result) for result in results]}
    DATA.write_text(json.dumps(kept, indent=2) + "\n")


if __name__ == "__main__":
    main()
