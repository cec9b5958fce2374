from typing import Any

import pytest

from rewards.task import TaskKind
from rollout.config import FamilyConfig, Source, TasksConfig, TokenBudgets


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"name": ""}, "needs a name"),
        ({"weight": 0.0}, r"families\[gcd\]\.weight must be positive and finite, got 0\.0"),
        ({"weight": float("nan")}, "got nan"),
        ({"token_budget": 0}, r"token_budget must be at least 1, got 0"),
        ({"worked_share": 1.5}, r"worked_share must lie in \[0, 1\], got 1\.5"),
        ({"path": "x.jsonl"}, r"path is for files"),
        ({"source": Source.gsm8k}, r"path is missing: source gsm8k"),
        ({"source": Source.gsm8k, "path": "x", "options": {"a": 1}}, r"options are for"),
        ({"source": Source.code}, r"path is missing: source code"),
        ({"source": Source.programs, "path": "x.jsonl"}, r"source programs generates"),
    ],
)
def test_a_family_refuses(values: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        FamilyConfig(**{"name": "gcd", **values})


@pytest.mark.parametrize("percent", [-1, 101])
def test_tasks_refuse_what_is_no_percentage(percent: int) -> None:
    with pytest.raises(
        ValueError, match=rf"held_out_percent must lie in \[0, 100\], got {percent}"
    ):
        TasksConfig(held_out_percent=percent)


def test_default_budgets_of_every_kind() -> None:
    budgets = {kind.value: TokenBudgets().of(kind) for kind in TaskKind}
    assert budgets == {
        "math": 16384, "code": 16384, "instructions": 4096, "open": 4096, "agent": 32768,
        "critic": 2048,
    }  # fmt: skip
    with pytest.raises(ValueError, match=r"tasks\.token_budgets\.code must be at least 1, got 0"):
        TokenBudgets(code=0)
