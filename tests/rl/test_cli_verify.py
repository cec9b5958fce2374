"""`temper verify` and `temper eval-reward verifier` as a person starts them: real processes."""

import io
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest
from rich.console import Console

from rewards.recorded import Verification
from rewards.verdict import Trouble, Verdict
from rl.verify import verification_json, warn_of_crashes

GOOD = {"response": r"\boxed{5}", "gold": "5"}
CASE = {"stdin": "1", "stdout": "2"}
TEMPER = [sys.executable, "-m", "rl.cli"]


def temper(*arguments: str | Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [*TEMPER, *map(str, arguments)], capture_output=True, text=True, timeout=120
    )


def write(path: Path, *rows: object) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def test_verify_prints_a_table(tmp_path: Path) -> None:
    source = write(tmp_path / "in.jsonl", GOOD, {**GOOD, "gold": "6"})
    done = temper("verify", "math", source, tmp_path / "out.jsonl", "--workers", "1")
    assert done.returncode == 0, done.stderr
    for text in ("in.jsonl", "score 1", "50.0%", "mean 0.5000", "rows/s", "1 workers"):
        assert text in done.stdout
    scores = [json.loads(line)["score"] for line in (tmp_path / "out.jsonl").open()]
    assert scores == [1.0, 0.0]


def test_verify_as_json_with_bad_rows_skipped(tmp_path: Path) -> None:
    source = write(tmp_path / "in", GOOD, "text", GOOD)
    done = temper("verify", "math", source, tmp_path / "out", "--skip-bad-rows", "--json")
    counts = json.loads(done.stdout)
    assert done.returncode == 0 and list(counts["bad"]) == ["2"]
    assert (counts["rows"], counts["scored"], counts["mean"]) == (3, 2, 1.0)


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (("math", "in", "out"), "in line 2: not a JSON object"),
        (("code", "in", "out", "--skip-bad-rows"), "no row could be read:"),
        (("math", "none", "out"), "No such file"),
        (("math", ".", "out"), "it is a folder"),
        (("math", "in", "."), "not a regular file"),
        (("math", "in", "in"), "is the input"),
        (("maths", "in", "out"), "maths"),
        (("math", "in", "out", "--workers", "0"), "--workers must be from 1"),
        (("math", "in", "out", "--timeout", "0"), "--timeout must be more than 0"),
    ],
)
def test_bad_input_is_one_message(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, arguments: tuple[str, ...], says: str
) -> None:
    write(tmp_path / "in", GOOD, "text")
    monkeypatch.setenv("PYTHONPATH", str(Path(__file__).parents[2]))
    monkeypatch.chdir(tmp_path)
    done = temper("verify", *arguments)
    assert done.returncode == 2 and says in done.stderr and "Traceback" not in done.stderr
    assert [path.name for path in tmp_path.iterdir()] == ["in"]


def test_a_file_without_rows_is_bad_input(tmp_path: Path) -> None:
    (tmp_path / "in").write_text("\n")
    done = temper("verify", "math", tmp_path / "in", tmp_path / "out")
    assert done.returncode == 2 and f"{tmp_path / 'in'} holds no rows" in done.stderr
    assert not (tmp_path / "out").exists()


def test_an_unreadable_gold_is_bad_input(tmp_path: Path) -> None:
    source = write(tmp_path / "in", {"response": r"\boxed{x+1}", "gold": r"\frac{x+}{"})
    done = temper("verify", "math", source, tmp_path / "out")
    assert done.returncode == 2 and 'in line 1: "gold" cannot be read' in done.stderr
    assert not (tmp_path / "out").exists()


def test_rows_on_which_the_verifier_fails_are_named_loudly(tmp_path: Path) -> None:
    done = Verification(kind="math")
    for number in range(1, 13):
        done.add(Verdict(number=number, score=0.0, why="raised [KeyError]", seconds=0.0,
                         trouble=Trouble.crashed))  # fmt: skip
    said = io.StringIO()
    warn_of_crashes(done, tmp_path / "in", Console(file=said, width=200))
    assert "in line 10: raised [KeyError]" in said.getvalue()
    assert "WARNING: the verifier failed on 12 of 12 rows" in said.getvalue()
    assert json.loads(verification_json(done))["broken"] is True


def _name(process: psutil.Process) -> str:
    try:
        return process.name()
    except psutil.NoSuchProcess:
        return ""


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_interrupted_leaves_nothing(tmp_path: Path, number: signal.Signals) -> None:
    hang = {"response": "```python\nimport time\ntime.sleep(999)\n```", "cases": [CASE]}
    source = write(tmp_path / "in", *[hang] * 50)
    running = subprocess.Popen(
        [*TEMPER, "verify", "code", str(source), str(tmp_path / "out"), "--timeout", "60"],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
        # A shell's background job, as a CI may be, passes on that SIGINT is ignored.
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.default_int_handler),
    )
    until = time.monotonic() + 60.0
    family: list[psutil.Process] = []
    while not any("bwrap" in _name(process) for process in family):
        assert time.monotonic() < until and running.poll() is None
        time.sleep(0.2)
        family = psutil.Process(running.pid).children(recursive=True)
    os.kill(running.pid, number)
    _, said = running.communicate(timeout=30)
    assert running.returncode == 1 and "interrupted" in said and "Traceback" not in said
    psutil.wait_procs(family, timeout=10)
    assert not [p for p in family if p.is_running() and p.status() != psutil.STATUS_ZOMBIE]
    assert [path.name for path in tmp_path.iterdir()] == ["in"]


LENIENT = """
import re

def score(task, transcript):
    found = re.findall(r"####(.*)", transcript.response)
    return float(bool(found) and task.reference in found[-1])
"""


def test_a_lenient_reward_is_found_out(tmp_path: Path) -> None:
    (tmp_path / "mine.py").write_text(LENIENT)
    done = temper(
        "eval-reward", "verifier", "--reward", f"{tmp_path}/mine.py:score",
        "--answer-format", "#### ANSWER", "--json",
    )  # fmt: skip
    report = json.loads(done.stdout)["hacks"]
    assert done.returncode == 1 and report["hacks_accepted"] > 100 and not report["clean"]
    accepted = {cell["family"] for cell in report["cells"] if cell["failed"]}
    assert {"a or b", "candidate list", "false equation", "negated"} <= accepted
    assert "empty box" not in accepted and not report["ran_text"]


def test_labelled_rows_are_reported(tmp_path: Path) -> None:
    rows = write(
        tmp_path / "rows",
        *[{**GOOD, "label": 1}] * 3,
        {"response": r"\boxed{6}", "gold": "5", "label": 0},
        {"response": r"\boxed{5}", "gold": "5", "label": 0},
        {"response": "I say five", "gold": "5", "label": 1},
    )
    done = temper("eval-reward", "verifier", rows, "--timeout", "1")
    assert done.returncode == 1, done.stderr
    for text in ("6 labelled rows", "1/2 = 50.0 %", "1/4 = 25.0 %", "line 5", "line 6",
                 "deterministic", "slowest", "right answers refused"):  # fmt: skip
        assert text in done.stdout


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (("--reward", "none.py:score"), "no such file"),
        (("--answer-format", "{}"), "needs the word ANSWER"),
        (("none.jsonl",), "No such file"),
    ],
)
def test_bad_input_of_eval_reward(arguments: tuple[str, ...], says: str) -> None:
    done = temper("eval-reward", "verifier", *arguments)
    assert done.returncode == 2 and says in done.stderr and "Traceback" not in done.stderr
