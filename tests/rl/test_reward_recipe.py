"""The rewards of a recipe, from YAML to settings and back."""

from pathlib import Path

import pytest

from rewards.config import LengthKind
from rl.errors import BadInput
from rl.recipe import from_run, load_recipe, to_yaml


def _recipe(folder: Path, rewards: str) -> str:
    path = folder / "mine.yaml"
    tasks = "tasks: {families: [{name: gcd}]}"
    path.write_text(f"defaults: [schema, _self_]\n{tasks}\nrewards:\n{rewards}")
    return str(path)


def test_a_mixture_with_a_plugin_survives_the_run_folder(tmp_path: Path) -> None:
    mixture = f'  mixture:\n    math: {{math: 1, "{tmp_path}/style.py:short": 0.1}}\n'
    length = "  length: {kind: toggle, phase_steps: 3}\n"
    config = load_recipe(_recipe(tmp_path, mixture + length), [])
    assert config.rewards.mixture == {
        "math": {"math": 1.0, f"{tmp_path}/style.py:short": 0.1},
        "code": {"code": 1.0},
        "instructions": {"instructions": 1.0},
        "critic": {"critic": 1.0},
    }
    assert config.rewards.length.kind is LengthKind.toggle
    (tmp_path / "config.yaml").write_text(to_yaml(config))
    assert from_run(tmp_path, []).rewards == config.rewards


@pytest.mark.parametrize(
    ("rewards", "message"),
    [
        ("  mixture: {maths: {math: 1}}\n", "no task kind 'maths'; did you mean 'math'"),
        ("  mixture: {code: {cod: 1}}\n", "unknown reward 'cod'; did you mean 'code'"),
        ("  mixture: {code: {code: much}}\n", r"rewards\.mixture\.code\.code must be at least 0"),
        ("  length: {kind: toogle}\n", "toogle"),
        ("  repetition: {ngrams: 3}\n", "ngram"),
    ],
)
def test_a_mistake_is_named(tmp_path: Path, rewards: str, message: str) -> None:
    with pytest.raises(BadInput, match=message):
        load_recipe(_recipe(tmp_path, rewards), [])
