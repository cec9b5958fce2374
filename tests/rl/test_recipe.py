import math
from collections import Counter
from pathlib import Path

import pytest

from rewards.task import TaskKind
from rl.curriculum import temperature_at
from rl.errors import BadInput
from rl.recipe import RECIPES, from_run, load_recipe, to_yaml
from rl.rollout_config import RolloutConfig
from rollout.tasks import Split, TaskStream


@pytest.mark.parametrize("path", sorted(RECIPES.glob("*.yaml")), ids=lambda p: p.stem)
def test_every_shipped_recipe_loads(path: Path) -> None:
    assert load_recipe(path.stem, []).name == path.stem
    assert load_recipe(str(path), []) == load_recipe(path.stem, [])


def test_the_quickstart_trains_on_mathematics_and_on_programs() -> None:
    stream = TaskStream(load_recipe("quickstart", []).tasks, Split.train)
    assert stream.kinds == {TaskKind.math, TaskKind.code}
    tasks = [stream.at(position) for position in range(340)]
    assert Counter(task.tags[0] for task in tasks if task.kind is TaskKind.code) == {"programs": 40}
    assert {task.token_budget for task in tasks} == {64}


def test_overrides_and_yaml_round_trip(tmp_path: Path) -> None:
    config = load_recipe("quickstart", ["steps=7", "rollout.samples_per_group=4", "sft=null"])
    assert (config.steps, config.rollout.samples_per_group, config.sft) == (7, 4, None)
    (tmp_path / "config.yaml").write_text(to_yaml(config))
    assert from_run(tmp_path, []) == config


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("stepz=3", "unknown key 'stepz'; did you mean 'steps'"),
        ("rollout.samples_pr_group=3", "did you mean 'rollout.samples_per_group'"),
        ("learning_rat=1", "'sft.learning_rate' or 'optimizer.learning_rate'"),
        ("steps", "is not key=value"),
        ("steps=many", "many"),
        ("steps=0", "recipe.steps must be at least 1"),
        ("objective.minibatches=5", "must divide"),
    ],
)
def test_a_bad_override_is_named(override: str, message: str) -> None:
    with pytest.raises(BadInput, match=message.replace("(", r"\(")):
        load_recipe("quickstart", [override])


def test_unknown_recipe_and_file_are_named(tmp_path: Path) -> None:
    with pytest.raises(BadInput, match="did you mean 'quickstart'"):
        load_recipe("quikstart", [])
    with pytest.raises(BadInput, match="no recipe file"):
        load_recipe(str(tmp_path / "none.yaml"), [])


def test_unknown_key_in_a_recipe_file_is_named(tmp_path: Path) -> None:
    path = tmp_path / "mine.yaml"
    path.write_text("defaults: [schema, _self_]\nrollout: {groups: 3}\n")
    with pytest.raises(
        BadInput, match=r"unknown key .rollout.groups.; did you mean .rollout.groups_per_step"
    ):
        load_recipe(str(path), [])


def test_temperature_is_linear() -> None:
    config = RolloutConfig(temperature_start=1.0, temperature_end=0.7)
    assert temperature_at(0, 4, config) == 1.0
    assert math.isclose(temperature_at(3, 4, config), 0.7)
    assert math.isclose(temperature_at(1, 4, config), 0.9)
    assert temperature_at(0, 1, config) == 1.0


def test_a_reward_is_taken_out_of_a_mixture() -> None:
    config = load_recipe(
        "self_critique", ["~rewards.mixture.open.rubric", "rewards.mixture.open.explanations=1.0"]
    )
    assert config.rewards.mixture["open"] == {"explanations": 1.0}


def test_the_judged_families_and_the_critics_words_reach_the_supervised_start() -> None:
    config = load_recipe("self_critique", [])
    judgements, careful = config.tasks.supervised_families
    for family in (judgements, careful):
        assert [each.name for each in family.options["of"]] == ["products", "explanations"]
    assert config.rewards.critic is not None
    assert judgements.options["instruction"] == config.rewards.critic.instruction
    assert careful.options["instruction"] != config.rewards.critic.instruction
