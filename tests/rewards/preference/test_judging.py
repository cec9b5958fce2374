"""Judges are asked once, what they say is kept, and it means the same in any order."""

import json
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
import pytest

from rewards.errors import RewardError
from rewards.preference.judgements import JudgementFile
from rewards.preference.judges import (
    Failure,
    FunctionJudge,
    Judgement,
    Question,
    VerifierJudge,
)
from rewards.preference.judging import Verdicts, hear, recorded_verdicts
from rewards.preference.records import ProblemKind, Row
from rewards.task import Message


def quiet(done: int, total: int) -> None:
    """Nobody watches."""


def row(id: str, *responses: str, swapped: bool = False, reference: str | None = None) -> Row:
    return Row(
        id=id,
        line=int(id),
        prompt=(Message(role="user", content=f"prompt {id}"),),
        responses=responses,
        quality=(1.0,) + (0.0,) * (len(responses) - 1),
        swapped=swapped,
        reference=reference,
    )


class Listed:
    """Prefers the response that comes first in a list, after counting what it was asked."""

    name = identity = "listed"
    compares = True

    def __init__(self, order: str, *, backwards: bool = False, stop_after: int = 1000) -> None:
        self.order, self.backwards, self.stop_after = order, backwards, stop_after
        self.asked: list[Question] = []

    def judge(self, questions: Sequence[Question]) -> Iterator[tuple[int, Judgement | Failure]]:
        order = list(enumerate(questions))
        for index, question in reversed(order) if self.backwards else order:
            if len(self.asked) == self.stop_after:
                raise KeyboardInterrupt
            self.asked.append(question)
            a, b = (self.order.index(each) for each in question.responses)
            yield index, Judgement(value=1.0 if a < b else 0.0, text=f"saw {question.responses}")

    def close(self) -> None:
        pass


def judged(judge: object, rows: list[Row], folder: Path, *, both_orders: bool = True) -> Verdicts:
    kept = JudgementFile(folder / "j.jsonl")
    try:
        return hear(judge, rows, kept, quiet, both_orders=both_orders)  # type: ignore[arg-type]
    finally:
        kept.close()


def lists(said: Verdicts) -> list[list[float] | None]:
    return [None if each is None else each.tolist() for each in said.scores]


def test_win_rates_of_a_group(tmp_path: Path) -> None:
    judge = Listed("bca")
    said = judged(judge, [row("1", "a", "b", "c")], tmp_path)
    assert lists(said) == [[0.0, 1.0, 0.5]]
    assert len(judge.asked) == 6  # three pairs in both orders
    assert {each.responses for each in judge.asked} >= {("a", "b"), ("b", "a")}


def test_a_judge_that_always_says_a_decides_nothing(tmp_path: Path) -> None:
    path = tmp_path / "judge.py"
    path.write_text("def always(prompt, a, b):\n    return 'A'\n")
    judge = FunctionJudge(path, "always")
    rows = [row("1", "x", "y"), row("2", "x", "y", swapped=True)]
    said = judged(judge, rows, tmp_path)
    assert lists(said) == [[0.5, 0.5], [0.5, 0.5]]
    assert [each.tolist() for each in said.first_order if each is not None] == [[1, 0], [0, 1]]
    once = judged(judge, rows, tmp_path, both_orders=False)
    assert lists(once) == [[1.0, 0.0], [0.0, 1.0]]


def test_a_tie_in_one_order_only_is_a_tie(tmp_path: Path) -> None:
    path = tmp_path / "judge.py"
    path.write_text("def timid(prompt, a, b):\n    return 'A' if a == 'good' else 'tie'\n")
    rows = [row("1", "good", "bad"), row("2", "bad", "good")]
    said = judged(FunctionJudge(path, "timid"), rows, tmp_path)
    assert lists(said) == [[0.5, 0.5], [0.5, 0.5]]
    assert said.votes == (1, -1)
    assert [each.tolist() for each in said.first_order if each is not None] == [[1, 0], [0.5, 0.5]]


def test_degrees_count_only_where_both_orders_agree(tmp_path: Path) -> None:
    path = tmp_path / "judge.py"
    path.write_text(
        "def first(prompt, a, b):\n    return 0.95 if a == 'x' else 0.6\n"
        "def truly(prompt, a, b):\n    return 0.9 if a == 'x' else 0.3\n"
    )
    rows = [row("1", "x", "y"), row("2", "y", "x")]
    said = judged(FunctionJudge(path, "first"), rows, tmp_path)
    assert lists(said) == [[0.5, 0.5], [0.5, 0.5]] and said.votes == (0, 0)
    said = judged(FunctionJudge(path, "truly"), rows, tmp_path)
    assert said.votes == (2, -2)
    assert said.scores[0] is not None and said.scores[1] is not None
    assert said.scores[0].tolist() == pytest.approx([0.8, 0.2])
    assert said.scores[1].tolist() == pytest.approx([0.2, 0.8])


def test_an_order_that_failed_has_no_vote(tmp_path: Path) -> None:
    path = tmp_path / "judge.py"
    path.write_text("def half(prompt, a, b):\n    return {'x': 'A', 'z': 'B'}[a]\n")
    rows = [row("1", "x", "y"), row("2", "y", "x"), row("3", "x", "z")]
    said = judged(FunctionJudge(path, "half"), rows, tmp_path)
    assert lists(said) == [None, None, [1.0, 0.0]]
    assert said.votes == (1, -1, 2)


def test_the_order_of_answers_changes_nothing(tmp_path: Path) -> None:
    rows = [row("1", "a", "b"), row("2", "b", "c"), row("3", "c", "a")]
    first = judged(Listed("abc"), rows, tmp_path / "one")
    second = judged(Listed("abc", backwards=True), rows, tmp_path / "two")
    assert lists(first) == lists(second) and first.comparisons == second.comparisons


def test_a_stopped_run_goes_on_where_it_stopped(tmp_path: Path) -> None:
    rows = [row(str(number), "a", "b") for number in range(1, 6)]
    with pytest.raises(KeyboardInterrupt):
        judged(Listed("ab", stop_after=4), rows, tmp_path)
    with (tmp_path / "j.jsonl").open("ab") as file:
        file.write(b'{"key": "torn')  # the process died here
    judge = Listed("ab")
    said = judged(judge, rows, tmp_path)
    assert len(judge.asked) == 10 - 4
    assert lists(said) == [[1.0, 0.0]] * 5
    again = Listed("ab")
    assert lists(judged(again, rows, tmp_path)) == lists(said)
    assert again.asked == []


def test_equal_questions_are_asked_once(tmp_path: Path) -> None:
    calls = tmp_path / "calls"
    path = tmp_path / "judge.py"
    path.write_text(
        "def score(prompt, response):\n"
        f"    open({str(calls)!r}, 'a').write('x')\n"
        "    return len(response)\n"
    )
    said = judged(FunctionJudge(path, "score"), [row("1", "aa", "aa"), row("1", "aa")], tmp_path)
    assert lists(said) == [[2.0, 2.0], [2.0]]
    assert calls.read_text() == "x"


def test_a_changed_function_is_asked_again(tmp_path: Path) -> None:
    path = tmp_path / "judge.py"
    path.write_text("def score(prompt, response):\n    return 1\n")
    rows = [row("1", "a", "b")]
    assert lists(judged(FunctionJudge(path, "score"), rows, tmp_path)) == [[1.0, 1.0]]
    path.write_text("def score(prompt, response):\n    return 2\n")
    assert lists(judged(FunctionJudge(path, "score"), rows, tmp_path)) == [[2.0, 2.0]]


def test_what_a_function_gets_wrong_is_told(tmp_path: Path) -> None:
    path = tmp_path / "judge.py"
    path.write_text(
        "def score(prompt, response):\n"
        "    return {'n': float('nan'), 't': 'good', 'r': 1 / 0 if response == 'r' else 0}"
        ".get(response, 0.5)\n"
        "def wide(prompt, a, b):\n    return 3\n"
        "def leave(prompt, response):\n    raise SystemExit(0)\n"
    )
    rows = [row("1", "n", "x"), row("2", "t", "x"), row("3", "r", "x"), row("4", "x", "y")]
    said = judged(FunctionJudge(path, "score"), rows, tmp_path)
    assert lists(said) == [None, None, None, [0.5, 0.5]]
    assert [(each.kind, each.line) for each in said.problems] == [
        (ProblemKind.nonsense, 1),
        (ProblemKind.nonsense, 2),
        (ProblemKind.failed, 3),
    ]
    assert "ZeroDivisionError" in said.problems[2].why
    wide = judged(FunctionJudge(path, "wide"), rows[:1], tmp_path)
    assert lists(wide) == [None] and len(wide.problems) == 2
    left = judged(FunctionJudge(path, "leave"), rows[:1], tmp_path)
    assert lists(left) == [None] and "raised SystemExit" in left.problems[0].why


@pytest.mark.parametrize(
    ("text", "name", "message"),
    [
        (None, "score", "no such file"),
        ("x = 1\n", "score", "no function 'score'; it has none"),
        ("def rate(a, b): return 1\n", "score", "it has rate"),
        ("def score(a): return 1\n", "score", "takes 1 arguments"),
        ("def score(:\n", "score", "SyntaxError"),
    ],
)
def test_functions_of_no_use(tmp_path: Path, text: str | None, name: str, message: str) -> None:
    path = tmp_path / "judge.py"
    if text is not None:
        path.write_text(text)
    with pytest.raises(ValueError, match=message):
        FunctionJudge(path, name)


def test_numbers_of_numpy_are_scores(tmp_path: Path) -> None:
    path = tmp_path / "judge.py"
    path.write_text("import numpy\ndef score(p, r):\n    return numpy.float32(0.5)\n")
    assert lists(judged(FunctionJudge(path, "score"), [row("1", "a")], tmp_path)) == [[0.5]]


def test_a_verifier_needs_references_that_can_be_read(tmp_path: Path) -> None:
    def verify(question: Question, reference: str) -> float:
        if reference == "?":
            raise RewardError("gold cannot be read")
        return float(question.responses[0] == reference)

    judge = VerifierJudge("same", verify, lambda: None)
    rows = [
        row("1", "4", "5", reference="4"),
        row("2", "4", "5"),
        row("3", "4", "5", reference="?"),
    ]
    said = judged(judge, rows, tmp_path)
    assert lists(said) == [[1.0, 0.0], None, None]
    assert [each.why for each in said.problems[::2]] == [
        "no 'reference' (or 'gold', 'answer') to verify against",
        "gold cannot be read",
    ]


def test_recorded_rows_without_scores_are_told() -> None:
    said = recorded_verdicts([row("1", "a", "b")])
    assert said.scores == (None,) and said.problems[0].kind is ProblemKind.no_scores


def test_kept_judgements_hold_no_more_than_they_should(tmp_path: Path) -> None:
    judged(Listed("ab"), [row("1", "a", "b")], tmp_path)
    for line in (tmp_path / "j.jsonl").read_text().splitlines():
        assert json.loads(line).keys() == {"key", "value", "truncated", "text"}


def test_half_a_surrogate_pair_can_be_asked(tmp_path: Path) -> None:
    said = judged(Listed(["a\ud800", "b"]), [row("1", "a\ud800", "b")], tmp_path)  # type: ignore[arg-type]
    assert np.array_equal(said.scores[0], [1.0, 0.0])  # type: ignore[arg-type]
