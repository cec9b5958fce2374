"""Two real learner shards, ZeRO-3 with spread experts: what one of them cannot do, both know, and
together they train as one alone."""

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


def _start(folder: Path, size: int) -> list[subprocess.Popen[str]]:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    return [
        subprocess.Popen(
            [
                sys.executable,
                "-W",
                "ignore",
                str(JOB),
                str(folder),
                str(rank),
                str(size),
                str(port),
            ],
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        for rank in range(size)
    ]


@pytest.fixture(scope="module")
def all_told(folder: Path) -> dict[int, list[dict[str, Any]]]:
    """What every shard said of a job of one and of a job of two."""
    jobs = {size: _start(folder, size) for size in (1, 2)}
    for shards in jobs.values():
        printed = [shard.communicate(timeout=300)[0] for shard in shards]
        assert not any(shard.returncode for shard in shards), printed
    return {
        size: [
            json.loads((folder / f"told-{rank}-{size}.json").read_text()) for rank in range(size)
        ]
        for size in jobs
    }


@pytest.fixture(scope="module")
def told(all_told: dict[int, list[dict[str, Any]]]) -> list[dict[str, Any]]:
    return all_told[2]


def test_a_shard_without_sequences_goes_along(told: list[dict[str, Any]]) -> None:
    assert told[0]["losses"] == told[1]["losses"]
    assert told[0]["losses"][1] < told[0]["losses"][0]
    assert told[0]["probe"] == told[1]["probe"]


def test_the_learning_rate_is_that_of_the_published_version(told: list[dict[str, Any]]) -> None:
    """Iterations that had nothing to train on do not hold the schedule back: both are of 1."""
    rates = [rank[kind]["optim/learning_rate"] for rank in told for kind in ("k2p5", "gspo")]
    assert rates == pytest.approx([2e-4 * 2 / 4] * 4)


def test_a_minibatch_may_have_no_ptx_where_another_has(
    all_told: dict[int, list[dict[str, Any]]],
) -> None:
    found = [shard["gspo"]["objective/ptx"] for shards in all_told.values() for shard in shards]
    assert found[0] > 0 and found == pytest.approx([found[0]] * 3, rel=1e-4)
    assert all(
        "objective/ptx" not in shard["k2p5"] for shards in all_told.values() for shard in shards
    )


def test_the_shards_publish_every_tensor_once(folder: Path, told: list[dict[str, Any]]) -> None:
    first, second = (set(part["tensors"]) for part in told)
    assert first and second and not first & second
    assert first | second == set(tensor_shapes(folder / "tiny"))


def test_a_disk_that_refuses_one_shard_is_told_of_by_that_one(told: list[dict[str, Any]]) -> None:
    """`rl.save_checkpoint.shards_written` makes one error of it."""
    assert told[1]["error"].startswith("FileNotFoundError")
    assert told[0]["error"] is None


def test_a_disk_that_is_full_for_one_shard_is_told_of_as_such(told: list[dict[str, Any]]) -> None:
    assert told[1]["full"].startswith("OSError: cannot write ")
    assert told[0]["full"] is None


def test_a_shard_without_memory_for_a_copy_is_an_error_on_both(told: list[dict[str, Any]]) -> None:
    assert told[1]["no_memory"] == "CheckpointError: no host memory"
    assert "1 other learner shards could not write" in told[0]["no_memory"]


@pytest.mark.parametrize("size", [1, 2])
def test_what_is_trained_while_a_checkpoint_is_written_is_not_in_it(
    all_told: dict[int, list[dict[str, Any]]], size: int
) -> None:
    for shard in all_told[size]:
        assert shard["as_copied"] == [True, True]


def test_weights_that_one_shard_cannot_publish_are_published_by_none_and_may_be_again(
    told: list[dict[str, Any]],
) -> None:
    assert "No space left" in told[1]["unpublished"]
    assert told[0]["unpublished"].startswith("OtherShardFailed: 1 other")
    assert told[0]["published_again"] == told[0]["trained"]


def test_a_checkpoint_needs_nothing_of_the_one_that_the_run_started_from(
    folder: Path, told: list[dict[str, Any]]
) -> None:
    """It may have been removed since: the tokenizer comes along all the same."""
    absent = {path.name for path in (folder / "tiny").iterdir()} - {*told[0]["saved"]}
    assert "tokenizer.json" in told[0]["saved"]
    assert not {name for name in absent if not name.endswith((".safetensors", ".index.json"))}


NAMES = (
    "objective/loss",
    "objective/entropy",
    "objective/clipped",
    "correction/weight",
    "correction/ess",
    "optim/grad_norm",
    "optim/max_logit",
)


@pytest.mark.parametrize("kind", ["k2p5", "gspo"])
def test_two_shards_train_as_one(all_told: dict[int, list[dict[str, Any]]], kind: str) -> None:
    alone, first, second = all_told[1][0][kind], *(shard[kind] for shard in all_told[2])
    names = [name for name in alone if name.startswith("mismatch/")] + [*NAMES]
    for name in names:
        assert first[name] == second[name]
        assert first[name] == pytest.approx(alone[name], rel=1e-4, abs=1e-5), name
    # How far the second minibatch is off the weights of the first: Newton-Schulz orthogonalises
    # what rounding leaves in the empty directions of such small gradients.
    assert first["objective/rho"] == pytest.approx(alone["objective/rho"], rel=0.02)
    assert alone["objective/rho"] > 1e-3


def test_two_shards_follow_the_engines_experts_as_one(
    all_told: dict[int, list[dict[str, Any]]],
) -> None:
    """Spread over shards, a token goes to the experts that the engine recorded for it."""
    for way in ("followed", "own"):
        alone, first, second = all_told[1][0][way], *(shard[way] for shard in all_told[2])
        assert first == second
        assert first == pytest.approx(alone, rel=1e-4, abs=1e-5)
        assert alone["mismatch/experts"] > 0.5, "routers would choose others"
    followed, own = (all_told[2][0][way]["mismatch/abs_logprob"] for way in ("followed", "own"))
    # Without a replay all that differs is the noise that was put in; other experts change more.
    assert own == pytest.approx(0.1 * 2 / 3, abs=0.02)
    assert abs(followed - own) > 1e-3


def test_two_shards_end_with_the_weights_of_one(
    all_told: dict[int, list[dict[str, Any]]],
) -> None:
    alone, together = all_told[1][0], all_told[2][0]
    for name in ("probe", "trained"):
        assert _flat(alone[name]) == pytest.approx(_flat(together[name]), abs=3e-4)
    moved = zip(_flat(alone["trained"]), _flat(alone["probe"]), strict=True)
    assert max(abs(after - before) for after, before in moved) > 1e-2


def _flat(rows: list[list[float]]) -> list[float]:
    return [value for row in rows for value in row]


def test_the_mismatch_is_that_under_the_weights_that_an_iteration_starts_with(
    told: list[dict[str, Any]],
) -> None:
    """Both minibatches against the learner before its first step: the noise that was put in."""
    noise = [abs(i % 3 - 1) / 10 for length in (5, 2, 3, 4) for i in range(length)]
    report = told[0]["k2p5"]
    assert report["mismatch/abs_logprob"] == pytest.approx(sum(noise) / len(noise), abs=1e-5)
    assert report["mismatch/max_abs_logprob"] == pytest.approx(0.1, abs=1e-5)
    assert report["mismatch/lag_0/share"] == pytest.approx(6 / 14)  # of the learner's version, 1
    assert report["mismatch/lag_1/share"] == pytest.approx(8 / 14)
    assert report["correction/cut"] == 0.0 and 0.99 < report["correction/ess"] < 1.0
