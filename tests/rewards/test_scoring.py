import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest

from rewards.errors import RewardError
from rewards.rows import Line
from rewards.scoring import ScoringPool
from rewards.task import TaskKind
from rewards.verdict import ScorerSpec, Trouble, Verdict

PLUGIN = """
import os, re, signal, subprocess, time
from rewards.score import Score

def score(task, transcript):
    said = transcript.response
    if said == "hang":
        subprocess.Popen(["sleep", "300.25"])
        while True:
            pass
    if said == "backtrack":
        subprocess.Popen(["sleep", "300.25"])
        re.match("(a+)+$", "a" * 99 + "b")
    if said == "die":
        os.kill(os.getpid(), signal.SIGKILL)
    if said == "raise":
        raise KeyError("said so")
    if said == "skip":
        return None
    if said == "slow":
        time.sleep(0.3)
    print("noise on standard output")
    return Score(total=float(said == task.reference), why="compared")
"""


@pytest.fixture
def spec(tmp_path: Path) -> ScorerSpec:
    """The scorer of a plug-in that does as the response says."""
    path = tmp_path / "plugin.py"
    path.write_text(PLUGIN)
    return ScorerSpec(kind=TaskKind.math, timeout_s=1.0, reward=f"{path}:score")


def lines(*responses: str) -> list[Line]:
    rows = [{"response": each, "gold": "5"} for each in responses]
    return [Line(number, json.dumps(row).encode()) for number, row in enumerate(rows, 1)]


def descendants() -> list[psutil.Process]:
    return psutil.Process().children(recursive=True)


def score_all(spec: ScorerSpec, given: list[Line], workers: int = 2) -> list[Verdict]:
    with ScoringPool(spec, workers) as pool:
        verdicts = list(pool.score(given))
        pids = pool.pids
    assert not any(psutil.pid_exists(pid) for pid in pids)
    return verdicts


def test_verdicts_come_in_order(spec: ScorerSpec) -> None:
    given = lines(*("5" if n % 3 == 0 else "slow" if n % 50 == 1 else "4" for n in range(300)))
    verdicts = score_all(spec, given, workers=3)
    assert [verdict.number for verdict in verdicts] == [each.number for each in given]
    assert [verdict.score for verdict in verdicts] == [float(n % 3 == 0) for n in range(300)]
    assert json.loads(verdicts[0].line) == {
        "response": "5", "gold": "5", "score": 1.0, "why": "compared",
    }  # fmt: skip


def test_nothing_in_nothing_out(spec: ScorerSpec) -> None:
    with ScoringPool(spec, 2) as pool:
        assert list(pool.score([])) == [] and pool.pids == []


def test_a_hanging_row_scores_0_and_its_processes_end(spec: ScorerSpec) -> None:
    before = set(descendants())
    started = time.monotonic()
    verdicts = score_all(spec, lines("5", "hang", "5", "hang", "5"))
    assert [verdict.score for verdict in verdicts] == [1.0, 0.0, 1.0, 0.0, 1.0]
    assert verdicts[1].trouble is Trouble.late and "within 1 s" in verdicts[1].why
    assert time.monotonic() - started < 60.0
    assert not [each for each in set(descendants()) - before if each.is_running()]
    assert not [
        p for p in psutil.process_iter(["cmdline"]) if p.info["cmdline"] == ["sleep", "300.25"]
    ]


def test_rows_over_which_workers_die_are_unscored_and_no_other_is_lost(spec: ScorerSpec) -> None:
    verdicts = score_all(spec, lines(*["5"] * 20, "die", *["5"] * 20))
    assert [verdict.score for verdict in verdicts] == [1.0] * 20 + [None] + [1.0] * 20
    assert verdicts[20].trouble is Trouble.unscored and "3 workers died" in verdicts[20].why


def test_troubles_of_a_plug_in(spec: ScorerSpec) -> None:
    raised, skipped = score_all(spec, lines("raise", "skip"))
    assert raised.score is None and "KeyError" in raised.why
    assert skipped.score is None and skipped.why == "the reward does not apply"


def test_a_worker_that_was_idle_for_long_is_not_late(spec: ScorerSpec) -> None:
    first, second = lines("5", "slow")
    with ScoringPool(spec, 1) as pool:
        assert [verdict.score for verdict in pool.score([first])] == [1.0]
        time.sleep(2.5)  # more than the limit and its grace
        (verdict,) = pool.score([second])
    assert (verdict.score, verdict.trouble) == (0.0, None) and verdict.why == "compared"


def test_killed_workers_lose_no_row() -> None:
    spec = ScorerSpec(kind=TaskKind.math, timeout_s=5.0)
    given = lines(*(rf"\boxed{{{n % 7}}}" for n in range(40_000)))
    with ScoringPool(spec, 2) as pool:
        verdicts = pool.score(given)
        scores = [next(verdicts).score]
        for _ in range(4):
            os.kill(pool.pids[0], signal.SIGKILL)
            scores += [next(verdicts).score for _ in range(5_000)]
        scores += [verdict.score for verdict in verdicts]
    assert scores == [float(n % 7 == 5) for n in range(40_000)]


def test_no_sandbox_is_an_error_of_the_machine(monkeypatch: pytest.MonkeyPatch) -> None:
    spec = ScorerSpec(kind=TaskKind.code, timeout_s=5.0)
    row = Line(1, json.dumps({"response": "", "tests": ["assert f(1) == 2"]}).encode())
    monkeypatch.setenv("PATH", "/nowhere")
    with pytest.raises(RewardError, match="bubblewrap"), ScoringPool(spec, 1) as pool:
        list(pool.score([row]))


def test_a_plug_in_that_cannot_be_loaded(spec: ScorerSpec, tmp_path: Path) -> None:
    (tmp_path / "broken.py").write_text("import nowhere_to_be_found")
    for reward, says in (
        (f"{tmp_path}/none.py:score", "no such file"),
        (f"{tmp_path}/plugin.py:scoer", "scoer"),
        (f"{tmp_path}/broken.py:score", "nowhere_to_be_found"),
    ):
        broken = ScorerSpec(kind=TaskKind.math, timeout_s=1.0, reward=reward)
        with pytest.raises(ValueError, match=says):
            score_all(broken, lines("5"))


def test_workers_that_die_while_starting_are_an_error(tmp_path: Path) -> None:
    (tmp_path / "dies.py").write_text("import os\nos._exit(3)\n")
    spec = ScorerSpec(kind=TaskKind.math, timeout_s=1.0, reward=f"{tmp_path}/dies.py:score")
    with pytest.raises(RewardError, match="die while starting"):
        score_all(spec, lines("5"))


def test_rows_are_read_no_further_than_needed() -> None:
    read = 0

    def endless() -> Iterator[Line]:
        nonlocal read
        while True:
            read += 1
            body = json.dumps({"response": "x" * 1_000_000, "gold": "5"}).encode()
            yield Line(read, body)

    with ScoringPool(ScorerSpec(kind=TaskKind.math, timeout_s=5.0), 2) as pool:
        verdicts = pool.score(endless())
        for _ in range(3):
            assert next(verdicts).score == 0.0
    assert read < 100


def test_works_in_a_thread_and_without_a_main_guard(tmp_path: Path) -> None:
    script = tmp_path / "unguarded.py"
    script.write_text(
        "import threading\n"
        "from rewards.rows import Line\n"
        "from rewards.scoring import ScoringPool\n"
        "from rewards.task import TaskKind\n"
        "from rewards.verdict import ScorerSpec\n"
        "def run():\n"
        "    with ScoringPool(ScorerSpec(kind=TaskKind.math, timeout_s=5.0), 1) as pool:\n"
        '        row = Line(1, b\'{"response": "5", "gold": "5"}\')\n'
        "        print([verdict.score for verdict in pool.score([row])])\n"
        "thread = threading.Thread(target=run)\nthread.start()\nthread.join()\n"
    )
    root = str(Path(__file__).parents[2])
    done = subprocess.run(
        [sys.executable, script], env={**os.environ, "PYTHONPATH": root}, capture_output=True
    )
    assert done.stdout.strip() == b"[0.0]", done.stderr


@pytest.mark.parametrize("doing", ["hang", "backtrack"])  # the latter lets no other thread run
def test_workers_end_with_a_parent_that_is_killed(
    tmp_path: Path, spec: ScorerSpec, doing: str
) -> None:
    script = tmp_path / "parent.py"
    script.write_text(
        "import json, sys\n"
        "from rewards.rows import Line\n"
        "from rewards.scoring import ScoringPool\n"
        "from rewards.task import TaskKind\n"
        "from rewards.verdict import ScorerSpec\n"
        f"spec = ScorerSpec(kind=TaskKind.math, timeout_s=60.0, reward={spec.reward!r})\n"
        f"said = ('5', {doing!r})\n"
        "rows = [json.dumps({'response': each, 'gold': '5'}).encode() for each in said]\n"
        "with ScoringPool(spec, 1) as pool:\n"
        "    for verdict in pool.score(Line(n, row) for n, row in enumerate(rows)):\n"
        "        print(*pool.pids, flush=True)\n"
    )
    root = str(Path(__file__).parents[2])
    parent = subprocess.Popen(
        [sys.executable, script], env={**os.environ, "PYTHONPATH": root}, stdout=subprocess.PIPE
    )
    assert parent.stdout is not None
    worker = int(parent.stdout.readline())
    ended = threading.Event()

    def wait() -> None:
        while psutil.pid_exists(worker):
            time.sleep(0.05)
        ended.set()

    time.sleep(0.5)  # the second row hangs by now
    group = [p.pid for p in psutil.Process(worker).children(recursive=True)]
    parent.kill()
    parent.wait()
    threading.Thread(target=wait, daemon=True).start()
    assert ended.wait(10.0) and group
    assert not any(
        psutil.pid_exists(pid) and psutil.Process(pid).status() != psutil.STATUS_ZOMBIE
        for pid in group
    )
