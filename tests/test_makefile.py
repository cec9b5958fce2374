"""What `make` would install: what was set up last, until it is told otherwise."""

import os
import shutil
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
CPU, CUDA = "requirements-cpu.lock", "requirements-cuda.lock"


@pytest.fixture
def checkout(tmp_path: Path) -> Path:
    """A checkout where uv is installed, and nothing else yet."""
    shutil.copy(ROOT / "Makefile", tmp_path)
    for name in ("pyproject.toml", CPU, CUDA, ".venv/bin/uv"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).touch()
    return tmp_path


def would_run(checkout: Path, *words: str) -> str:
    """What `make` would do, were it asked for that."""
    # Neither pip is asked for its settings, nor does a `make` that runs the tests hand on its own.
    env = {"PATH": os.environ["PATH"], "UV_FIND_LINKS": ""}
    asked = ["make", "--dry-run", *words]
    return subprocess.run(
        asked, cwd=checkout, env=env, check=True, capture_output=True, text=True
    ).stdout


def test_a_new_checkout_is_set_up_for_processors(checkout: Path) -> None:
    said = would_run(checkout, "train")
    assert CPU in said and CUDA not in said


def test_a_gpu_set_up_is_kept_to(checkout: Path) -> None:
    assert CUDA in would_run(checkout, "setup", "EXTRA=cuda")
    (checkout / ".venv/installed-cuda").touch()
    said = would_run(checkout, "train")
    assert CPU not in said and CUDA not in said and "temper train" in said
    os.utime(checkout / ".venv/installed-cuda", (0, 0))  # the lock is newer
    said = would_run(checkout, "test")
    assert CUDA in said and CPU not in said


@pytest.mark.parametrize(("old", "new"), [("cuda", "cpu"), ("cpu", "cuda")])
def test_one_set_up_takes_the_place_of_the_other(checkout: Path, old: str, new: str) -> None:
    stamp = checkout / f".venv/installed-{old}"
    stamp.touch()
    said = would_run(checkout, "setup", f"EXTRA={new}").splitlines()
    removed, installed, stamped = (
        next(place for place, line in enumerate(said) if what in line)
        for what in (f"rm -f .venv/installed-{old}", f"requirements-{new}.lock", "touch ")
    )
    assert removed < installed < stamped and said[stamped] == f"touch .venv/installed-{new}"


def test_a_failed_update_leaves_the_kind_of_set_up(checkout: Path) -> None:
    stamp = checkout / ".venv/installed-cuda"
    stamp.touch()
    os.utime(stamp, (0, 0))
    assert f"rm -f {stamp.relative_to(checkout)}" not in would_run(checkout, "setup")
