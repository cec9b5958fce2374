"""Every canonical solution scores 1 and every mutant of one 0, unless it passes a bare run too."""

import ast
import gzip
import json
import os
import random
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

import pytest

from rewards.code_tests import CodeVerifier, parse_reference
from rewards.sandbox_config import CodeConfig

ROOT = Path(__file__).parents[2]
DATA = Path(os.environ.get("TEMPER_DATA", ROOT.parent / "shared" / "data")) / "code"
SAMPLES = ROOT / "tests" / "data" / "code_samples.jsonl"
MUTANTS_EACH = 5
VERIFIER = CodeVerifier(CodeConfig(timeout_s=2.0, program_timeout_s=15.0))
OPPOSITES: dict[type[ast.AST], type[ast.AST]] = {
    ast.Add: ast.Sub, ast.Sub: ast.Add, ast.Mult: ast.Add, ast.Div: ast.Mult, ast.Mod: ast.Mult,
    ast.FloorDiv: ast.Mult, ast.Eq: ast.NotEq, ast.NotEq: ast.Eq, ast.Lt: ast.GtE, ast.GtE: ast.Lt,
    ast.Gt: ast.LtE, ast.LtE: ast.Gt, ast.In: ast.NotIn, ast.NotIn: ast.In, ast.Or: ast.And,
    ast.And: ast.Or,
}  # fmt: skip


@dataclass(frozen=True)
class Sample:
    """One task with a right program."""

    name: str
    program: str
    reference: str


@lru_cache(maxsize=1)
def _samples() -> list[Sample]:
    samples = [
        Sample(row["id"], row["canonical_solution"], json.dumps(row["reference"]))
        for row in map(json.loads, SAMPLES.read_text().splitlines())
    ]
    for row in _rows("mbpp"):
        tests = [*row["test_list"], *row["labels"]["challenge_test_list"]]
        reference = {"tests": tests, "setup": row["labels"]["test_setup_code"]}
        samples.append(
            Sample(f"mbpp {row['id']}", row["canonical_solution"], json.dumps(reference))
        )
    return samples


def _rows(name: str) -> list[dict]:
    path = DATA / f"code_eval_{name}.jsonl.gz"
    if not path.exists():  # the samples of our own stand in
        return []
    with gzip.open(path, "rt") as lines:
        return [json.loads(line) for line in lines]


class _Mutator(ast.NodeTransformer):
    """Changes the `at`-th operator, constant or return of a program."""

    def __init__(self, at: int) -> None:
        self.at, self.seen, self.changed = at, 0, ""

    def visit(self, node: ast.AST) -> ast.AST:
        self.generic_visit(node)
        mutant = _mutated(node)
        if mutant is None:
            return node
        self.seen += 1
        if self.seen - 1 != self.at:
            return node
        self.changed = type(node).__name__
        return ast.copy_location(mutant, node) if hasattr(node, "lineno") else mutant


def _mutated(node: ast.AST) -> ast.AST | None:
    if type(node) in OPPOSITES:
        return OPPOSITES[type(node)]()
    if isinstance(node, ast.Constant) and isinstance(node.value, bool):
        return ast.Constant(not node.value)
    if isinstance(node, ast.Constant) and isinstance(node.value, int):
        return ast.Constant(node.value + 1)
    if isinstance(node, ast.Return) and node.value is not None:
        return ast.Return(ast.Constant(None))
    return None


def _mutants(sample: Sample) -> list[str]:
    counter = _Mutator(-1)
    counter.visit(ast.parse(sample.program))
    places = random.Random(sample.name).sample(range(counter.seen), min(MUTANTS_EACH, counter.seen))
    found = []
    for place in places:
        mutator = _Mutator(place)
        found.append(ast.unparse(mutator.visit(ast.parse(sample.program))))
    return found


def _passes_bare(program: str, reference: str) -> bool:
    """Whether a process without any protection ends well: the differential evidence."""
    row = json.loads(reference)
    checks = [row.get("setup") or "", *row.get("tests", [])]
    for call in row.get("calls", []):
        arguments = ", ".join(map(repr, call["args"]))
        checks.append(f"assert {call['function']}({arguments}) == {call['expected']!r}")
    text = "\n".join([program, *checks])
    for case in row.get("cases", [{"stdin": "", "stdout": None}]):
        try:
            done = subprocess.run(
                [sys.executable, "-I", "-S", "-c", text],
                input=case["stdin"].encode(),
                capture_output=True,
                timeout=10,
            )
        except subprocess.TimeoutExpired:
            return False
        right = case["stdout"] is None or done.stdout.decode().split() == case["stdout"].split()
        if done.returncode != 0 or not right:
            return False
    return True


def _score(pair: tuple[str, str]) -> float:
    return VERIFIER.verify(f"```python\n{pair[0]}\n```", pair[1]).total


@pytest.mark.parametrize("sample", _samples(), ids=lambda sample: sample.name)
def test_canonical_solutions_score_1(sample: Sample) -> None:
    score = VERIFIER.verify(f"Here it is.\n\n```python\n{sample.program}\n```", sample.reference)
    assert score.total == 1.0, score.why


def test_mutants_score_0_unless_a_bare_run_cannot_tell_them_apart() -> None:
    pairs = [(mutant, each.reference) for each in _samples() for mutant in _mutants(each)]
    with ThreadPoolExecutor(4) as pool:
        scores = list(pool.map(_score, pairs))
        bare = list(pool.map(lambda pair: _passes_bare(*pair), pairs))
    wrong = [
        (program, score)
        for (program, _), score, passes in zip(pairs, scores, bare, strict=True)
        if score != float(passes)
    ]
    assert not wrong, wrong[0][0]
    assert sum(not passes for passes in bare) >= 0.7 * len(pairs) >= 20


RIGHT = {
    ("rl_train_oj_0328_1707", 1): "def integral():\n    return 3.141592653589793 / 2",
    ("rl_train_oj_0328_1707", 3): (
        "def countPrimes(n):\n    return sum(all(k % d for d in range(2, k)) for k in range(2, n))"
    ),
    ("rl_train_oj_0328_1707", 8): (
        "def xyz_there(text):\n    return 'xyz' in text.replace('.xyz', '')"
    ),
    ("rl_train_oj_0328_1707", 9): (
        "def solve():\n    a, b = map(int, input().split())\n    print(max(a + b, a - b, a * b))"
    ),
    ("mhpp", 3): (
        "def get_maximum_capital(n, c, profits, capital):\n"
        "    left = list(zip(capital, profits))\n"
        "    for _ in range(n):\n"
        "        able = [pair for pair in left if pair[0] <= c]\n"
        "        if able:\n"
        "            best = max(able, key=lambda pair: pair[1])\n"
        "            left.remove(best)\n"
        "            c += best[1]\n"
        "    return c"
    ),
    ("code_contests", 9): (
        "n, k = map(int, input().split())\n"
        "parent = list(range(n + 1))\n"
        "def find(x):\n"
        "    while parent[x] != x:\n"
        "        parent[x] = parent[parent[x]]\n"
        "        x = parent[x]\n"
        "    return x\n"
        "for _ in range(n - 1):\n"
        "    u, v, red = map(int, input().split())\n"
        "    if red == 0:\n"
        "        parent[find(u)] = find(v)\n"
        "size = {}\n"
        "for x in range(1, n + 1):\n"
        "    size[find(x)] = size.get(find(x), 0) + 1\n"
        "print((pow(n, k) - sum(pow(s, k) for s in size.values())) % (10**9 + 7))"
    ),
}
"""Programs of ours for rows that come without one."""


@pytest.mark.parametrize("key", RIGHT, ids=lambda key: f"{key[0]} {key[1]}")
def test_right_programs_for_rows_without_a_solution(key: tuple[str, int]) -> None:
    for row in _rows(key[0]):
        if row["id"] == key[1]:
            reference = _reference(key[0], row["test"])
            score = VERIFIER.verify(RIGHT[key], reference)
            assert score.total == 1.0, score.why
            assert VERIFIER.verify(RIGHT[key] + "\n1 / 0", reference).total == 0.0


@pytest.mark.parametrize("name", ["mhpp", "rl_train_oj_0328_1707", "code_contests"])
def test_references_of_the_data_can_be_read(name: str) -> None:
    for row in _rows(name):
        assert parse_reference(_reference(name, row["test"])).tests >= 1


def _reference(name: str, tests: str) -> str:
    if name != "code_contests":
        return json.dumps({"tests": [tests]})
    cases = [{**case["input"], **case["output"]} for case in json.loads(tests)]
    return json.dumps({"cases": cases[:12]})
