import math
import re
from collections import Counter
from dataclasses import replace
from functools import reduce
from pathlib import Path
from typing import get_args, get_origin

import pytest

from rewards.task import TaskKind
from rl.curriculum import temperature_at
from rl.errors import BadInput
from rl.recipe import QUOTING, RECIPES, changes, from_run, load_recipe, to_yaml
from rl.recipe_keys import ELSEWHERE, INSTEAD_OF_KL, KL, known_keys
from rl.rollout_config import RolloutConfig
from rollout.sources import expand
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


def test_what_differs_between_two_recipes_is_named() -> None:
    before = load_recipe("quickstart", ["steps=7"])
    more = ["seed=7", "objective.kind=grpo", "sft=null", "optimizer.learning_rate=5e-4"]
    now = load_recipe("quickstart", ["steps=7", *more, "tasks.families=[{name: gcd}]"])
    assert changes(before, before) == []
    told = dict(line.split(": ", 1) for line in changes(before, now))
    assert told["seed"] == "0 -> 7"
    assert told["objective.kind"] == "k2 -> grpo"
    assert told["optimizer.learning_rate"].endswith(" -> 0.0005")
    assert told["tasks.families"].endswith(" ...") and len(told["tasks.families"]) < 130
    assert "steps" not in told and any(key.startswith("sft") for key in told)


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("stepz=3", "unknown key 'stepz'; did you mean 'steps'"),
        ("rollout.samples_pr_group=3", "did you mean 'rollout.samples_per_group'"),
        ("learning_rat=1", "'sft.learning_rate' or 'optimizer.learning_rate'"),
        ("steps", "is not key=value"),
        ("steps=many", "many"),
        ("steps=0", "steps must be at least 1"),
        ("objective.minibatches=5", "must divide"),
        ("seed=-1", "seed must be at least 0, got -1"),
        ("seed=99999999999999999999", "seed must be at most 2147483647, got 9999"),
        ("engine.seed=3", "engine.seed=3 has no effect: every engine of a run gets"),
        (
            "cluster.dashboard_port=99999",
            "cluster.dashboard_port must lie in [1, 65535], got 99999",
        ),
        ("watch.metrics_port=0", "watch.metrics_port must lie in [1, 65535], got 0"),
        ("optimizer.learning_rate=-1", "optimizer.learning_rate must be at least 0"),
        ("sft.target_accuracy=1.5", "sft.target_accuracy must lie in [0, 1], got 1.5"),
        ("sft.min_steps=-1", "sft.min_steps must be at least 0, got -1"),
        ("tasks.families=[]", "tasks.families is empty"),
        (
            "tasks.families=[{name: gcd}, {pth: x}]",
            "unknown key 'tasks.families[1].pth'; did you mean 'path'?",
        ),
        (
            "tasks.families.0.nme=x",
            "unknown key 'tasks.families.0.nme'; did you mean 'name'?",
        ),
        ("optimizer.lr=1", "'optimizer.learning_rate' or 'sft.learning_rate'"),
        ("rollout.group_size=4", "did you mean 'rollout.samples_per_group'?"),
        ("kl_coef=0.1", "there is no KL term: 'objective.tau' or"),
        ("policy.path=${HOME}/x", "${oc.env:HOME}"),
        (
            'rewards.mixture={math: {"style.py:short": 0.1}}',
            r"'+rewards.mixture.math={math: 1.0, style.py\:short: 0.1}'",
        ),
    ],
)
def test_a_bad_override_is_named(override: str, message: str) -> None:
    with pytest.raises(BadInput, match=re.escape(message)):
        load_recipe("quickstart", [override])


def test_a_recipe_does_not_differ_from_what_its_run_keeps(tmp_path: Path) -> None:
    config = load_recipe("self_critique", [])  # its judged families are named by interpolation
    (tmp_path / "config.yaml").write_text(to_yaml(config))
    assert changes(from_run(tmp_path, []), config) == []


@pytest.mark.parametrize(
    ("engine", "weights", "probe"),
    [
        ("float32", "float32", "float32"),
        ("bfloat16", "float32", "bfloat16"),
        ("float32", "bfloat16", "bfloat16"),
    ],
)
def test_the_probe_is_as_wide_as_the_narrower_side(engine: str, weights: str, probe: str) -> None:
    narrow = ["policy.dtype=bfloat16", "parallel.zero_stage=2", f"parallel.weights={weights}"]
    config = load_recipe("quickstart", [*narrow, f"engine.dtype={engine}"])
    assert config.probe_dtype.value == probe


def test_no_number_may_be_nan() -> None:
    config = load_recipe("self_critique", [])
    keys = [
        key
        for key, hint in known_keys()
        if float in (hint, *get_args(hint)) and get_origin(hint) is not list and "[]" not in key
    ]
    assert {"optimizer.learning_rate", "rollout.segment_s", "rewards.slow_s"} < set(keys)
    for key in keys:
        *sections, name = key.split(".")
        owner = reduce(getattr, sections, config)
        assert owner is not None, key
        with pytest.raises(ValueError, match=re.escape(key)):
            replace(owner, **{name: math.nan})


def test_names_of_other_systems_lead_to_keys_that_exist() -> None:
    known = dict(known_keys())
    assert {*INSTEAD_OF_KL, *(key for keys in ELSEWHERE.values() for key in keys)} <= set(known)
    for name in (*ELSEWHERE, *KL):
        assert name not in known


def test_the_example_of_quoting_is_read() -> None:
    (example,) = re.findall(r"'(.*)'", QUOTING)
    mixture = load_recipe("quickstart", [example]).rewards.mixture["math"]
    assert sorted(Path(name).name for name in mixture) == ["math", "style.py:short"]


@pytest.mark.parametrize("key", ["tasks.families.0", "tasks.families[0]"])
def test_a_key_in_a_list_is_set(tmp_path: Path, key: str) -> None:
    config = load_recipe("quickstart", [f"{key}.weight=2"])
    assert [family.weight for family in config.tasks.families] == [2.0, 1.0, 1.0, 0.4]
    (tmp_path / "config.yaml").write_text(to_yaml(config))
    again = from_run(tmp_path, [f"{key}.weight=3"])
    assert [family.weight for family in again.tasks.families] == [3.0, 1.0, 1.0, 0.4]


@pytest.mark.parametrize("variable", ["$TEMPER_DATA", "${TEMPER_DATA}"])
def test_the_data_folder_in_a_recipe(tmp_path: Path, variable: str) -> None:
    path = tmp_path / "mine.yaml"
    path.write_text(
        "defaults: [schema, _self_]\n"
        f"tasks: {{families: [{{source: gsm8k, name: mine, path: '{variable}/x.jsonl'}}]}}\n"
    )
    config = load_recipe(str(path), [])
    assert expand(config.tasks.families[0].path or "").name == "x.jsonl"
    (tmp_path / "config.yaml").write_text(to_yaml(config))
    assert from_run(tmp_path, []) == config


def test_a_folder_without_a_run_is_named(tmp_path: Path) -> None:
    with pytest.raises(BadInput, match=r"is no run folder: it has no config\.yaml"):
        from_run(tmp_path, [])


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


def test_unknown_key_of_a_family_in_a_recipe_file_is_named(tmp_path: Path) -> None:
    path = tmp_path / "mine.yaml"
    path.write_text("defaults: [schema, _self_]\ntasks: {families: [{name: gcd, pth: x}]}\n")
    with pytest.raises(BadInput, match=r"'tasks\.families\[0\]\.pth'; did you mean 'path'"):
        load_recipe(str(path), [])


def test_temperature_is_linear() -> None:
    config = RolloutConfig(temperature_start=1.0, temperature_end=0.7)
    assert temperature_at(0, 4, config) == 1.0
    assert math.isclose(temperature_at(3, 4, config), 0.7)
    assert math.isclose(temperature_at(1, 4, config), 0.9)
    assert temperature_at(0, 1, config) == 1.0


@pytest.mark.parametrize("sign", ["", "+", "++"])
def test_a_key_that_a_recipe_names_itself_needs_no_sign_to_be_added(
    tmp_path: Path, sign: str
) -> None:
    override = f"{sign}tasks.families[0].options.allow_negation=true"
    config = load_recipe("quickstart", [override])
    assert config.tasks.families[0].options["allow_negation"] is True
    (tmp_path / "config.yaml").write_text(to_yaml(load_recipe("quickstart", [])))
    assert from_run(tmp_path, [override]) == config
    with pytest.raises(BadInput, match=r"rewards.mixture.math names an unknown reward 'format'"):
        load_recipe("quickstart", [f"{sign}rewards.mixture.math.format=0.1"])


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


@pytest.mark.parametrize(
    ("override", "said"),
    [
        ("objective.kind=k2p", "objective.kind: Invalid value 'k2p', expected one of [k2, k2p5, "),
        ("objective.kind=k2p", "cispo]; did you mean 'k2p5'?"),
        ("steps=many", "steps: Value 'many' of type 'str' could not be converted to Integer"),
        ("tasks.families=[{source: gsmk, name: a, path: x}]", "tasks.families[0].source: Invalid"),
        ("tasks.families=[{source: gsmk, name: a, path: x}]", "tasks]; did you mean 'gsm8k'?"),
        ("name=${RUN}", "name: Interpolation key 'RUN' not found: an environment variable is"),
    ],
)
def test_a_value_that_does_not_fit_is_told_of_with_its_key(override: str, said: str) -> None:
    with pytest.raises(BadInput, match=re.escape(said)) as raised:
        load_recipe("quickstart", [override])
    assert "_type" not in str(raised.value) and "full_key" not in str(raised.value)
