import json
import math
import random
import re
from collections import Counter

import pytest

from rewards.critic_verdict import PairVerdict, read_verdict
from rewards.explanations import quality
from rewards.math_answer import MathVerifier
from rewards.rubric import RUBRICS, Rubric
from rewards.rubric_files import open_rubrics
from rewards.task import TaskKind
from rollout.config import FamilyConfig, Source, TasksConfig
from rollout.explanations import make_explanation
from rollout.judgements import spoil
from rollout.problem import DataError, Problem
from rollout.sources import open_source
from rollout.tasks import Split, TaskStream

PRODUCTS = {"name": "products", "options": {"min_terms": 2, "max_terms": 3, "max_digits": 1}}
EXPLANATIONS = {"source": "explanations", "name": "explanations"}
WORDS = {1.0: "A", 0.0: "B", 0.5: "tie"}


def _family(**options: object) -> FamilyConfig:
    given = {"of": [PRODUCTS, EXPLANATIONS], "rubrics": ["tiny"], "instruction": "Judge."}
    return FamilyConfig(source=Source.judgements, name="judgements", options={**given, **options})


def _answers(problem: Problem) -> tuple[str, str]:
    text = problem.messages[-1].content
    first = text.split("<answer_A>\n")[1].split("\n</answer_A>")[0]
    return first, text.split("<answer_B>\n")[1].split("\n</answer_B>")[0]


def _rubrics() -> tuple[Rubric, ...]:
    return open_rubrics(["tiny"], RUBRICS)


def test_explanations_are_asked_and_answered() -> None:
    all_made = [make_explanation(random.Random(seed)) for seed in range(500)]
    assert all(quality(made.careful, made.result) == 1.0 for made in all_made)
    values = [quality(made.careless, made.result) for made in all_made]
    assert 0.1 < sum(values) / 500 < 0.3  # half are right, half show steps, two sentences too long
    assert 0.0 in values and 1.0 in values


def test_careful_judgements_are_right_and_hasty_ones_name_the_shorter() -> None:
    source = open_source(_family(), 0)
    shorter, sides = [], Counter[str]()
    for index in range(600):
        problem = source.problem(index)
        assert problem.kind is TaskKind.critic and problem.worked and problem.hasty
        careful = read_verdict(problem.worked, _rubrics())
        hasty = read_verdict(problem.hasty, _rubrics())
        assert isinstance(careful, PairVerdict) and isinstance(hasty, PairVerdict)
        assert WORDS[careful.better] == problem.reference
        sides[problem.reference] += 1
        first, second = _answers(problem)
        if len(first) != len(second):
            shorter.append(hasty.better == float(len(first) < len(second)))
    assert len(shorter) > 300 and all(shorter)
    assert abs(sides["A"] - sides["B"]) < 80 and sides["tie"] > 20


def test_what_is_spoilt_is_wrong_by_the_verifier() -> None:
    verifier = MathVerifier()
    source = open_source(FamilyConfig(name="products", options=PRODUCTS["options"]), 0)
    for index in range(300):
        problem = source.problem(index)
        assert problem.worked is not None
        assert verifier.verify(problem.worked, problem.reference).total == 1.0
        spoilt = spoil(random.Random(index), problem.worked)
        assert verifier.verify(spoilt, problem.reference).total == 0.0, spoilt
    verifier.close()


def test_judgements_about_explanations_agree_with_their_true_quality() -> None:
    source = open_source(_family(of=[EXPLANATIONS]), 0)
    for index in range(200):
        problem = source.problem(index)
        request = problem.messages[-1].content.split("<request>\n")[1].split("\n")[0]
        result = math.prod(int(word) for word in re.findall(r"\d+", request))
        first, second = (quality(answer, result) for answer in _answers(problem))
        expected = "tie" if first == second else "A" if first > second else "B"
        assert problem.reference == expected
        assert problem.worked is not None and f" {result} A " in problem.worked


def test_imitated_families_join_the_supervised_stream_alone() -> None:
    config = TasksConfig(families=[FamilyConfig(name="products")], supervised_families=[_family()])
    kinds = {TaskStream(config, Split.train, supervised=True).at(p).kind for p in range(4)}
    assert kinds == {TaskKind.math, TaskKind.critic}
    assert {TaskStream(config, Split.train).at(p).kind for p in range(4)} == {TaskKind.math}
    assert TaskStream(config, Split.held_out).kinds == {TaskKind.math}


def test_open_ended_tasks_keep_their_truth_to_themselves() -> None:
    config = TasksConfig(families=[FamilyConfig(source=Source.explanations, name="explanations")])
    task = TaskStream(config, Split.train).at(0)
    assert task.kind is TaskKind.open
    assert set(json.loads(task.reference)) == {"result"}
    assert str(json.loads(task.reference)["result"]) not in task.messages[-1].content


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"of": []}, "of is empty"),
        ({"of": [{"name": "lcm"}]}, "no spoilt answers"),
        ({"of": [{"source": "gsm8k", "name": "x", "path": "y"}]}, "no spoilt answers"),
        ({"of": [{"nam": "products"}]}, "is no family"),
        ({"rubrics": ["tinny"]}, "tiny"),
        ({"rubric": ["tiny"]}, "did you mean 'rubrics'"),
    ],
)
def test_bad_options_are_refused_with_their_name(options: dict[str, object], said: str) -> None:
    with pytest.raises(DataError, match=said):
        open_source(_family(**options), 0)
