"""KEY=VALUE over a recipe and over a run's own configuration: one language."""

from pathlib import Path

import pytest

from rl.config import TrainConfig
from rl.errors import BadInput
from rl.recipe import from_run, load_recipe, to_yaml


def _over_run(tmp_path: Path, recipe: str, overrides: list[str]) -> TrainConfig:
    (tmp_path / "config.yaml").write_text(to_yaml(load_recipe(recipe, [])))
    return from_run(tmp_path, overrides)


@pytest.mark.parametrize(
    "overrides",
    [
        ["steps=7", "rollout.samples_per_group=4", "sft=null"],
        ["sft.max_steps=10"],
        ["sft={max_steps: 10}"],
        ["sft=null", "sft.max_steps=3"],
        ["~sft"],
        ["rewards.critic.rubrics=[k2]"],
        ["rewards.critic={rubrics: [k2], token_budget: 64}"],
        ["+rewards.mixture.math={math: 1.0, mine.py\\:f: 0.1}"],
        ["rewards.mixture.math.format=0.1"],
        ["name='007'", "run_dir='a,b'"],
        ["run_dir='a=b'"],
        ["tasks.families[0].weight=3", "tasks.families.1.weight=2"],
        ["~tasks.test_families"],
    ],
)
@pytest.mark.parametrize("recipe", ["quickstart", "moonlight_16b"])
def test_a_recipe_and_a_run_read_the_same(
    tmp_path: Path, recipe: str, overrides: list[str]
) -> None:
    if recipe == "moonlight_16b" and "tasks" in overrides[0]:
        overrides = overrides[:1]
    try:
        expected = load_recipe(recipe, overrides)
    except BadInput as error:
        with pytest.raises(BadInput) as raised:
            _over_run(tmp_path, recipe, overrides)
        assert str(raised.value).partition("yaml: ")[2] == str(error).partition("yaml: ")[2]
    else:
        assert _over_run(tmp_path, recipe, overrides) == expected


def test_a_section_that_the_recipe_leaves_out_comes_with_its_defaults() -> None:
    assert load_recipe("moonlight_16b", []).sft is None
    sft = load_recipe("moonlight_16b", ["sft.max_steps=10"]).sft
    assert sft is not None and sft.max_steps == 10
    critic = load_recipe("quickstart", ["rewards.critic.rubrics=[k2]"]).rewards.critic
    assert critic is not None and critic.rubrics == ["k2"]
    both = load_recipe("quickstart", ["sft=null", "sft.max_steps=3"]).sft
    assert both is not None and both.max_steps == 3


@pytest.mark.parametrize(
    ("override", "said"),
    [
        ("run_dir=a,b", "run_dir has several values: put a text with commas into quotes"),
        ("steps={a: 1}", "steps: "),
        ("steps='???'", "Missing mandatory value: steps"),
        ("sft.max_step=3", "unknown key 'sft.max_step'; did you mean 'sft.max_steps'?"),
        ("~tasks", "tasks.families is empty"),
    ],
)
def test_what_cannot_be_read_is_refused_in_one_sentence(override: str, said: str) -> None:
    with pytest.raises(BadInput) as raised:
        load_recipe("moonlight_16b", [override])
    assert said in str(raised.value)


def test_a_recipe_of_ones_own_builds_on_one_of_ours(tmp_path: Path) -> None:
    mine = tmp_path / "mine.yaml"
    mine.write_text("defaults: [moonlight_16b, _self_]\nname: mine\nsteps: 3\n")
    config = load_recipe(str(mine), ["seed=5"])
    shipped = load_recipe("moonlight_16b", [])
    assert (config.name, config.steps, config.seed) == ("mine", 3, 5)
    assert config.policy == shipped.policy and config.optimizer == shipped.optimizer
