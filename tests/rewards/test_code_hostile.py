"""Hostile programs: each scores 0, ends in time, and leaves nothing behind."""

import ctypes
import json
import os
import socket
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from itertools import chain
from pathlib import Path

import psutil
import pytest

from rewards.code_tests import CodeVerifier
from rewards.sandbox_config import CodeConfig
from rewards.score import Score

DATA = Path(__file__).parents[1] / "data" / "hostile_programs.txt"
CONFIG = CodeConfig(
    timeout_s=1.0,
    program_timeout_s=3.0,
    memory_mb=256,
    disk_mb=16,
    processes=32,
    max_concurrent=4,
)
MARGIN_S = 8.0  # for a machine with other work; a hang would last for ever
SECRET = "the-secret-of-the-host"
REFERENCES = {
    "plain": {"tests": ["assert f(3) == 9", "assert abs(f(10) - 100) < 0.5"]},
    "relayed": {"tests": ["for given, want in [(3, 9), (10, 100)]:\n    assert f(given) == want"]},
    "stdin": {"cases": [{"stdin": "3\n", "stdout": "9\n"}, {"stdin": "10\n", "stdout": "100\n"}]},
}
PR_SET_CHILD_SUBREAPER = 36


def _programs() -> list[tuple[str, str, str]]:
    """(name, mode, text)."""
    found = []
    for part in DATA.read_text().split("\n=== ")[1:]:
        header, _, text = part.partition("\n")
        kind, _, name = header.partition(" ")
        modes = ("plain", "relayed") if kind == "call" else ("stdin",)
        found += [(name, mode, text) for mode in modes]
    return found


PROGRAMS = _programs()


@dataclass(frozen=True)
class Attempt:
    """What became of one program."""

    score: Score
    seconds: float


@dataclass(frozen=True)
class Attempts:
    """What became of all of them, and of the machine."""

    by_name: dict[tuple[str, str], Attempt]
    secret: str
    files: list[str]
    connections: int
    children: list[psutil.Process]
    groups: list[str]


@pytest.fixture(scope="module")
def attempts(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Attempts]:
    folder = tmp_path_factory.mktemp("host")
    (folder / "secret").write_text(SECRET)
    os.environ["TEMPER_TEST_SECRET"] = SECRET
    ctypes.CDLL(None).prctl(PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0)  # orphans would become our children
    verifier = CodeVerifier(CONFIG)
    with socket.create_server(("127.0.0.1", 0)) as listener, ThreadPoolExecutor(4) as pool:
        port = listener.getsockname()[1]

        def attempt(program: tuple[str, str, str]) -> Attempt:
            _, mode, text = program
            text = text.replace("@PORT@", str(port)).replace("@FOLDER@", str(folder))
            text = text.replace("@REPOSITORY@", str(Path(__file__).parents[2]))
            start = time.monotonic()
            score = verifier.verify(text, json.dumps(REFERENCES[mode]))
            return Attempt(score, time.monotonic() - start)

        done = dict(zip([p[:2] for p in PROGRAMS], pool.map(attempt, PROGRAMS), strict=True))
        listener.setblocking(False)
        connections = 0
        try:
            listener.accept()
            connections = 1
        except BlockingIOError:
            pass
    ctypes.CDLL(None).prctl(PR_SET_CHILD_SUBREAPER, 0, 0, 0, 0)
    del os.environ["TEMPER_TEST_SECRET"]
    yield Attempts(
        by_name=done,
        secret=(folder / "secret").read_text(),
        files=sorted(path.name for path in folder.iterdir()),
        connections=connections,
        children=psutil.Process().children(),
        groups=_groups(),
    )


def _groups() -> list[str]:
    """Control groups of this process; `os.walk` forgives those of others that vanish meanwhile."""
    names = chain.from_iterable(folders for _, folders, _ in os.walk("/sys/fs/cgroup"))
    return [name for name in names if name.startswith(f"temper-{os.getpid()}-")]


def test_there_are_enough_of_them() -> None:
    assert len({name for name, _, _ in PROGRAMS}) >= 40


@pytest.mark.parametrize("program", PROGRAMS, ids=[f"{mode}: {name}" for name, mode, _ in PROGRAMS])
def test_earns_nothing_and_ends(attempts: Attempts, program: tuple[str, str, str]) -> None:
    attempt = attempts.by_name[program[:2]]
    assert attempt.score.total == 0.0, attempt.score.why
    assert attempt.score.parts == {"code": 0.0}
    assert attempt.seconds < CONFIG.program_timeout_s + MARGIN_S
    assert attempt.score.why and attempt.score.why.isprintable()


def test_nothing_is_left_behind(attempts: Attempts) -> None:
    assert attempts.children == []
    assert attempts.groups == []


def test_the_host_is_as_it_was(attempts: Attempts) -> None:
    assert attempts.secret == SECRET
    assert attempts.files == ["secret"]
    assert attempts.connections == 0


def test_an_honest_program_still_passes_beside_them() -> None:
    verifier = CodeVerifier(CONFIG)
    assert verifier.verify("def f(n): return n * n", json.dumps(REFERENCES["plain"])).total == 1.0
    assert verifier.verify("def f(n): return n * n", json.dumps(REFERENCES["relayed"])).total == 1.0
    assert verifier.verify("print(int(input()) ** 2)", json.dumps(REFERENCES["stdin"])).total == 1.0
