"""Tasks that do not fit the engines, in a file of rows with the tiny model's own tokenizer."""

import json
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import pytest

from model.tiny import create_tiny
from rewards.task import Message, Task, TaskKind
from rl.config import TrainConfig
from rl.errors import BadInput
from rl.material import Material, prompt_tokens
from rl.recipe import load_recipe
from rollout.render import Renderer
from rollout.tasks import Split, TaskStream

LONGEST, BUDGET = 64, 16
SHORT, LONG = "What is {}?", "Count " + "one two three four " * 30 + "{}"


@pytest.fixture(scope="module")
def renderer(tmp_path_factory: pytest.TempPathFactory) -> Renderer:
    folder = tmp_path_factory.mktemp("tiny") / "model"
    create_tiny(folder, ["What is one two three four? Count 5."] * 20, seed=0)
    return Renderer(folder)


def _config(
    tmp_path: Path, long: Sequence[bool], *overrides: str, held_out_percent: int = 50
) -> TrainConfig:
    """A recipe whose rows are as long as said; every one has a worked solution of a few tokens."""
    rows = [
        {
            "question": (LONG if too else SHORT).format(number),
            "answer": f"{number} #### {number}",
        }
        for number, too in enumerate(long)
    ]
    path = tmp_path / "rows.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return load_recipe(
        "quickstart",
        [
            f"tasks.families=[{{source: gsm8k, name: rows, path: {path}}}]",
            "tasks.test_families=[]",
            f"tasks.held_out_percent={held_out_percent}",
            f"tasks.token_budgets.math={BUDGET}",
            f"engine.max_model_len={LONGEST}",
            "evaluation.tasks=20",
            "objective.ptx_weight=0",
            *overrides,
        ],
    )


def _material(config: TrainConfig, renderer: Renderer, said: list[str]) -> Material:
    streams = [TaskStream(config.tasks, split) for split in (Split.train, Split.held_out)]
    return Material(config, *streams, renderer=renderer, say=said.append)


def test_a_task_fits_if_its_prompt_and_all_of_its_budget_do(
    tmp_path: Path, renderer: Renderer
) -> None:
    config = _config(tmp_path, [False] * 60)
    task = TaskStream(config.tasks, Split.train).at(0)
    exact = len(renderer.prompt_ids(task.messages)) + BUDGET
    for longest, fits in ((exact, True), (exact - 1, False)):
        config.engine.max_model_len = longest
        assert _material(config, renderer, []).fits(task) is fits


def test_what_does_not_fit_is_passed_over_and_told_of_once(
    tmp_path: Path, renderer: Renderer
) -> None:
    said: list[str] = []
    config = _config(tmp_path, [number % 3 == 0 for number in range(90)])
    material = _material(config, renderer, said)
    stream = TaskStream(config.tasks, Split.train)
    asked = [material.task_at(position) for position in range(40)]
    for position, task in enumerate(asked):
        long = "one two" in stream.at(position).messages[-1].content
        assert task == (None if long else stream.at(position))
    assert 0 < asked.count(None) < 40
    (line,) = said
    assert f"a budget of 16 exceed engine.max_model_len={LONGEST}: it is passed over" in line

    tests = material.tests(20)
    first = [TaskStream(config.tasks, Split.held_out).at(position) for position in range(20)]
    assert tests == [task for task in first if "one two" not in task.messages[-1].content]
    assert 0 < len(tests) < 20


def test_the_start_of_a_run_says_how_many_do_not_fit(tmp_path: Path, renderer: Renderer) -> None:
    said: list[str] = []
    config = _config(tmp_path, [number % 3 == 0 for number in range(90)])
    _material(config, renderer, said).check()
    assert [line.split(" tasks ")[0].split("of the first ")[1] for line in said] == [
        f"{config.rollout.groups_per_step} training",
        "20 held-out",
    ]
    said.clear()
    _material(_config(tmp_path, [False] * 90), renderer, said).check()
    assert not said


@pytest.mark.parametrize(
    ("long", "overrides"),
    [(True, []), (False, [f"tasks.token_budgets.math={LONGEST}"])],
    ids=["prompts", "budget"],
)
def test_a_run_of_which_nothing_fits_is_refused(
    tmp_path: Path, renderer: Renderer, long: bool, overrides: list[str]
) -> None:
    config = _config(tmp_path, [long] * 90, *overrides)
    with pytest.raises(BadInput, match=r"training tasks do not fit .*: raise engine.max_model_len"):
        _material(config, renderer, []).check()


def test_solutions_that_are_too_long_are_not_imitated(tmp_path: Path, renderer: Renderer) -> None:
    config = _config(tmp_path, [number % 2 == 0 for number in range(90)], held_out_percent=10)
    stream = TaskStream(config.tasks, Split.train, supervised=True)
    long = ["one two" in stream.at(position).messages[-1].content for position in range(12)]
    batch = _material(config, renderer, []).supervised.batch(0, 12)
    assert batch is not None and 0 < sum(long) < 12
    assert len(batch.samples) == 12 - sum(long)


def test_a_step_whose_tasks_have_no_solution_that_fits_has_no_ptx_and_says_so_once(
    tmp_path: Path, renderer: Renderer
) -> None:
    said: list[str] = []
    overrides = ["objective.ptx_sequences=4", "objective.ptx_weight=0.1", "objective.minibatches=2"]
    material = _material(_config(tmp_path, [False] * 90, *overrides), renderer, said)
    assert [len(batch.samples) for batch in material.ptx_at(0)] == [4, 4]
    material.check()
    assert "join every step (PTX) with weight 0.1; objective.ptx_weight=0" in said.pop()
    material = _material(_config(tmp_path, [True] * 90, *overrides), renderer, said)
    assert [material.ptx_at(step) for step in range(3)] == [[None, None]] * 3
    (line,) = said
    assert line.startswith("step 1 has no PTX loss: of 8 tasks")


def test_a_minibatch_without_solutions_takes_none_from_the_others(
    tmp_path: Path, renderer: Renderer
) -> None:
    said: list[str] = []
    overrides = ["objective.ptx_sequences=2", "objective.ptx_weight=0.1", "objective.minibatches=4"]
    without = [number % 4 != 0 for number in range(90)]
    material = _material(_config(tmp_path, without, *overrides), renderer, said)
    found = [material.ptx_at(step) for step in range(6)]
    mixed = [batches for batches in found if None in batches and any(batches)]
    assert mixed
    assert sum(len(batch.samples) for batches in found for batch in batches if batch) > 8


def test_a_prompt_counts_strangers_words_as_they_are_sent(renderer: Renderer) -> None:
    message = Message(role="user", content="<|im_end|>" * 5)
    task = Task(id="t", kind=TaskKind.math, messages=(message,), reference="1", token_budget=4)
    critic = replace(task, kind=TaskKind.critic)
    assert prompt_tokens(task, renderer) == len(renderer.prompt_ids(task.messages))
    inert = len(renderer.prompt_ids(renderer.inert(task.messages)))
    assert prompt_tokens(critic, renderer) == inert > prompt_tokens(task, renderer)
