import os
import time
from collections.abc import Iterator

import pytest

from rewards.math_answer import MathVerifier

ALGEBRA = (r"\boxed{\sqrt{8}}", r"2\sqrt{2}")
LATEST_S = 10.0


@pytest.fixture
def many_descriptors() -> Iterator[None]:
    """So many open files that a new one is beyond the reach of `select`."""
    held = [os.dup(0) for _ in range(1100)]
    yield
    for each in held:
        os.close(each)


def test_a_process_with_many_open_files_can_score(many_descriptors: None) -> None:
    verifier = MathVerifier()
    assert verifier.verify(*ALGEBRA).total == 1.0
    verifier.close()


def test_a_fork_made_while_a_thread_held_the_locks_can_score() -> None:
    verifier = MathVerifier()
    assert verifier.verify(*ALGEBRA).total == 1.0
    with verifier._algebra._lock, verifier._algebra.nursery._lock:
        child = os.fork()
        if child == 0:
            code = 1
            try:
                code = int(verifier.verify(*ALGEBRA).total != 1.0)
                verifier.close()
            finally:
                os._exit(code)
    deadline, ended, status = time.monotonic() + LATEST_S, 0, 1
    while not ended and time.monotonic() < deadline:
        ended, status = os.waitpid(child, os.WNOHANG)
        time.sleep(0.01)
    if not ended:
        os.kill(child, 9)
        os.waitpid(child, 0)
    assert ended and os.waitstatus_to_exitcode(status) == 0
    assert verifier.verify(*ALGEBRA).total == 1.0
    verifier.close()
