"""The report of a judge: right counts, honest ties, loud warnings, escaped texts."""

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from rewards.preference.comparisons import compare, group_by_prompt
from rewards.preference.judge_comparison import compare_judges, read_result
from rewards.preference.judging import Comparison, Verdicts
from rewards.preference.page import render_page
from rewards.preference.records import Preferences, Problem, ProblemKind, Row, Shape
from rewards.preference.report import JudgeReport, make_report
from rewards.task import Message


def row(
    id: str, quality: tuple[float, ...] = (1.0, 0.0), texts: tuple[str, ...] = (), subset: str = ""
) -> Row:
    return Row(
        id=id,
        line=1,
        prompt=(Message(role="user", content=f"prompt of {id}"),),
        responses=texts or tuple(f"{id}{'x' * place}" for place in range(len(quality))),
        quality=quality,
        subset=subset,
    )


def source(rows: list[Row], shape: Shape = Shape.judgebench) -> Preferences:
    return Preferences(
        shape=shape,
        rows=tuple(rows),
        problems=(),
        read=len(rows),
        digest="d",
    )


def report(
    rows: list[Row], scores: list[list[float] | None], shape: Shape = Shape.judgebench
) -> JudgeReport:
    made = tuple(None if each is None else np.array(each) for each in scores)
    problems = tuple(
        Problem(kind=ProblemKind.no_scores, line=1, id=row.id, why="none")
        for row, each in zip(rows, scores, strict=True)
        if each is None
    )
    return make_report(
        "data", "judge", source(rows, shape), Verdicts(scores=made, problems=problems)
    )


def test_ties_are_neither_right_nor_wrong() -> None:
    rows = [row("a"), row("b"), row("c", (0.0, 1.0)), row("d")]
    found = report(rows, [[2, 1], [1, 1], [2, 1], [3, 2]])
    assert (found.overall.right, found.overall.wrong, found.overall.ties) == (2, 1, 1)
    assert found.overall.accuracy.value == 2.5 / 4
    assert found.overall.ties_wrong.value == 2 / 4
    assert found.overall.decided.value == pytest.approx(2 / 3)
    assert found.rows.verdicts == ("A", "=", "A", "A")
    assert found.rows.credits == (1.0, 0.5, 0.0, 1.0)


def test_a_row_without_a_judgement_is_in_no_figure_and_told() -> None:
    found = report([row("a"), row("b")], [[2, 1], None])
    assert found.judged == 1 and found.overall.rows == 1
    assert any("1 of 2 rows are not judged" in warning for warning in found.warnings)
    assert found.problems[0].kind is ProblemKind.no_scores
    with pytest.raises(ValueError, match="judged none of the 1 rows"):
        report([row("a")], [None])


def test_judgebench_says_what_its_own_figure_is_of() -> None:
    found = report([row("a"), row("b")], [[2, 1], None])
    assert found.published is None
    assert any("JudgeBench's own is of all: not given" in each for each in found.warnings)
    said = Verdicts(
        scores=(np.array([1.0, 0.0]), None),
        problems=(),
        comparisons=(Comparison(row=0, first=0, second=1, preference=1.0, swapped=1.0),),
        votes=(2, 1),
    )
    found = make_report("data", "judge", source([row("a"), row("b")]), said)
    assert found.published is not None and found.published.value == 1.0
    assert any("in no figure but JudgeBench's own" in each for each in found.warnings)


def test_a_recorded_judge_that_always_says_a_is_called_out() -> None:
    rows = [row(str(n), (1.0, 0.0) if n % 2 else (0.0, 1.0)) for n in range(20)]
    found = report(rows, [[1, 0]] * 20)
    assert found.position is not None
    assert found.position.says_a.value == 1.0 and found.position.good_on_a.value == 0.5
    assert found.position.right_if_good_on_a.value == 1.0
    assert found.position.right_if_good_on_b.value == 0.0
    assert any("ALWAYS SAYS A" in warning for warning in found.warnings)
    flat = report(rows, [[1, 1]] * 20)
    assert any("decides nothing" in warning for warning in flat.warnings)
    assert flat.overall.ties == 20


def test_length_bias_by_hand() -> None:
    long, short = "x" * 9, "y"
    rows = [
        row("a", (1.0, 0.0), (long, short)),
        row("b", (1.0, 0.0), (short, long)),
        row("c", (0.0, 1.0), (long, short)),
        row("d", (1.0, 0.0), (short, "z")),
    ]
    found = report(rows, [[1, 0], [0, 1], [1, 0], [1, 0]]).length  # always for the longer
    assert found.good_longer.count == 1 and found.good_longer.of == 3
    assert found.prefers_longer == 1.0
    assert found.excess.value == pytest.approx(2 / 3)
    assert found.right_if_good_longer.value == 1.0
    assert found.right_if_good_shorter.value == 0.0
    assert found.equal_length == 1


def test_orders_of_a_comparing_judge() -> None:
    rows = [row("a"), row("b"), row("c")]
    comparisons = (
        Comparison(row=0, first=0, second=1, preference=1.0, swapped=1.0),  # right twice
        Comparison(row=1, first=0, second=1, preference=1.0, swapped=0.0),  # the first shown
        Comparison(row=2, first=0, second=1, preference=0.0, swapped=0.0),  # wrong twice
    )
    scores = (np.array([1.0, 0.0]), np.array([0.5, 0.5]), np.array([0.0, 1.0]))
    said = Verdicts(scores=scores, problems=(), comparisons=comparisons, votes=(2, 0, -2))
    said = replace(said, words=("w", "v", "u"))
    found = make_report("data", "judge", source(rows), said)
    assert found.orders is not None
    assert found.orders.consistent.count == 2
    assert found.orders.to_first_shown == 1 and found.orders.to_second_shown == 0
    assert found.orders.picks_first_shown.count == 4 and found.orders.picks_first_shown.of == 6
    assert found.orders.first_order == pytest.approx(2 / 3)
    assert found.overall.accuracy.value == 0.5
    assert found.worst[0].id == "c" and found.worst[0].words == "u"


def test_scored_rows_of_one_prompt_are_compared() -> None:
    one = (Message(role="user", content="same"),)
    rows = [replace(row(str(n), (q,)), prompt=one) for n, q in enumerate((3.0, 1.0, 2.0))]
    rows = [replace(each, recorded=(s,)) for each, s in zip(rows, (0.9, 0.5, 0.1), strict=True)]
    (grouped,) = group_by_prompt(rows)
    assert grouped.quality == (3.0, 1.0, 2.0) and grouped.recorded == (0.9, 0.5, 0.1)
    found = report([grouped], [[0.9, 0.5, 0.1]], Shape.scored)
    assert found.overall.comparisons == 3 and found.overall.right == 2
    assert found.scored is not None
    assert found.scored.spearman == pytest.approx(0.5)
    assert found.scored.area_under_curve is None


def test_a_response_that_was_compared_with_none_has_no_win_rate() -> None:
    rows = [row("a", (3.0, 1.0)), row("b", (9.0,))]
    comparisons = (Comparison(row=0, first=0, second=1, preference=1.0, swapped=1.0),)
    scores = (np.array([1.0, 0.0]), np.array([0.0]))
    said = Verdicts(scores=scores, problems=(), comparisons=comparisons, votes=(2, 0))
    found = make_report("data", "judge", source(rows, Shape.scored), said).scored
    assert found is not None and found.responses == 2
    assert found.pearson == pytest.approx(1.0)
    alone = Verdicts(scores=scores[1:], problems=(), votes=(0,))
    assert make_report("data", "judge", source(rows[1:], Shape.scored), alone).scored is None
    scored = report(rows, [[1, 0], [0]], Shape.scored).scored
    assert scored is not None and scored.responses == 3


def test_rows_in_which_nothing_can_be_decided_are_left_out() -> None:
    rows = [row("a", (2.0,)), row("b", (2.0, 1.0))]
    found = report(rows, [[1], [2, 1]], Shape.scored)
    assert found.overall.rows == 1 and found.rows.credits == (None, 1.0)


def test_comparisons_know_their_sides() -> None:
    rows = [row("a", (0.0, 1.0)), replace(row("b", (1.0, 0.0)), swapped=True)]
    made = compare(rows, [np.array([1.0, 3.0]), np.array([1.0, 3.0])])
    assert made.margin.tolist() == [2.0, -2.0]
    assert made.good_first.tolist() == [False, False]
    assert made.length.tolist() == [1.0, -1.0]


def test_subsets_only_where_there_are_some() -> None:
    assert report([row("a")], [[1, 0]]).subsets == {}
    found = report([row("a", subset="s"), row("b", subset="t")], [[1, 0], [0, 1]])
    assert {name: each.accuracy.value for name, each in found.subsets.items()} == {"s": 1, "t": 0}


def test_the_page_escapes_what_it_did_not_write() -> None:
    hostile = "<script>alert(1)</script>"
    rows = [
        row("a", (1.0, 0.0), (f"{hostile}good", f"{hostile}bad"), subset=f"{hostile}s"),
        row(hostile, (1.0, 0.0), ("1", "2"), subset="other"),
    ]
    made = report(rows, [[0, 1], [0, 3]])
    page = render_page(replace(made, judge=hostile, data=hostile, warnings=(hostile,)))
    assert "<script" not in page and "&lt;script&gt;" in page
    assert page.count("<svg") == 2 and "Worst disagreements" in page
    assert "src=" not in page and "href=" not in page  # one file, nothing to fetch


def test_a_page_of_best_of_n_and_of_a_perfect_judge() -> None:
    rows = [row("a", (0.0, 1.0, 0.0)), row("b", (1.0, 0.0, 0.0))]
    page = render_page(report(rows, [[0, 1, 0], [1, 0, 0]], Shape.best_of_n))
    assert "RM@3" in page and "never wrong" in page


def kept(path: Path, judge: str, credits: list[float], verdicts: list[str], digest: str) -> Path:
    ids = [f"r{place}" for place in range(len(credits))]
    rows = {"ids": ids, "credits": credits, "verdicts": verdicts}
    path.write_text(json.dumps({"judge": judge, "data": "d", "digest": digest, "rows": rows}))
    return path


def test_two_judges_by_hand(tmp_path: Path) -> None:
    first = kept(tmp_path / "a.json", "one", [1, 1, 1, 0.5, 0], list("AAB=A"), "x")
    second = kept(tmp_path / "b.json", "two", [1, 0, 0, 1, 0, 1], list("ABABAA"), "y")
    found = compare_judges(read_result(first), read_result(second))
    assert found.rows == 5 and found.only_in_second == 1 and not found.same_data
    assert (found.both_right, found.first_right_only) == (1, 2)
    assert (found.second_right_only, found.neither_right) == (1, 1)
    assert found.mcnemar_p == 1.0
    assert found.difference.value == pytest.approx((3.5 - 2) / 5)
    assert found.same_verdict.count == 2 and found.first_right_examples == ("r1", "r2")


def test_results_that_are_none(tmp_path: Path) -> None:
    (tmp_path / "x.json").write_text('{"rows": 3}')
    with pytest.raises(ValueError, match="no result of temper eval-reward"):
        read_result(tmp_path / "x.json")
    with pytest.raises(ValueError, match="cannot read"):
        read_result(tmp_path / "y.json")
