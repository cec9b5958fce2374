from typing import Any

import pytest

from rollout.config import FamilyConfig, Source, TasksConfig


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
