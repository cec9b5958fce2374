import pytest

from rl.rollout_config import RolloutConfig


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("groups_per_step", 0),
        ("samples_per_group", 1),
        ("max_staleness", -1),
        ("loss_max_lag", -1),
        ("segment_tokens", 0),
        ("segment_s", 0.0),
        ("max_samples_in_flight", 0),
        ("temperature_end", 0.0),
        ("temperature_start", 2.5),
        ("temperature_end", float("nan")),
        ("segment_s", float("inf")),
    ],
)
def test_what_no_run_can_mean_is_refused_by_name(name: str, value: float) -> None:
    with pytest.raises(
        ValueError, match=rf"rollout\.{name} must be at (least|most) .*, got {value}"
    ):
        RolloutConfig(**{name: value})


def test_what_is_not_given_follows_from_the_rest() -> None:
    assert RolloutConfig(max_staleness=3).max_lag == 3
    assert RolloutConfig(max_staleness=3, loss_max_lag=0).max_lag == 0
    assert RolloutConfig().samples_in_flight(128) == 160
    assert RolloutConfig(max_samples_in_flight=8).samples_in_flight(128) == 8


@pytest.mark.parametrize("limit", [{"segment_tokens": 64}, {"segment_s": 2.0}])
def test_segments_are_refused_where_nothing_is_carried_over(limit: dict[str, float]) -> None:
    RolloutConfig(**limit)
    with pytest.raises(ValueError, match=rf"rollout\.{next(iter(limit))} needs rollout\.max_stale"):
        RolloutConfig(max_staleness=0, **limit)
