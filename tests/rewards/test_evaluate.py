import json
from pathlib import Path

import pytest

from rewards.evaluate import evaluate_labelled
from rewards.rows import RowError
from rewards.task import TaskKind
from rewards.verdict import ScorerSpec

MATH = ScorerSpec(kind=TaskKind.math, timeout_s=5.0)

PLUGIN = """
import os, time
from pathlib import Path

def score(task, transcript):
    said = transcript.response
    if said == "hang":
        time.sleep(300)
    if said == "raise":
        raise ValueError("no")
    if said == "once":
        seen = Path(__file__).with_name("seen")
        new = not seen.exists()
        seen.touch()
        return float(new)
    return float(task.reference in said)
"""


def row(response: str, label: object, gold: str = "5") -> dict[str, object]:
    return {"response": response, "gold": gold, "label": label}


def write(folder: Path, *rows: object) -> Path:
    path = folder / "rows.jsonl"
    path.write_text("".join(json.dumps(each) + "\n" for each in rows))
    return path


def test_mistakes_are_counted_and_shown(tmp_path: Path) -> None:
    right, wrong = row(r"\boxed{5}", 1), row(r"\boxed{6}", 0)
    mislabelled = [row("x" * 500 + r"\boxed{5.0}", 0), row("five", True), row("V", "correct")]
    report = evaluate_labelled(
        write(tmp_path, *[right] * 8, *[wrong] * 9, *mislabelled), MATH, workers=2
    )
    assert (report.false_positives.count, report.false_positives.of) == (1, 10)
    assert (report.false_negatives.count, report.false_negatives.of) == (2, 10)
    assert (report.accuracy.count, report.accuracy.of) == (17, 20)
    assert report.false_positives.low == pytest.approx(0.0179, abs=1e-3)
    (accepted,) = report.accepted_wrong
    assert accepted.line == 18 and accepted.score == 1.0 and accepted.reference == "5"
    assert accepted.response.endswith(r"\boxed{5.0}") and len(accepted.response) == 200
    assert [each.line for each in report.refused_right] == [19, 20]
    assert not report.differences and not report.late and not report.clean
    assert len(report.slowest) == 5


def test_a_good_scorer_is_clean(tmp_path: Path) -> None:
    report = evaluate_labelled(
        write(tmp_path, row(r"\boxed{5}", 1), row(r"\boxed{6}", 0)), MATH, workers=1
    )
    assert report.clean and report.accuracy.value == 1.0


def test_hangs_errors_and_differences_are_found(tmp_path: Path) -> None:
    (tmp_path / "mine.py").write_text(PLUGIN)
    spec = ScorerSpec(kind=TaskKind.math, timeout_s=0.5, reward=f"{tmp_path}/mine.py:score")
    source = write(tmp_path, row("5", 1), row("hang", 0), row("raise", 0), row("once", 1))
    report = evaluate_labelled(source, spec, workers=2)
    assert [each.line for each in report.late] == [2]
    assert list(report.unscored) == [3] and "ValueError" in report.unscored[3]
    (difference,) = report.differences
    assert (difference.line, difference.first, difference.second) == (4, 1.0, 0.0)
    assert report.accuracy.of == 3 and not report.clean


@pytest.mark.parametrize(
    ("rows", "says"),
    [
        ([], "has no rows"),
        ([row(r"\boxed{5}", 1), {"response": "5", "gold": "5"}], 'line 2: no key "label"'),
        ([row("5", "perhaps")], 'line 1: "label" must be'),
        ([{"label": 1, "gold": "5"}], 'line 1: no key "response"'),
    ],
)
def test_rows_without_a_label_are_named(tmp_path: Path, rows: list[object], says: str) -> None:
    with pytest.raises(RowError, match=says):
        evaluate_labelled(write(tmp_path, *rows), MATH, workers=1)
