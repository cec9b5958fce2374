"""Two real learner shards, ZeRO-3 with spread experts: what one of them cannot do, both know."""

import json
import socket
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from model.shards import tensor_shapes
from model.tiny import create_tiny

JOB = Path(__file__).with_name("learner_job.py")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("learner")
    create_tiny(folder / "tiny", ["1 + 1 = 2, 3 * 4 = 12"] * 50, seed=0)
    return folder


@pytest.fixture(scope="module")
def told(folder: Path) -> list[dict[str, Any]]:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    shards = [
        subprocess.Popen(
            [sys.executable, "-W", "ignore", str(JOB), str(folder), str(rank), str(port)],
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        for rank in range(2)
    ]
    printed = [shard.communicate(timeout=300)[0] for shard in shards]
    assert not any(shard.returncode for shard in shards), printed
    return [json.loads((folder / f"told-{rank}.json").read_text()) for rank in range(2)]


def test_a_shard_without_sequences_goes_along(told: list[dict[str, Any]]) -> None:
    assert told[0]["losses"] == told[1]["losses"]
    assert told[0]["losses"][1] < told[0]["losses"][0]
    assert told[0]["probe"] == told[1]["probe"]


def test_the_shards_publish_every_tensor_once(folder: Path, told: list[dict[str, Any]]) -> None:
    first, second = (set(part["tensors"]) for part in told)
    assert first and second and not first & second
    assert first | second == set(tensor_shapes(folder / "tiny"))


def test_a_disk_that_refuses_one_shard_is_an_error_on_both(told: list[dict[str, Any]]) -> None:
    assert told[1]["error"].startswith("FileNotFoundError")
    assert "1 other learner shards could not write" in told[0]["error"]
