import pytest

from rewards.config import RewardsConfig


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("over_budget_reward", 0.1),
        ("over_budget_reward", float("-inf")),
        ("math_timeout_s", 0.0),
        ("math_timeout_s", float("inf")),
        ("workers", 0),
    ],
)
def test_refuses(key: str, value: float) -> None:
    with pytest.raises(ValueError, match=rf"rewards\.{key} .*, got {value}"):
        RewardsConfig(**{key: value})  # type: ignore[arg-type]
