r"""How many answers a second does the math reward score, beside math-verify called directly?

Rows: golds of GSM8K and DeepMath (from `TEMPER_DATA`, else generated ones), each answered rightly,
in another spelling, and wrongly, with the gold of another row; and rewrites that need algebra. Both
judge the same rows by turns in one process, medians; math-verify once parsing every gold, as its
users do, and once with the golds parsed beforehand. Verdicts are compared, and rows that differ are
listed. Then several threads and processes. Keeps the result in `benchmarks/data/math_answer.json`.

    OMP_NUM_THREADS=1 python -m benchmarks.math_answer
"""

import argparse
import gzip
import json
import logging
import os
import random
import statistics
import time
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor, ThreadPoolExecutor
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import NamedTuple

from math_verify import parse, verify

from benchmarks.machine import hardware
from rewards.errors import RewardError
from rewards.math_answer import MathVerifier

DATA = Path(__file__).resolve().parent / "data" / "math_answer.json"
SETS = Path(os.environ.get("TEMPER_DATA", Path(__file__).resolve().parents[2] / "shared" / "data"))
BAR = 5.0
LISTED = 40  # rows that differ
SPELLINGS: list[Callable[[str], str]] = [
    lambda gold: gold,
    lambda gold: gold.replace(r"\dfrac", r"\frac").replace(
        ",", r"{,}" if gold[0].isdigit() else ","
    ),
    lambda gold: f"${gold}$",
    lambda gold: f" {gold} ",
]
ALGEBRA = [
    (r"2\sqrt{3}", r"\sqrt{12}"), (r"\frac{\sqrt{2}}{2}", r"\frac{1}{\sqrt{2}}"),
    (r"\ln 4", r"2\ln 2"), (r"2\sin x\cos x", r"\sin 2x"),
    (r"e^{i\pi/3}", r"\frac{1+i\sqrt{3}}{2}"),
    (r"\sqrt{3}+\sqrt{2}", r"\frac{1}{\sqrt{3}-\sqrt{2}}"), (r"2\sqrt{3}", r"3\sqrt{2}"),
    (r"\ln 4", r"\ln 5"), (r"2\sin x\cos x", r"\cos 2x"), (r"\sqrt{8}", r"2\sqrt{3}"),
]  # fmt: skip


class Row(NamedTuple):
    """One answered task."""

    response: str
    gold: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Result:
    """Rows, medians in seconds for all of them, and the verdicts."""

    rows: int
    seconds: dict[str, float]
    equal_verdicts: int
    differing: list[dict[str, str | float]]

    def ratio(self, name: str) -> float:
        """How many times as fast as this way of calling math-verify."""
        return self.seconds[name] / self.seconds["temper"]


def golds() -> list[str]:
    """Gold answers of both sets, or some like them."""
    if not SETS.is_dir():
        source = random.Random(0)
        return [str(source.randrange(1, 5000)) for _ in range(400)] + [
            r"\frac{1}{2}",
            r"2\pi",
            "0.5",
        ]
    with gzip.open(SETS / "gsm8k" / "test.jsonl.gz", "rt") as lines:
        words = [json.loads(line)["answer"].rpartition("####")[2].strip() for line in lines]
    with gzip.open(SETS / "deepmath" / "math_deepmath_deal.jsonl.gz", "rt") as lines:
        deep = [json.loads(line)["ground_truth"] for line in lines]
    source = random.Random(0)
    return source.sample(words, 300) + source.sample(deep, 300)


def plain_rows(found: list[str]) -> list[Row]:
    """Each gold answered rightly, and with the gold of another row."""
    source = random.Random(1)
    rows = []
    for gold in found:
        for said in (source.choice(SPELLINGS)(gold), source.choice(found)):
            rows.append(Row(rf"So the answer is $\boxed{{{said}}}$.", gold))
    return rows


def algebra_rows() -> list[Row]:
    """Rewrites that take algebra, some of them wrong."""
    return [Row(rf"So it is $\boxed{{{said}}}$.", gold) for gold, said in ALGEBRA * 10]


def directly(row: Row) -> float:
    """Math-verify's verdict, with its gold parsed anew."""
    said = parse(row.response, parsing_timeout=None)
    return float(verify(parse(f"${row.gold}$", parsing_timeout=None), said, timeout_seconds=None))


def race(rows: list[Row], verifier: MathVerifier, rounds: int) -> Result:
    """Everyone judges all rows, by turns."""
    known = {row.gold: parse(f"${row.gold}$", parsing_timeout=None) for row in rows}

    def parsed(row: Row) -> float:
        said = parse(row.response, parsing_timeout=None)
        return float(verify(known[row.gold], said, timeout_seconds=None))

    judges: dict[str, Callable[[Row], float]] = {
        "temper": lambda row: _score(verifier, row),
        "math-verify": directly,
        "math-verify, golds parsed before": parsed,
    }
    seconds: dict[str, list[float]] = {name: [] for name in judges}
    verdicts: dict[str, list[float]] = {}
    for count in range(rounds + 1):
        for name, judge in judges.items():
            start = time.perf_counter()
            verdicts[name] = [judge(row) for row in rows]
            if count:  # the first round warms up
                seconds[name].append(time.perf_counter() - start)
    pairs = list(zip(rows, verdicts["temper"], verdicts["math-verify"], strict=True))
    differing = [
        {"gold": row.gold, "response": row.response, "temper": ours, "math-verify": theirs}
        for row, ours, theirs in pairs
        if ours != theirs
    ]
    return Result(
        rows=len(rows),
        seconds={name: statistics.median(times) for name, times in seconds.items()},
        equal_verdicts=len(rows) - len(differing),
        differing=differing[:LISTED],
    )


def _score(verifier: MathVerifier, row: Row) -> float:
    """-1 for a gold that neither reads, unless the text is equal."""
    try:
        return verifier.verify(row.response, row.gold).total
    except RewardError:
        return -1.0


def _process(rows: list[Row]) -> int:
    verifier = MathVerifier()
    for row in rows:
        _score(verifier, row)
    verifier.close()
    return len(rows)


def at_once(rows: list[Row], verifier: MathVerifier, workers: int) -> dict[str, float]:
    """Rows a second with several threads on one verifier, and with several processes."""
    start = time.perf_counter()
    with ThreadPoolExecutor(workers) as threads:
        list(threads.map(lambda row: _score(verifier, row), rows))
    threaded = len(rows) / (time.perf_counter() - start)
    start = time.perf_counter()
    with ProcessPoolExecutor(workers) as processes:
        done = sum(processes.map(_process, [rows] * workers))
    return {
        f"{workers} threads": round(threaded, 1),
        f"{workers} processes": round(done / (time.perf_counter() - start), 1),
    }


def print_result(name: str, result: Result) -> None:
    """Rates, ratios, and the rows judged differently."""
    print(f"{name}: {result.rows} rows, {result.equal_verdicts} equal verdicts")
    for judge, taken in result.seconds.items():
        print(f"  {judge}: {result.rows / taken:,.0f} rows/s, {1e6 * taken / result.rows:,.0f} us")
    for judge in result.seconds:
        if judge != "temper":
            print(f"  {result.ratio(judge):.1f}x {judge}")
    for row in result.differing:
        print(f"  differs: {row}")


def main() -> None:
    """Measure, keep, print."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--rounds", type=int, default=5)
    rounds = parser.parse_args().rounds
    logging.disable(logging.CRITICAL)
    verifier = MathVerifier()
    verifier.readable("???")  # both kinds of workers serve
    plain, algebra = plain_rows(golds()), algebra_rows()
    results = {"plain": race(plain, verifier, rounds), "algebra": race(algebra, verifier, rounds)}
    rates = {
        name: at_once(rows, verifier, os.cpu_count() or 1)
        for name, rows in (("plain", plain * 5), ("algebra", algebra * 5))
    }
    verifier.close()
    kept = {
        "hardware": hardware("cpu"),
        **{name: asdict(result) for name, result in results.items()},
        "rows_per_second_at_once": rates,
    }
    DATA.write_text(json.dumps(kept, indent=1) + "\n")
    for name, result in results.items():
        print_result(name, result)
    print(f"at once, rows a second: {rates}")
    met = results["plain"].ratio("math-verify, golds parsed before") >= BAR
    print(f"at least {BAR:g}x on plain answers: {'yes' if met else 'NO'}")


if __name__ == "__main__":
    main()
