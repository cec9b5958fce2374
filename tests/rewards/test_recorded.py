import gzip
import json
from pathlib import Path

import psutil
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from rewards.errors import RewardError
from rewards.recorded import Verification, verify_file
from rewards.rows import RowError, lines_of
from rewards.task import TaskKind
from rewards.verdict import ScorerSpec, Trouble, Verdict

MATH = ScorerSpec(kind=TaskKind.math, timeout_s=2.0)
CODE = ScorerSpec(kind=TaskKind.code, timeout_s=10.0)
INSTRUCTIONS = ScorerSpec(kind=TaskKind.instructions, timeout_s=5.0)

SUM = [{"stdin": "2 3", "stdout": "5"}, {"stdin": "4 4", "stdout": "8"}]
NO_COMMA = {
    "prompt": "Say hello. Use no commas.",
    "instruction_id_list": ["punctuation:no_comma"],
    "kwargs": [{}],
}


def write(path: Path, rows: list[object]) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def read(path: Path) -> list[dict[str, object]]:
    raw = path.read_bytes()
    text = gzip.decompress(raw) if path.suffix == ".gz" else raw
    return [json.loads(line) for line in text.splitlines()]


def test_math_rows_keep_order_and_keys(tmp_path: Path) -> None:
    rows = [
        {"id": n, "response": rf"So \boxed{{{n}}}", "gold": str(n // 2 * 2), "meta": {"é": [n]}}
        for n in range(500)
    ]
    done = verify_file(write(tmp_path / "in", rows), tmp_path / "out", MATH, workers=2)
    scored = read(tmp_path / "out")
    assert [{k: v for k, v in row.items() if k not in ("score", "why")} for row in scored] == rows
    assert [row["score"] for row in scored] == [float(n % 2 == 0) for n in range(500)]
    assert all(isinstance(row["why"], str) and row["why"] for row in scored)
    assert (done.rows, done.scored, done.full, done.zero, done.mean) == (500, 500, 250, 250, 0.5)


def test_code_rows(tmp_path: Path) -> None:
    rows = [
        {"response": "```python\ndef f(x):\n    return x + 1\n```", "tests": ["assert f(1) == 2"]},
        {"response": "```python\ndef f(x):\n    return x - 1\n```", "tests": ["assert f(1) == 2"]},
        {"response": "```python\nprint(sum(map(int, input().split())))\n```", "cases": SUM},
        {"response": "```python\nprint(5)\n```", "cases": SUM},
        {"response": "```python\nimport os\nos._exit(0)\n```", "tests": ["assert f(1) == 2"]},
    ]
    verify_file(write(tmp_path / "in", rows), tmp_path / "out", CODE, workers=2)
    assert [row["score"] for row in read(tmp_path / "out")] == [1.0, 0.0, 1.0, 0.0, 0.0]


def test_instruction_rows(tmp_path: Path) -> None:
    rows = [{"response": "Hello there", **NO_COMMA}, {"response": "Hello, you", **NO_COMMA}]
    verify_file(write(tmp_path / "in", rows), tmp_path / "out", INSTRUCTIONS, workers=1)
    assert [row["score"] for row in read(tmp_path / "out")] == [1.0, 0.0]


def test_gzip_in_and_out_and_an_old_output(tmp_path: Path) -> None:
    source, out = tmp_path / "in.jsonl.gz", tmp_path / "out.gz"
    source.write_bytes(gzip.compress(b'{"response": "\\\\boxed{5}", "gold": "5"}\n'))
    out.write_bytes(b"old")
    verify_file(source, out, MATH, workers=1)
    assert [row["score"] for row in read(out)] == [1.0]


def test_an_empty_file_is_scored_at_once(tmp_path: Path) -> None:
    (tmp_path / "in").write_bytes(b"\n\n")
    done = verify_file(tmp_path / "in", tmp_path / "out", MATH, workers=2)
    assert (tmp_path / "out").read_bytes() == b"" and done.rows == 0 and done.mean == 0.0


def test_bad_rows_are_all_named_and_nothing_is_written(tmp_path: Path) -> None:
    source = tmp_path / "in"
    good = b'{"response": "5", "gold": "5"}\n'
    source.write_bytes(good + b"oops\n\n" + good + b'{"response": "5"}\n' + b"\xff\n")
    with pytest.raises(RowError) as caught:
        verify_file(source, tmp_path / "out", MATH, workers=1)
    assert [part.split(":")[0] for part in str(caught.value).splitlines()] == [
        f"{source} line {number}" for number in (2, 5, 6)
    ]
    assert sorted(path.name for path in tmp_path.iterdir()) == ["in"]


def test_bad_rows_can_be_skipped_and_are_counted(tmp_path: Path) -> None:
    source = write(tmp_path / "in", [{"response": r"\boxed{5}", "gold": "5"}, 7, {"gold": "5"}])
    done = verify_file(source, tmp_path / "out", MATH, workers=1, skip_bad_rows=True)
    assert [row["score"] for row in read(tmp_path / "out")] == [1.0]
    assert sorted(done.bad) == [2, 3] and (done.rows, done.scored) == (3, 1)


def test_a_file_of_bad_rows_alone_is_refused_even_if_they_may_be_skipped(tmp_path: Path) -> None:
    source = write(tmp_path / "in", [7, {"gold": "5"}])
    with pytest.raises(RowError, match=r"(?s)^no row could be read:.*in line 1: .*in line 2: "):
        verify_file(source, tmp_path / "out", MATH, workers=1, skip_bad_rows=True)
    assert [path.name for path in tmp_path.iterdir()] == ["in"]


def test_a_verifier_that_fails_on_more_than_a_few_rows_is_broken() -> None:
    done = Verification(kind="math")
    for number in range(1, 401):
        trouble = Trouble.crashed if number <= 4 else None
        score = 0.0 if trouble else 1.0
        done.add(Verdict(number=number, score=score, why="KeyError", seconds=0.1, trouble=trouble))
        if number == 3:
            assert (done.crashed, done.zero, done.broken) == (3, 3, False)
    assert (done.crashed, done.broken) == (4, False)  # one in a hundred
    done.add(Verdict(number=401, score=0.0, why="KeyError", seconds=0.1, trouble=Trouble.crashed))
    assert done.broken and list(done.crashes) == [1, 2, 3, 4, 401]


UNREADABLE = {"response": r"\boxed{x+1}", "gold": r"\frac{x+}{"}


def test_a_gold_that_is_no_answer_we_know_is_compared_as_text(tmp_path: Path) -> None:
    gold = r"[ \mathbb{R}P^n ]"
    rows = [{"response": rf"\boxed{{{answer}}}", "gold": gold} for answer in (gold, "5")]
    done = verify_file(write(tmp_path / "in", rows), tmp_path / "out", MATH, workers=1)
    assert (done.full, done.zero, done.text_only, done.golds_as_text) == (1, 1, 1, [1, 2])
    scored = [json.loads(line) for line in (tmp_path / "out").read_text().splitlines()]
    assert [row["score"] for row in scored] == [1.0, 0.0]
    assert "not its text" in scored[1]["why"]


def test_an_unreadable_gold_is_named(tmp_path: Path) -> None:
    source = write(tmp_path / "in", [{"response": r"\boxed{5}", "gold": "5"}, UNREADABLE])
    with pytest.raises(RowError, match=r"in line 2: .*gold"):
        verify_file(source, tmp_path / "out", MATH, workers=1)
    assert not (tmp_path / "out").exists()
    done = verify_file(source, tmp_path / "out", MATH, workers=1, skip_bad_rows=True)
    assert [row["score"] for row in read(tmp_path / "out")] == [1.0] and list(done.bad) == [2]


DYING = (
    "import os, signal\ndef score(task, transcript):\n    os.kill(os.getpid(), signal.SIGKILL)\n"
)


def test_a_row_without_a_score_is_named(tmp_path: Path) -> None:
    (tmp_path / "dies.py").write_text(DYING)
    spec = ScorerSpec(kind=TaskKind.math, timeout_s=1.0, reward=f"{tmp_path}/dies.py:score")
    source = write(tmp_path / "in", [{"response": r"\boxed{5}", "gold": "5"}])
    with pytest.raises(RewardError, match=r"in line 1: 3 workers died"):
        verify_file(source, tmp_path / "out", spec, workers=1)
    assert not (tmp_path / "out").exists()
    done = verify_file(source, tmp_path / "out", spec, workers=1, skip_bad_rows=True)
    assert (tmp_path / "out").read_bytes() == b"" and list(done.unscored) == [1]


def test_places_that_cannot_be_written(tmp_path: Path) -> None:
    source = write(tmp_path / "in", [])
    for out, says in (
        (tmp_path, "not a regular file"),
        (Path("/dev/null"), "not a regular file"),
        (tmp_path / "none" / "out", "there is no folder"),
        (source, "is the input"),
        (Path("/dev/stdout"), "cannot write /dev/stdout: it is (open already|not a regular file)"),
        (Path("/proc/self/fd/1"), "cannot write /proc/self/fd/1: it is"),
    ):
        with pytest.raises(RowError, match=says):
            verify_file(source, out, MATH, workers=1)


def test_a_row_of_ten_megabytes(tmp_path: Path) -> None:
    rows = [{"response": "word " * 2_000_000 + r"\boxed{5}", "gold": "5"}]
    verify_file(write(tmp_path / "in", rows), tmp_path / "out", MATH, workers=1)
    assert (tmp_path / "out").stat().st_size > 10_000_000
    assert read(tmp_path / "out")[0]["score"] == 1.0


HOSTILE = (
    r"\boxed{x+9^{9^{9^{9}}}}", r"\boxed{" + "{" * 5000 + "}" * 5000 + "}", r"\boxed{" * 3000,
    r"\boxed{__import__('os').system('sleep 99')}", "\ud800\x00\x1b[2J", r"\boxed{\frac{1}{0}}",
)  # fmt: skip


def test_hostile_rows_are_scored_and_leave_no_process(tmp_path: Path) -> None:
    rows = [
        {
            "id": n,
            "response": HOSTILE[n // 50 % 6] if n % 50 == 0 else rf"\boxed{{x+{n % 3}}}",
            "gold": "x+1",
        }
        for n in range(600)
    ]
    before = {process.pid for process in psutil.Process().children(recursive=True)}
    done = verify_file(write(tmp_path / "in", rows), tmp_path / "out", MATH, workers=2)
    scored = read(tmp_path / "out")
    assert [row["id"] for row in scored] == list(range(600)) and done.scored == 600
    assert [row["score"] for row in scored] == [
        float(n % 3 == 1 and n % 50 != 0) for n in range(600)
    ]
    after = {process.pid for process in psutil.Process().children(recursive=True)}
    assert after <= before


lines = st.one_of(
    st.binary(max_size=60),
    st.builds(
        lambda response, gold: json.dumps({"response": response, "gold": gold}).encode(),
        st.text() | st.sampled_from(HOSTILE[1:]) | st.from_regex(r"\\boxed\{[0-9x+]{1,9}\}"),
        st.sampled_from(["5", r"\text{yes}", "", "12,345"]),
    ),
)


@settings(
    max_examples=12, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
# What begins with gzip's two bytes is unpacked, and has no lines if that fails.
@given(
    st.lists(lines, max_size=12).filter(lambda rows: not b"\n".join(rows).startswith(b"\x1f\x8b"))
)
def test_any_file_is_scored_or_refused_whole(tmp_path: Path, content: list[bytes]) -> None:
    source, out = tmp_path / "in", tmp_path / "out"
    source.write_bytes(b"\n".join(content))
    out.unlink(missing_ok=True)
    try:
        verify_file(source, out, MATH, workers=1)
    except RowError as error:
        assert " line " in str(error) and not out.exists()
        try:
            done = verify_file(source, out, MATH, workers=1, skip_bad_rows=True)
        except RowError as error:
            assert str(error).startswith("no row could be read") and not out.exists()
            return
        assert done.bad and done.scored and done.rows == done.scored + len(done.bad)
    whole = sum(1 for _ in lines_of(source))
    scored = read(out)
    assert len(scored) <= whole and all(row["score"] in (0.0, 1.0) for row in scored)
