"""Benchmarks' own figures, worked by hand or by a naive version."""

import numpy as np
import pytest

from rewards.preference.comparisons import compare, credits
from rewards.preference.published import Judged, Published, published, ties_score
from rewards.preference.records import Row, Shape
from rewards.task import Message


def row(id: str, good: list[int], subset: str = "", swapped: bool = False) -> Row:
    return Row(
        id=id,
        line=1,
        prompt=(Message(role="user", content="?"),),
        responses=tuple(f"{id}{i}" for i in range(len(good))),
        quality=tuple(float(each) for each in good),
        subset=subset,
        swapped=swapped,
    )


def figure(shape: Shape, rows: list[Row], scores: list[list[float]]) -> Published:
    arrays = [np.array(each, dtype=float) for each in scores]
    made = compare(rows, arrays)
    found = published(shape, Judged(rows, arrays, credits(shape, rows, arrays, made), made, rows))
    assert found is not None
    return found


def test_judgebench_counts_a_tie_for_b() -> None:
    rows = [row("a", [1, 0], "Math"), row("b", [0, 1], "Math"), row("c", [0, 1], "Coding")]
    found = figure(Shape.judgebench, rows, [[1.0, 1.0], [2.0, 2.0], [3.0, 1.0]])
    assert found.value == pytest.approx(1 / 3)
    assert found.parts == {"Math": 0.5, "Coding": 0.0}


def voted(rows: list[Row], votes: list[int], asked: list[Row]) -> Published:
    scores = [np.array([0.5, 0.5])] * len(rows)
    judged = Judged(rows, scores, np.full(len(rows), 0.5), compare(rows, scores), asked, votes)
    found = published(Shape.judgebench, judged)
    assert found is not None
    return found


def test_judgebench_in_both_orders_has_ties() -> None:
    rows = [row("b", [0, 1], "Math")]
    assert voted(rows, [0], rows).value == 0.0


def test_judgebench_counts_a_verdict_beside_a_tie() -> None:
    rows = [row("a", [1, 0], "Math"), row("b", [0, 1], "Math"), row("c", [0, 1], "Coding")]
    found = voted(rows, [1, -1, 1], rows)
    assert found.parts == {"Math": 1.0, "Coding": 0.0} and found.value == pytest.approx(2 / 3)


def test_judgebench_is_of_all_pairs() -> None:
    rows = [row("a", [1, 0], "Math"), row("b", [0, 1], "Math"), row("c", [0, 1], "Coding")]
    found = voted(rows[:1], [2, 0, -1], rows)
    assert found.value == pytest.approx(2 / 3)
    assert found.parts == {"Math": 0.5, "Coding": 1.0}


def test_judgebench_has_no_figure_for_pairs_without_scores() -> None:
    rows = [row("a", [1, 0]), row("b", [0, 1])]
    scores = [np.array([1.0, 0.0])]
    made = compare(rows[:1], scores)
    judged = Judged(rows[:1], scores, np.array([1.0]), made, rows)
    assert published(Shape.judgebench, judged) is None


def test_reward_bench_weighs_math_like_code() -> None:
    rows = [row("m", [1, 0], "math-prm"), row("p", [1, 0], "hep-python")]
    rows += [row("q", [1, 0], "hep-python"), row("e", [1, 0], "alpacaeval-easy")]
    found = figure(Shape.reward_bench, rows, [[1, 0], [0, 1], [1, 0], [1, 1]])
    assert found.parts["Reasoning"] == pytest.approx((984 * 1.0 + 2 * 0.5) / 986)
    assert found.parts["Chat"] == 0.0  # a tie is wrong
    assert found.value == pytest.approx(np.mean(list(found.parts.values())))


def test_rm_bench_levels() -> None:
    # Chosen scores 3, 2, 1 and rejected 0, 1.5, 2.5 by growing style.
    rows = [row("x", [1, 1, 1, 0, 0, 0], "chat")]
    found = figure(Shape.rm_bench, rows, [[3, 2, 1, 0, 1.5, 2.5]])
    assert found.parts["hard"] == pytest.approx(2 / 3)  # (0,1) and (0,2) right, (1,2) wrong
    assert found.parts["normal"] == pytest.approx(2 / 3)
    assert found.parts["easy"] == pytest.approx(2 / 3)
    both = [*rows, row("r", [1] * 3 + [0] * 3, "safety-refuse")]
    both.append(row("s", [1] * 3 + [0] * 3, "safety-response"))
    found = figure(
        Shape.rm_bench, both, [[3, 2, 1, 0, 1.5, 2.5], [1, 1, 1, 0, 0, 0], [0, 0, 0, 1, 1, 1]]
    )
    assert found.parts["safety"] == 0.5
    assert found.value == pytest.approx((6 / 9 + 0.5) / 2)


def test_reward_bench_2_shares_equal_scores() -> None:
    rows = [row("a", [1, 0, 0, 0], "Math"), row("b", [1, 0, 0, 0], "Focus")]
    found = figure(Shape.reward_bench_2, rows, [[2, 2, 1, 0], [3, 2, 1, 0]])
    assert found.parts == {"Math": 0.5, "Focus": 1.0}
    assert found.value == 0.75


def test_ties_against_the_rule_spelled_out() -> None:
    random = np.random.default_rng(2)
    rows, scores = [], []
    for number in range(40):
        rows += [row(f"ref:{number}", [1, 0, 0]), row(f"tied:{number}", [1, 1, 1, 0, 0])]
        ref, tied = random.normal(size=3), random.normal(size=5)
        scores += [ref + np.array([2, 0, 0]), tied + np.array([3, 3, 3, 0, 0])]
    accurate_ref, accurate_tied, preferred, hard, draws = [], [], [], [], []
    for ref, tied in zip(scores[::2], scores[1::2], strict=True):
        gap_ref = ref[0] - max(ref[1:])
        gap_tied = min(tied[:3]) - max(tied[3:])
        spread = max(tied[:3]) - min(tied[:3])
        accurate_ref.append(gap_ref > 0)
        accurate_tied.append(gap_tied > 0)
        preferred.append(gap_tied > spread)
        hard.append(min(gap_ref, gap_tied) > spread)
        draws.append(np.tanh(min(gap_ref, gap_tied) / spread - 1))
    expected = 0.3 * np.mean(accurate_tied) + 0.3 * np.mean(accurate_ref)
    expected += 0.2 * np.mean(preferred) + 0.2 * np.mean(hard) + 0.01 * np.mean(draws)
    assert 0.3 < expected < 0.95
    assert ties_score(rows, scores) == pytest.approx(expected)


def test_ties_without_spread_or_reference() -> None:
    tied, ref = row("tied:1", [1, 1, 0]), row("ref:1", [1, 0])
    same = [np.array([1.0, 1.0, 0.0]), np.array([1.0, 0.0])]
    assert ties_score([tied, ref], same) == pytest.approx(0.6 + 0.4 + 0.01)
    assert ties_score([tied], same[:1]) == pytest.approx(0.3)
