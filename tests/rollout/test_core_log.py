"""What a process printed before its end."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from rollout.core_log import CoreLog

DIES = """
import logging, subprocess, sys
print("starting")
logging.basicConfig(format="(EngineCore pid=7) ERROR 11-23 13:59:01 [core.py:100] %(message)s")
logging.error("EngineCore failed to start.")
logging.error("RuntimeError: head_dim=16 is not supported")
print("(EngineCore pid=7) Process EngineCore:", file=sys.stderr)
raise subprocess.SubprocessError("the last one")
"""


def _end_of(program: str, log: CoreLog) -> None:
    with log.written():
        child = subprocess.Popen([sys.executable, "-c", program])
    child.wait(timeout=60)


def test_the_last_error_of_a_process_is_its_reason(capfd: pytest.CaptureFixture[str]) -> None:
    log = CoreLog()
    _end_of(DIES.replace("raise", "# raise"), log)
    assert log.reason().startswith(": RuntimeError: head_dim=16 is not supported (more in ")
    _end_of(DIES, log)
    said = log.reason()
    assert said.startswith(": subprocess.SubprocessError: the last one (more in ")
    path = Path(said.partition("(more in ")[2].rstrip(")"))
    assert "starting" in path.read_text()
    print("still ours", flush=True)
    os.system("echo and theirs")
    assert capfd.readouterr().out == "still ours\nand theirs\n"
    log.remove()
    log.remove()
    assert not path.exists() and log.reason() == ""


def test_a_process_that_was_killed_has_no_reason() -> None:
    log = CoreLog()
    _end_of("import os; print('at work', flush=True); os.kill(os.getpid(), 9)", log)
    assert log.reason() == ""
    log.remove()
