import re
from dataclasses import fields
from pathlib import Path
from typing import Any

import pytest

from rewards.config import LengthConfig, RepetitionConfig, RewardsConfig
from rewards.critic_config import CalibrationConfig, CriticConfig


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("over_budget_reward", 0.1),
        ("over_budget_reward", float("-inf")),
        ("math_timeout_s", 0.0),
        ("math_timeout_s", float("inf")),
        ("slow_s", 0.0),
        ("workers", 0),
        ("concurrency", 0),
    ],
)
def test_refuses(key: str, value: float) -> None:
    with pytest.raises(ValueError, match=rf"rewards\.{key} .*, got {value}"):
        RewardsConfig(**{key: value})  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("section", "values", "key"),
    [
        (RepetitionConfig, {"ngram": 0}, "repetition.ngram"),
        (RepetitionConfig, {"window": 255}, "repetition.window must be at least 256"),
        (RepetitionConfig, {"period_times": 1}, "repetition.period_times"),
        (RepetitionConfig, {"reward": 0.5}, "repetition.reward"),
        (LengthConfig, {"weight": 0.0}, "length.weight"),
        (LengthConfig, {"soft_share": 0.0}, "length.soft_share"),
        (LengthConfig, {"percentile": 101.0}, "length.percentile"),
        (LengthConfig, {"accuracy": 1.1}, "length.accuracy"),
        (LengthConfig, {"phase_steps": 0}, "length.phase_steps"),
    ],
)
def test_a_section_refuses(section: type, values: dict[str, Any], key: str) -> None:
    with pytest.raises(ValueError, match=rf"rewards\.{key}"):
        section(**values)


def test_every_verifiable_kind_has_its_verifier() -> None:
    given = {"code": {"code": 0.5, "math": 0.5}}
    assert RewardsConfig(mixture=given).mixture == {
        "math": {"math": 1.0},
        "code": {"code": 0.5, "math": 0.5},
        "instructions": {"instructions": 1.0},
        "critic": {"critic": 1.0},
    }


def test_a_critic_brings_the_reward_of_open_ended_tasks() -> None:
    assert "open" not in RewardsConfig().mixture
    assert RewardsConfig(critic=CriticConfig()).mixture["open"] == {"rubric": 1.0}
    watching = {"open": {"rubric": 1.0, "explanations": 0.0}}
    assert (
        RewardsConfig(critic=CriticConfig(), mixture=watching).mixture["open"] == watching["open"]
    )


def test_a_plugin_is_found_from_any_folder() -> None:
    (reward, _) = RewardsConfig(mixture={"open": {"a/b.py:f": 1.0}}).mixture["open"].popitem()
    assert reward == f"{Path.cwd()}/a/b.py:f"


@pytest.mark.parametrize(
    ("mixture", "message"),
    [
        ({"maths": {"math": 1.0}}, "no task kind 'maths'; did you mean 'math'?"),
        ({"code": {"coed": 1.0}}, "rewards.mixture.code names an unknown reward 'coed'; did you"),
        ({"open": {"style": 1.0}}, "a plug-in is path/to/file.py:function"),
        ({"open": {"critic": 1.0}}, "what the critic gives is called 'rubric'"),
        ({"open": {"rubric": 1.0}}, "set rewards.critic"),
        ({"open": {"rubric": 0.0}}, "with a weight over 0"),
        ({"math": {"rubric": 1.0}}, "only kind open has it"),
        ({"math": {"math": 0.0}}, "rewards.mixture.math only watches"),
        ({"math": {"math": -1.0}}, "rewards.mixture.math.math must be at least 0"),
        ({"math": {"math": float("nan")}}, "rewards.mixture.math.math must be at least 0"),
        ({"math": {}}, "rewards.mixture.math is empty"),
        ({"math": {"a.py:f": 1.0, "b.py:f": 1.0}}, "two rewards called 'f'"),
        ({"math": {"math": 1.0, "b.py:math": 1.0}}, "two rewards called 'math'"),
        ({"math": {"b.py:length": 1.0}}, "'length' is a name of ours: rename the function"),
        ({"math": {"b.py:mean": 1.0}}, "'mean' is a name of ours"),
    ],
)
def test_a_mixture_is_checked(mixture: dict[str, dict[str, float]], message: str) -> None:
    with pytest.raises(ValueError, match=re.escape(message)):
        RewardsConfig(mixture=mixture)


@pytest.mark.parametrize("settings", [CriticConfig, CalibrationConfig])
def test_every_key_of_the_critic_is_explained(settings: type[CriticConfig]) -> None:
    page = (Path(__file__).parents[2] / "docs" / "self-critique.md").read_text()
    assert [each.name for each in fields(settings) if f"`{each.name}`" not in page] == []
