"""A step that is not finite on one of two real shards changes nothing on either."""

import json
import socket
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

JOB = Path(__file__).with_name("skipped_steps_job.py")
CUTS = ("1", "1-experts", "2-bf16", "2-offload", "2-bf16-offload", "3-experts")


@pytest.fixture(scope="module")
def told(tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, Any]]:
    folder = tmp_path_factory.mktemp("skipped")
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    ranks = [
        subprocess.Popen(
            [sys.executable, "-W", "ignore", str(JOB), str(folder), str(rank), str(port)],
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        for rank in range(2)
    ]
    try:
        printed = [rank.communicate(timeout=300)[0] for rank in ranks]
    finally:
        for rank in ranks:
            rank.kill()
    assert not any(rank.returncode for rank in ranks), printed
    return [json.loads((folder / f"told-{rank}.json").read_text()) for rank in range(2)]


@pytest.mark.parametrize("cut", CUTS)
@pytest.mark.parametrize("bad", ["gradient", "logit", "log-prob"])
def test_nothing_changes_on_any_shard(told: list[dict[str, Any]], cut: str, bad: str) -> None:
    assert [rank[cut][bad] for rank in told] == [{"skipped": True, "same": True}] * 2


@pytest.mark.parametrize("cut", CUTS)
def test_the_next_step_is_a_step(told: list[dict[str, Any]], cut: str) -> None:
    for rank in told:
        assert rank[cut]["next"]["norm"] > 0
        rank[cut]["next"].pop("norm")
        assert rank[cut]["next"] == {"skipped": False, "finite": True, "same": False}


@pytest.mark.parametrize("cut", CUTS)
def test_five_in_a_row_stop_the_run(told: list[dict[str, Any]], cut: str) -> None:
    for rank in told:
        assert rank[cut]["stopped"]["why"].startswith("5 optimiser steps in a row")
