"""Shapes are recognised, rows are read, and what is wrong is told with its line."""

import gzip
import json
from pathlib import Path
from typing import Any

import pyarrow
import pytest
from pyarrow import parquet

from rewards.data_files import DataFileError
from rewards.preference.files import read_preferences
from rewards.preference.records import Preferences, ProblemKind, Shape, count_problems

DATA = Path(__file__).resolve().parents[2] / "data"


def written(path: Path, rows: list[Any]) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def kinds(source: Preferences) -> dict[ProblemKind, list[int]]:
    found: dict[ProblemKind, list[int]] = {}
    for problem in source.problems:
        found.setdefault(problem.kind, []).append(problem.line)
    return found


PAIR = {"prompt": "p", "chosen": "good", "rejected": "bad"}


@pytest.mark.parametrize(
    ("row", "shape"),
    [
        (PAIR, Shape.pairs),
        ({**PAIR, "subset": "hep-rust"}, Shape.reward_bench),
        ({**PAIR, "subset": "mine"}, Shape.pairs),
        ({"question": "q", "response_A": "a", "response_B": "b", "label": "A>B"}, Shape.judgebench),
        ({"prompt": "p", "responses": ["a", "b"], "correct": [True, False]}, Shape.best_of_n),
        ({"prompt": "p", "response": "a", "score": 3.5}, Shape.scored),
        ({"prompt": "p", "chosen": ["a"], "rejected": ["b", "c", "d"]}, Shape.reward_bench_2),
        ({"prompt": "p", "chosen": ["a"] * 3, "rejected": ["b"] * 3}, Shape.rm_bench),
        (
            {"prompt": "p", "chosen": ["a"] * 3, "rejected": ["b"] * 3, "num_correct": 3},
            Shape.reward_bench_2,
        ),
    ],
)
def test_shapes_are_recognised(tmp_path: Path, row: dict[str, Any], shape: Shape) -> None:
    assert read_preferences(written(tmp_path / "d.jsonl", [row])).shape is shape


def test_judgebench_as_published() -> None:
    source = read_preferences(DATA / "judgebench" / "pairs.jsonl")
    assert source.shape is Shape.judgebench and source.read == 9
    assert {row.subset for row in source.rows} == {"Coding", "Math", "Reasoning", "Knowledge"}
    assert {row.quality for row in source.rows} == {(1.0, 0.0), (0.0, 1.0)}
    assert kinds(source) == {ProblemKind.equal_responses: [9]}


def test_a_shape_that_is_named_is_used(tmp_path: Path) -> None:
    rows = [{"prompt": "p", "chosen": ["a"] * 3, "rejected": ["b"] * 3}]
    source = read_preferences(written(tmp_path / "d.jsonl", rows), Shape.reward_bench_2)
    assert source.shape is Shape.reward_bench_2


def test_conversations(tmp_path: Path) -> None:
    turns = [{"role": "user", "content": "one"}, {"role": "assistant", "content": "two"}]
    last = {"role": "user", "content": "three"}
    answers = [{"role": "assistant", "content": text} for text in ("yes", "no")]
    rows = [
        {"id": 1, "prompt": [*turns, last], "chosen": "yes", "rejected": "no"},
        {"id": 2, "chosen": [*turns, last, answers[0]], "rejected": [*turns, last, answers[1]]},
    ]
    source = read_preferences(written(tmp_path / "d.jsonl", rows))
    assert [len(row.prompt) for row in source.rows] == [3, 3]
    assert [row.responses for row in source.rows] == [("yes", "no")] * 2


def test_every_bad_row_is_counted_with_its_line(tmp_path: Path) -> None:
    good = {"pair_id": "g", "question": "q", "response_A": "a", "response_B": "b", "label": "A>B"}
    rows = [
        good,
        {**good, "pair_id": "n", "label": None},
        {**good, "pair_id": "t", "label": "A=B"},
        good,
        {**good, "question": "another"},
        {**good, "pair_id": "e", "response_B": "a"},
        {**good, "pair_id": "r", "response_B": None},
        {**good, "pair_id": "q", "question": 7},
    ]
    path = written(tmp_path / "d.jsonl", rows)
    path.write_text(path.read_text() + "[1]\n\n{broken\n")
    source = read_preferences(path)
    assert kinds(source) == {
        ProblemKind.no_label: [2, 3],
        ProblemKind.duplicate_row: [4],
        ProblemKind.duplicate_id: [5],
        ProblemKind.equal_responses: [6],
        ProblemKind.unreadable: [7, 8, 9, 11],
    }
    assert source.read == 10
    assert [row.id for row in source.rows] == ["g (line 1)", "g (line 5)", "e"]
    summary = count_problems(source.problems)
    assert summary[0].count == 4 and summary[0].kind is ProblemKind.unreadable
    assert sum(each.count for each in summary) == 9


@pytest.mark.parametrize(
    ("change", "kind"),
    [
        ({"correct": None}, ProblemKind.no_label),
        ({"correct": [1]}, ProblemKind.no_label),
        ({"correct": [1, 2]}, ProblemKind.no_label),
        ({"responses": "ab"}, ProblemKind.unreadable),
        ({"answers": ["4"]}, ProblemKind.unreadable),
        ({"responses": ["a", 4]}, ProblemKind.unreadable),
    ],
)
def test_best_of_n_rows(tmp_path: Path, change: dict[str, Any], kind: ProblemKind) -> None:
    good = {"id": "g", "prompt": "p", "responses": ["a", "b"], "correct": [1, 0]}
    source = read_preferences(written(tmp_path / "d.jsonl", [good, {**good, **change, "id": "x"}]))
    assert kinds(source) == {kind: [2]}


def test_arrays_and_gzip(tmp_path: Path) -> None:
    rows = [{**PAIR, "id": number, "prompt": f"p{number}"} for number in range(3)]
    (tmp_path / "d.json").write_text(json.dumps(rows))
    with gzip.open(tmp_path / "d.jsonl.gz", "wt") as file:
        file.write("\n".join(map(json.dumps, rows)))
    first = read_preferences(tmp_path / "d.json")
    second = read_preferences(tmp_path / "d.jsonl.gz")
    assert first.rows == second.rows and first.digest == second.digest
    assert read_preferences(written(tmp_path / "e.jsonl", rows[:2])).digest != first.digest


def test_parquet(tmp_path: Path) -> None:
    path = tmp_path / "d.parquet"
    rows = [{"id": "1", "prompt": "p", "chosen": ["a"], "rejected": ["b", "c"], "subset": "Math"}]
    parquet.write_table(pyarrow.Table.from_pylist(rows), path)
    source = read_preferences(path)
    assert source.shape is Shape.reward_bench_2
    assert source.rows[0].responses == ("a", "b", "c")
    path.write_bytes(b"PAR1 and no more")
    with pytest.raises(DataFileError, match="cannot read"):
        read_preferences(path)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", r"d\.jsonl is empty: it holds no rows"),
        (b"\n \n", r"d\.jsonl is empty: it holds no rows"),
        (b"\n\xff\n{\n", r"no row can be read: line 2: the row is not UTF-8 at byte 0"),
        (b"{\n" * 201, r"none of the first 200 rows can be read: line 1: .* not valid JSON"),
        (b"{}\n", "no known shape has the keys none"),
        (b'{"a": 1}\n', "no known shape has the keys a"),
        (b'{"prompt": "p", "chosen": "a", "rejected": null}\n', "line 1: 'rejected' is missing"),
    ],
)
def test_files_of_no_use(tmp_path: Path, content: bytes, message: str) -> None:
    (tmp_path / "d.jsonl").write_bytes(content)
    with pytest.raises(DataFileError, match=message):
        read_preferences(tmp_path / "d.jsonl")


@pytest.mark.parametrize("content", [b"", b"\xff\n"])
def test_a_named_shape_hides_no_empty_file(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "d.jsonl").write_bytes(content)
    with pytest.raises(DataFileError, match=r"is empty: it holds|line 1: the row is not UTF-8"):
        read_preferences(tmp_path / "d.jsonl", Shape.reward_bench_2)


def test_files_that_are_not_there_or_cut(tmp_path: Path) -> None:
    with pytest.raises(DataFileError, match="cannot read"):
        read_preferences(tmp_path / "none.jsonl")
    whole = gzip.compress(json.dumps(PAIR).encode() * 500)
    (tmp_path / "cut.jsonl.gz").write_bytes(whole[: len(whole) // 2])
    with pytest.raises(DataFileError, match="cannot read"):
        read_preferences(tmp_path / "cut.jsonl.gz")


def test_sides_of_pairs_are_balanced(tmp_path: Path) -> None:
    rows = [{**PAIR, "id": number, "prompt": f"p{number}"} for number in range(400)]
    path = written(tmp_path / "d.jsonl", rows)
    swapped = [row.swapped for row in read_preferences(path).rows]
    assert 160 < sum(swapped) < 240
    assert swapped == [row.swapped for row in read_preferences(path).rows]


ODD = (
    None,
    True,
    7,
    10**400,
    "",
    "\ud800",
    [],
    ["a"],
    [[1]],
    [None],
    {},
    {"A": 1},
    [{"content": 3}],
)


@pytest.mark.parametrize("key", ["prompt", "chosen", "rejected", "id", "subset", "scores", "gold"])
def test_odd_values_are_told_or_taken_never_raised(tmp_path: Path, key: str) -> None:
    rows = [PAIR, *({**PAIR, "id": f"i{place}", key: value} for place, value in enumerate(ODD))]
    source = read_preferences(written(tmp_path / "d.jsonl", rows))
    lost = sum(problem.kind is not ProblemKind.equal_responses for problem in source.problems)
    assert source.read == len(rows) and len(source.rows) + lost >= len(rows)
