"""Recorded scores find their rows; what does not is told."""

import json
import math
from pathlib import Path
from typing import Any

import pytest

from rewards.data_files import DataFileError
from rewards.preference.recorded_scores import Joined, join_scores
from rewards.preference.records import Row, RowProblem
from rewards.preference.score_values import score_values
from rewards.task import Message


def row(id: str, alias: str | None = None, count: int = 2) -> Row:
    return Row(
        id=id,
        alias=alias,
        line=1,
        prompt=(Message(role="user", content="?"),),
        responses=tuple("abcdefgh"[:count]),
        quality=(1.0,) + (0.0,) * (count - 1),
    )


def joined(path: Path, rows: list[Row], lines: list[Any]) -> Joined:
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    return join_scores(rows, path)


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        ({"A": 1, "B": 0.5}, (1.0, 0.5)),
        ({"B": 0.5, "A": 1}, (1.0, 0.5)),
        ([1, 0.5], (1.0, 0.5)),
        ({"1": 0.5, "0": 1}, (1.0, 0.5)),
        ({"chosen": 1, "rejected": 0.5}, (1.0, 0.5)),
        ({"chosen": [1], "rejected": [0.5]}, (1.0, 0.5)),
    ],
)
def test_ways_to_write_scores(given: object, expected: tuple[float, ...]) -> None:
    assert score_values(given, 2) == expected


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"A": 1}, "named A; 2 responses are A to B"),
        ([1, 2, 3], "3 scores for 2 responses"),
        ({"A": 1, "B": "2"}, "'2' is no number"),
        ({"A": 1, "B": None}, "'None' is no number"),
        ({"A": True, "B": 0}, "'True' is no number"),
        ({"A": math.nan, "B": 0}, "not finite"),
        ([math.inf, 0], "not finite"),
        ([10**400, 0], "not finite"),
    ],
)
def test_scores_of_no_use(given: object, message: str) -> None:
    with pytest.raises(RowProblem, match=message):
        score_values(given, 2)


def test_a_join_with_everything_wrong(tmp_path: Path) -> None:
    rows = [row(id) for id in ("fine", "none", "nan", "same", "two")]
    lines: list[Any] = [
        {"id": "fine", "scores": {"A": 1.0, "B": 2.0}},
        {"id": "nan", "scores": {"A": math.nan, "B": 2.0}},
        {"id": "same", "scores": [1, 2]},
        {"id": "same", "scores": [1, 2]},
        {"id": "two", "scores": [1, 2]},
        {"id": "two", "scores": [2, 1]},
        {"id": "extra", "scores": [1, 2]},
        {"scores": [1, 2]},
        7,
    ]
    found = joined(tmp_path / "s.jsonl", rows, lines)
    assert [each.recorded for each in found.rows] == [(1, 2), None, None, (1, 2), None]
    told = sorted((problem.kind.name, problem.line) for problem in found.problems)
    assert told == [
        ("bad_score_row", 2),
        ("bad_score_row", 8),
        ("bad_score_row", 9),
        ("repeated_scores", 4),
        ("repeated_scores", 6),
        ("unknown_id", 7),
    ]


def test_pair_id_or_id(tmp_path: Path) -> None:
    rows = [row("pair", alias="other")]
    lines = [{"id": "other", "scores": [1, 2]}]
    assert joined(tmp_path / "s.jsonl", rows, lines).rows[0].recorded == (1, 2)
    lines = [{"pair_id": "pair", "scores": [3, 2]}]
    assert joined(tmp_path / "s.jsonl", rows, lines).rows[0].recorded == (3, 2)


def test_numbers_are_ids_too(tmp_path: Path) -> None:
    assert joined(tmp_path / "s.jsonl", [row("7")], [{"id": 7, "scores": [1, 2]}]).rows[0].recorded


def test_a_file_for_other_rows(tmp_path: Path) -> None:
    with pytest.raises(DataFileError, match="like 'y', theirs like 'x'"):
        joined(tmp_path / "s.jsonl", [row("x")], [{"id": "y", "scores": [1, 2]}])


def test_eight_responses_by_letter(tmp_path: Path) -> None:
    scores = dict(zip("ABCDEFGH", range(8), strict=True))
    found = joined(tmp_path / "s.jsonl", [row("x", count=8)], [{"id": "x", "scores": scores}])
    assert found.rows[0].recorded == tuple(range(8))
