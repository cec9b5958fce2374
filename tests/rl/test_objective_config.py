from typing import Any

import pytest

from rl.objective_config import (
    CLIPS,
    Clip,
    Correction,
    Kind,
    Level,
    ObjectiveConfig,
    OldLogprobs,
)


@pytest.mark.parametrize("kind", Kind)
def test_every_kind_has_bounds_of_its_own_except_k2(kind: Kind) -> None:
    config = ObjectiveConfig(kind=kind)
    assert (kind in CLIPS) == (kind is not Kind.k2)
    assert config.clip == CLIPS.get(kind, Clip(1.0, float("inf")))


def test_bounds_that_are_set_take_the_place_of_the_kinds() -> None:
    assert ObjectiveConfig(kind=Kind.grpo, clip_high=0.28).clip == Clip(0.2, 0.28)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"tau": -0.1}, "objective.tau must be at least 0, got -0.1"),
        ({"tau": float("nan")}, "objective.tau must be at least 0, got nan"),
        ({"ptx_weight": float("inf")}, "objective.ptx_weight must be finite, got inf"),
        ({"correction_cap": 0.5}, "objective.correction_cap must be at least 1"),
        ({"staleness_power": -1.0}, "objective.staleness_power must be at least 0"),
        ({"minibatches": 0}, "objective.minibatches must be at least 1"),
        ({"kind": Kind.gspo, "tau": 0.2}, "objective.kind=gspo: only k2, k2p5 use it"),
        (
            {"kind": Kind.k2p5, "length_normalised": True},
            "objective.length_normalised=True has no effect with objective.kind=k2p5: only k2 use",
        ),
        ({"clip_high": 0.2}, "has no effect with objective.kind=k2: only k2p5, grpo, dapo"),
        ({"kind": Kind.grpo, "clip_low": 1.5}, "clip_low must be over 0 and at most 1, got 1.5"),
        ({"kind": Kind.grpo, "clip_high": -0.3}, "the upper bound 1 \\+ clip_high at or under 1"),
        (
            {"old_logprobs": OldLogprobs.rollout},
            "correction=truncate .* needs objective.old_logprobs=learner",
        ),
        (
            {"correction": Correction.none, "correction_cap": 4.0},
            "objective.correction_cap has no effect with objective.correction=none",
        ),
        (
            {"correction": Correction.none, "correction_level": Level.sequence},
            "objective.correction_level has no effect",
        ),
    ],
)
def test_what_does_not_go_together_is_refused(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        ObjectiveConfig(**settings)
