import json
from collections import Counter
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import pytest

from rewards.math_answer import quick_verdict
from rewards.task import TaskKind
from rollout.config import FamilyConfig, Source, TasksConfig, TokenBudgets
from rollout.generated import TERSE_ONLY
from rollout.problem import DataError
from rollout.tasks import CYCLE, Split, TaskStream, corpus
from rollout.worked import WRITERS, boxed

OPTIONS = {
    "chain_sum": {"min_terms": 2, "max_terms": 2, "min_digits": 2, "max_digits": 3},
    "products": {"min_terms": 3, "max_terms": 3, "max_digits": 1},
    "leg_counting": {"min_animals": 2, "max_animals": 2, "max_instances": 9},
    "simple_equations": {"max_terms": 2, "max_value": 9, "operators_weights": [0.5, 0.5, 0.0]},
    "gcd": {"min_value": 2, "max_value": 40},
}
HARD = {
    "chain_sum": {"allow_negation": True},
    "products": {"max_terms": 3, "max_digits": 3, "allow_negation": True},
    "leg_counting": {},
    "simple_equations": {},
    "gcd": {"max_numbers": 4},
}


def _family(name: str, **values: object) -> FamilyConfig:
    return FamilyConfig(name=name, options=OPTIONS[name], **values)  # type: ignore[arg-type]


def _mixture() -> TasksConfig:
    families = [_family(name) for name in OPTIONS]
    return TasksConfig(families=[replace(families[0], weight=2.0), *families[1:]], seed=3)


@pytest.mark.parametrize("name", list(WRITERS))
@pytest.mark.parametrize("options", [OPTIONS, HARD], ids=["easy", "hard"])
def test_worked_solutions_are_right(name: str, options: dict[str, dict[str, object]]) -> None:
    family = FamilyConfig(name=name, options=options[name], worked_share=1.0)
    stream = TaskStream(TasksConfig(families=[family]), Split.train)
    for position in range(500):
        task = stream.at(position)
        assert task.solution is not None
        assert task.solution.endswith(" " + boxed(task.reference)), task
        verdict = quick_verdict(task.solution, task.reference)
        assert verdict is not None and verdict.total == 1.0, task


@pytest.mark.parametrize("name", TERSE_ONLY)
def test_generators_without_steps_are_scored_by_value(name: str) -> None:
    stream = TaskStream(TasksConfig(families=[FamilyConfig(name=name)]), Split.train)
    for position in range(20):
        task = stream.at(position)
        assert task.solution == boxed(task.reference)
        verdict = quick_verdict(task.solution, task.reference)
        assert verdict is not None and verdict.total == 1.0


def test_questions_read_as_the_generators_without_boilerplate() -> None:
    stream = TaskStream(_mixture(), Split.train)
    questions = {task.tags[0]: task.messages[0].content for task in map(stream.at, range(12))}
    assert questions["chain_sum"].startswith("State the final answer to the following arithmetic")
    assert questions["products"].endswith(".") and "Give only" not in questions["products"]
    assert questions["leg_counting"].startswith("How many legs are there in total if you have ")
    assert questions["gcd"].startswith("Find the Greatest Common Divisor (GCD) of these numbers: ")


@pytest.mark.parametrize("split", list(Split))
def test_a_position_always_holds_the_same_task(split: Split) -> None:
    stream = TaskStream(_mixture(), split)
    forward = [stream.at(position) for position in range(40)]
    other = TaskStream(_mixture(), split)
    assert [other.at(position) for position in reversed(range(40))] == forward[::-1]
    assert len({task.id for task in forward}) == 40
    assert forward[7].id == f"{forward[7].tags[0]}/{split}/7"
    assert TaskStream(replace(_mixture(), seed=4), split).at(7) != forward[7]


def test_far_positions_cost_no_more() -> None:
    assert TaskStream(_mixture(), Split.train).at(10**9).id.endswith("/train/1000000000")


def test_a_family_that_would_never_come_is_refused() -> None:
    families = [FamilyConfig(name="gcd"), FamilyConfig(name="lcm", weight=0.0004)]
    with pytest.raises(DataError, match=r"families\[lcm\]\.weight=0\.0004 is less than a task in"):
        TaskStream(TasksConfig(families=families), Split.train)
    families[1].weight = 0.001
    stream = TaskStream(TasksConfig(families=families), Split.train)
    assert "lcm" in {stream.at(position).tags[0] for position in range(2000)}


def test_families_come_by_weight_and_evenly() -> None:
    stream = TaskStream(_mixture(), Split.train)
    names = [stream.problem(position)[0].config.name for position in range(CYCLE)]
    counts = Counter(names)
    assert counts["chain_sum"] == pytest.approx(2 * counts["gcd"], abs=2)
    assert set(names[:6]) == set(OPTIONS)


def test_solutions_are_worked_or_terse_by_share() -> None:
    family = _family("chain_sum", worked_share=0.25)
    stream = TaskStream(TasksConfig(families=[family]), Split.train)
    terse = sum(task.solution == boxed(task.reference) for task in map(stream.at, range(400)))
    assert 270 < terse < 330


def test_no_question_is_both_trained_on_and_tested() -> None:
    config = TasksConfig(families=[_family("products"), _family("gcd")], held_out_percent=20)
    train, held_out = TaskStream(config, Split.train), TaskStream(config, Split.held_out)
    tested = [held_out.at(position).messages[0].content for position in range(100)]
    assert len(set(tested)) == 100
    trained = {train.at(position).messages[0].content for position in range(4000)}
    assert not trained & set(tested)


def test_other_families_may_be_tested_on() -> None:
    config = TasksConfig(families=[_family("gcd")], test_families=[_family("products")])
    assert TaskStream(config, Split.train).at(0).tags == ("gcd",)
    held_out = TaskStream(config, Split.held_out)
    same = TaskStream(TasksConfig(families=[_family("products")]), Split.held_out)
    assert [held_out.at(n) for n in range(9)] == [same.at(n) for n in range(9)]
    assert "gcd" not in {tag for n in range(9) for tag in held_out.at(n).tags}


def _file(path: Path, questions: Sequence[str]) -> str:
    rows = ({"question": question, "answer": "#### 1"} for question in questions)
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return str(path)


def test_all_of_a_whole_file_is_tested_on_and_none_of_it_trained_on(tmp_path: Path) -> None:
    both = [f"in both files: {n}" for n in range(5)]
    own = [f"trained on: {n}" for n in range(20)]
    tests = [f"tested on: {n}" for n in range(10)]
    train = FamilyConfig(source=Source.gsm8k, name="a", path=_file(tmp_path / "a", [*own, *both]))
    test = replace(train, name="b", path=_file(tmp_path / "b", [*tests, *both]), whole=True)
    config = TasksConfig(families=[train], test_families=[test], held_out_percent=0)

    def asked(stream: TaskStream, count: int) -> list[str]:
        return [stream.at(position).messages[0].content for position in range(count)]

    assert asked(TaskStream(config, Split.held_out), 15) == [*tests, *both]
    assert sorted(asked(TaskStream(config, Split.train), 20)) == sorted(own)
    assert sorted(asked(TaskStream(config, Split.train, supervised=True), 20)) == sorted(own)
    some = TaskStream(replace(config, held_out_percent=30), Split.train)
    assert 0 < len(set(asked(some, 60))) < 20
    with pytest.raises(DataError, match="no more distinct held-out questions"):
        TaskStream(config, Split.held_out).at(15)
    part = replace(config, test_families=[test, replace(test, name="c", whole=False)])
    for other in (part, replace(config, test_families=[])):
        with pytest.raises(DataError, match="held_out_percent=0 leaves nothing for split held_out"):
            TaskStream(other, Split.held_out)
    with pytest.raises(ValueError, match=r"families\[b\]\.whole is for tasks\.test_families"):
        replace(config, families=[test])
    with pytest.raises(ValueError, match=r"families\[gcd\]\.whole is for files"):
        _family("gcd", whole=True)


def test_judgements_are_imitated_and_never_asked() -> None:
    judged = FamilyConfig(
        source=Source.judgements, name="j", options={"of": [{"name": "products"}]}
    )
    config = TasksConfig(families=[_family("products")], supervised_families=[judged])
    stream = TaskStream(config, Split.train, supervised=True)
    assert stream.kinds == {TaskKind.math, TaskKind.critic}
    message = r"\[j\].* move it to tasks\.supervised_families"
    with pytest.raises(DataError, match=message):
        TaskStream(replace(config, families=[judged]), Split.train)
    with pytest.raises(DataError, match=message):
        TaskStream(replace(config, test_families=[judged]), Split.held_out)


def test_a_small_family_runs_out_of_held_out_questions() -> None:
    stream = TaskStream(TasksConfig(families=[_family("products")]), Split.held_out)
    with pytest.raises(DataError, match=r"families\[products\] has no more distinct held-out"):
        stream.at(1000)


@pytest.mark.parametrize(
    ("config", "split", "message"),
    [
        (TasksConfig(), Split.train, "families is empty"),
        (TasksConfig(families=[_family("gcd")], held_out_percent=0), Split.held_out, "=0 leaves"),
        (TasksConfig(families=[_family("gcd")], held_out_percent=100), Split.train, "=100 leaves"),
    ],
)
def test_refuses_an_empty_split(config: TasksConfig, split: Split, message: str) -> None:
    with pytest.raises(DataError, match=message):
        TaskStream(config, split)


def test_corpus_holds_questions_and_worked_solutions() -> None:
    texts = list(corpus(_mixture(), 10))
    assert len(texts) == 20
    assert all("=" in text and r"\boxed{" in text for text in texts[1::2])


def test_programs_are_code_tasks_with_a_share_of_careless_solutions() -> None:
    family = FamilyConfig(source=Source.programs, name="programs", worked_share=0.5)
    tasks = list(map(TaskStream(TasksConfig(families=[family]), Split.train).at, range(400)))
    assert {task.kind for task in tasks} == {TaskKind.code}
    assert all(len(json.loads(task.reference)["tests"]) == 4 for task in tasks)
    needed = sum("(" in (task.solution or "").partition("return")[2] for task in tasks)
    assert 40 < needed < 110  # 3 in 8 programs need parentheses, and half of those have them


def test_a_budget_is_the_familys_or_that_of_the_kind() -> None:
    families = [
        _family("gcd"),
        _family("gcd", token_budget=5),
        FamilyConfig(source=Source.programs, name="programs"),
    ]
    config = TasksConfig(families=families, token_budgets=TokenBudgets(math=64, code=48))
    assert [task.token_budget for task in map(TaskStream(config, Split.train).at, range(3))] == [
        64, 5, 48,
    ]  # fmt: skip
