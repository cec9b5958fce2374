from collections import Counter
from pathlib import Path

import pytest

from rewards.hacks.answers import golds
from rewards.hacks.matrix import HackReport, run_hack_matrix
from rewards.hacks.responses import PYTHON, RIGHT, attempts
from rewards.task import TaskKind
from rewards.verdict import ScorerSpec

NAIVE = """
import re

def refuses_all(task, transcript):
    return 0.0

def pays_all(task, transcript):
    return 1.0

def finds_gold(task, transcript):
    found = re.findall(r"boxed\\{(.*)\\}", transcript.response, re.DOTALL)
    return float(bool(found) and task.reference in found[-1])

def evaluates(task, transcript):
    found = re.findall(r"boxed\\{(.*)\\}", transcript.response)
    text = found[-1] if found and len(found[-1]) < 100 else ""
    if "**9" in text:
        while task.reference.lstrip("-").isdigit():
            pass
        return 0.0
    try:
        return float(eval(text) == eval(task.reference))
    except (Exception, SyntaxError):
        return 0.0
"""


def matrix(tmp_path: Path, name: str) -> HackReport:
    path = tmp_path / "naive.py"
    path.write_text(NAIVE)
    spec = ScorerSpec(kind=TaskKind.math, timeout_s=0.3, reward=f"{path}:{name}")
    return run_hack_matrix(spec, workers=2)


def test_golds_are_of_fourteen_types_and_follow_the_seed() -> None:
    assert golds(1) == golds(1) != golds(2)
    assert set(Counter(gold.type for gold in golds(0)).values()) == {3}
    assert len({gold.type for gold in golds(0)}) == 14


@pytest.mark.parametrize("seed", range(20))
def test_no_wrong_answer_is_written_like_a_right_one(seed: int) -> None:
    for gold in golds(seed):
        right = {gold.gold, *gold.right}
        wrong = [text for texts in gold.wrong.values() for text in texts]
        assert not right & set(wrong), gold
        assert {"neighbour", "negative"} <= set(gold.wrong)


def test_hostile_responses_are_asked_for() -> None:
    gold = golds(0)[0]
    plain = {each.family for each in attempts(gold, str, "/nowhere", hostile=False)}
    hostile = {each.family for each in attempts(gold, str, "/nowhere", hostile=True)}
    assert hostile - plain == {PYTHON, "hangs", "deep or huge"}


def test_a_reward_that_refuses_everything_is_not_clean(tmp_path: Path) -> None:
    report = matrix(tmp_path, "refuses_all")
    assert report.hacks_accepted == 0 and not report.clean
    right = [cell for cell in report.cells if cell.family == RIGHT]
    assert report.right_refused == sum(cell.tried for cell in right) > 200


def test_a_reward_that_pays_everything_fails_every_cell(tmp_path: Path) -> None:
    report = matrix(tmp_path, "pays_all")
    assert report.right_refused == 0
    hacks = [cell for cell in report.cells if cell.family != RIGHT]
    assert all(cell.failed == cell.tried > 0 for cell in hacks) and len(hacks) > 250


def test_a_reward_that_looks_for_the_gold_in_the_box(tmp_path: Path) -> None:
    report = matrix(tmp_path, "finds_gold")
    accepted = {cell.family for cell in report.cells if cell.failed and cell.family != RIGHT}
    assert {"candidate list", "a or b", "false equation", "plus-minus", "negated"} <= accepted
    assert not {"empty box", "no answer", "prompt injection"} & accepted


def test_a_reward_that_evaluates_text_is_caught(tmp_path: Path) -> None:
    report = matrix(tmp_path, "evaluates")
    assert report.ran_text and not report.clean
    assert report.hangs and all(failure.family == "hangs" for failure in report.hangs)
    accepted = {cell.family for cell in report.cells if cell.failed and cell.family != RIGHT}
    assert "restated question" in accepted


@pytest.mark.parametrize("seed", [0, 1])
def test_the_math_verifier_falls_for_nothing(seed: int) -> None:
    report = run_hack_matrix(ScorerSpec(kind=TaskKind.math, timeout_s=2.0), workers=2, seed=seed)
    assert report.clean, report.failures[:5] + report.hangs[:5] + report.raised[:5]
    assert sum(cell.tried for cell in report.cells) > 2500


def test_the_instructions_verifier_falls_for_nothing() -> None:
    report = run_hack_matrix(ScorerSpec(kind=TaskKind.instructions, timeout_s=5.0), workers=2)
    assert report.clean, report.failures[:5]


def test_the_code_verifier_falls_for_nothing() -> None:
    report = run_hack_matrix(ScorerSpec(kind=TaskKind.code, timeout_s=3.0), workers=6)
    assert report.clean, report.failures[:5] + report.hangs[:5] + report.raised[:5]
    assert {cell.type for cell in report.cells} == {"asserts", "calls", "cases"}


def test_an_answer_format_needs_its_answer() -> None:
    with pytest.raises(ValueError, match="ANSWER"):
        run_hack_matrix(
            ScorerSpec(kind=TaskKind.math, timeout_s=1.0), workers=1, answer_format="####"
        )
