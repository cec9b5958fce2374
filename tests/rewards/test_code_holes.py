"""Holes that a review found: tests that did not count, judges that hung, programs refused."""

import contextlib
import ctypes
import json
import os
import signal
import threading
import time
from pathlib import Path

import psutil
import pytest

from rewards.code_tests import CodeVerifier
from rewards.errors import RewardError
from rewards.sandbox import Launch, Sandbox
from rewards.sandbox_config import CodeConfig
from rewards.sandbox_process import Deadline

CONFIG = CodeConfig(timeout_s=2.0)
VERIFIER = CodeVerifier(CONFIG)
SQUARE = "def f(n):\n    return n * n\n"
ZERO = "def f(n):\n    return 0\n"
GENERATOR = "def f(n):\n    yield from range(n)\n"
PR_SET_CHILD_SUBREAPER = 36
HANG_S = 20.0


def _verify(program: str, *tests: str) -> float:
    return VERIFIER.verify(program, json.dumps({"tests": tests})).total


@pytest.mark.parametrize(
    "test",
    [
        "assert f(0) == 0\nfor n in range(5):\n    assert f(n) == n * n",
        "def check(g):\n    assert g(3) == 9\nassert f(0) == 0\ncheck(f)\nprint('all passed')",
        "def test():\n    assert f(3) == 9\nif __name__ == '__main__':\n    test()",
        "def test_it():\n    assert f(3) == 9\nassert f(0) == 0",
        "from solution import f\nassert f(3) == 9",
        "import unittest\nclass Tests(unittest.TestCase):\n"
        "    def setUp(self):\n        self.n = 3\n    def test_it(self):\n"
        "        self.assertEqual(f(self.n), 9)\nunittest.main()",
        "import unittest\nclass Tests(unittest.TestCase):\n    @classmethod\n"
        "    def setUpClass(cls):\n        cls.n = 3\n    def test_it(self):\n"
        "        self.assertEqual(f(self.n), 9)\n"
        "if __name__ == '__main__':\n    unittest.main(verbosity=2)",
    ],
)
def test_everything_that_a_text_tests_counts(test: str) -> None:
    assert _verify(SQUARE, test) == 1.0
    assert _verify(ZERO, test) == 0.0


def test_a_setup_that_fails_fails_the_tests_and_a_last_call_counts() -> None:
    for setup in ("assert f(3) == 9", "for n in [3]:\n    assert f(n) == 9"):
        reference = json.dumps({"tests": ["assert f(0) == 0"], "setup": setup})
        assert VERIFIER.verify(SQUARE, reference).total == 1.0
        assert VERIFIER.verify(ZERO, reference).total == 0.0
    program = "def f(n):\n    return 9 // (n == 0)\n"
    assert _verify(program, "assert f(0) == 9\nx = f(3)") == 0.0


def test_what_the_tests_print_earns_no_partial_credit() -> None:
    verifier = CodeVerifier(CodeConfig(partial_credit=True))
    reference = json.dumps({"tests": ["assert f(3) == 9\nprint('done')"]})
    assert verifier.verify(ZERO, reference).total == 0.0


@pytest.mark.parametrize("name", ["StopIteration", "Mine"])
def test_no_exception_ends_the_tests_as_if_they_had_passed(name: str) -> None:
    program = f"class Mine(StopIteration):\n    pass\ndef f(n):\n    raise {name}\n"
    assert _verify(program, "assert all(map(lambda case: f(case[0]) == case[1], [(3, 9)]))") == 0.0
    wanted = "try:\n    f(3)\n    assert False\nexcept StopIteration:\n    pass"
    assert _verify(program, wanted) == 1.0  # tests that speak of it may see it


@pytest.mark.parametrize(
    ("returned", "test"),
    [
        ("range(10 ** 18)", "assert 'x' in f(3)"),
        ("range(10 ** 18)", "assert 2.5 not in f(3)"),
        ("[i * (2 ** 61 - 1) for i in range(1, 90000)]", "assert set(f(3)) == {9}"),
        ("[i * (2 ** 61 - 1) for i in range(1, 90000)]", "assert frozenset(f(3)) == {9}"),
        ("[(i * (2 ** 61 - 1), 1) for i in range(1, 70000)]", "assert dict(f(3)) == {9: 1}"),
        ("[range(10 ** 10)]", "assert dict(f(3)) == {9: 1}"),
        ("[[1]] * 300000", "assert sum(f(3), []) == [9]"),
        (
            "[__import__('fractions').Fraction(1, 2 ** 16000 + 2 * i + 1) for i in range(400)]",
            "assert sum(f(3)) == 9",
        ),
    ],
)
def test_no_answer_keeps_the_judge_busy(returned: str, test: str) -> None:
    start = time.monotonic()
    assert _verify(f"def f(n):\n    return {returned}\n", test) == 0.0
    assert time.monotonic() - start < HANG_S


@pytest.mark.parametrize(
    ("returned", "test"),
    [
        ("range(5)", "assert 3 in f(3) and 'x' not in f(3)"),
        ("[1, 2, 2]", "assert set(f(3)) == {1, 2}"),
        ("[(1, 2)]", "assert dict(f(3)) == {1: 2}"),
        ("[[1], [2]]", "assert sum(f(3), []) == [1, 2]"),
        ("[0.5] * 100000", "assert sum(f(3)) == 50000"),
    ],
)
def test_honest_answers_to_such_tests_pass(returned: str, test: str) -> None:
    assert _verify(f"def f(n):\n    return {returned}\n", test) == 1.0


def test_an_object_that_breaks_in_an_error_message_scores_0() -> None:
    program = "import os\nclass A:\n    def __repr__(self): os._exit(0)\ndef f(n): return A()\n"
    assert _verify(program, "assert {9: 1}[f(3)] == 1") == 0.0


def test_generators_are_data_where_tests_list_them() -> None:
    tests = ["list(f(3)) == [0, 1, 2]", "sum(f(3)) == 3", "sorted(f(2)) == [0, 1]", "2 in f(3)"]
    assert _verify(GENERATOR, *(f"assert {test}" for test in tests)) == 1.0
    assert _verify(GENERATOR, "assert list(f(3)) == [0, 1]") == 0.0
    endless = "def f(n):\n    while True: yield 5\n"
    assert _verify(endless, "assert list(f(3)) == [0]") == 0.0


def test_tests_that_import_what_is_not_there_are_no_fault_of_the_program() -> None:
    with pytest.raises(RewardError, match="no_such_module"):
        _verify(SQUARE, "import no_such_module\nassert f(3) == 9")


def test_tests_may_import_the_packages_too(tmp_path: Path) -> None:
    (tmp_path / "helpful.py").write_text("NINE = 9\n")
    verifier = CodeVerifier(CodeConfig(packages=str(tmp_path)))
    test = "import helpful\nassert f(3) == helpful.NINE"
    assert verifier.verify(SQUARE, json.dumps({"tests": [test]})).total == 1.0
    program = "import helpful\ndef f(n):\n    return helpful.NINE\n"
    assert verifier.verify(program, json.dumps({"tests": ["assert f(3) == 9"]})).total == 1.0


def test_nothing_outlives_bubblewrap_as_an_orphan() -> None:
    """Where process 1 does not reap, an orphan stays as a zombie; here orphans would come to us."""
    sandbox = Sandbox(CONFIG)
    ctypes.CDLL(None).prctl(PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0)
    try:
        before = psutil.Process().children()
        for command in ("true", "sleep 60 & exit 3", "sleep 60"):
            for _ in range(5):
                with sandbox.start(Launch(command=("/bin/sh", "-c", command))) as child:
                    child.wait(0.2)
        time.sleep(0.2)
        assert set(psutil.Process().children()) <= set(before)
    finally:
        ctypes.CDLL(None).prctl(PR_SET_CHILD_SUBREAPER, 0, 0, 0, 0)


def test_a_bubblewrap_that_somebody_kills_is_no_fault_of_the_program() -> None:
    with Sandbox(CONFIG).start(Launch(command=("/bin/sleep", "60"))) as child:
        os.kill(child.pid, signal.SIGKILL)
        assert child.wait(10.0)
        assert child.exit_status() is None
    with Sandbox(CONFIG).start(Launch(command=("/bin/sh", "-c", "kill -9 0; exit 7"))) as child:
        assert child.wait(10.0)
        assert child.exit_status() is not None  # nothing inside can do it


def test_a_bubblewrap_that_is_killed_under_a_test_is_an_error_not_a_zero() -> None:
    verifier = CodeVerifier(CONFIG)
    program = "import time\ndef f(n):\n    time.sleep(3)\n    return n * n\n"
    ended = threading.Event()

    def kill() -> None:
        while not ended.wait(0.1):
            for child in Path(f"/proc/self/task/{worker}/children").read_text().split():
                with contextlib.suppress(OSError):
                    os.kill(int(child), signal.SIGKILL)

    verifier.check()
    worker = threading.get_native_id()
    killer = threading.Thread(target=kill)
    killer.start()
    try:
        total = verifier.verify(program, json.dumps({"tests": ["assert f(3) == 9"]})).total
        assert total == 1.0  # killed so early that the program did not notice
    except RewardError:
        pass
    finally:
        ended.set()
        killer.join()


def test_who_wants_to_run_is_given_more_wall_time_than_who_sleeps() -> None:
    start = time.monotonic()
    with Sandbox(CONFIG).start(Launch(command=("/bin/sleep", "60"))) as child:
        assert not child.patiently(child.wait, Deadline(start, start + 30.0))
    assert time.monotonic() - start < 25.0
    busy = ("/bin/sh", "-c", "i=0; while [ $i -lt 200000 ]; do i=$((i+1)); done")
    start = time.monotonic()
    with Sandbox(CONFIG).start(Launch(command=busy, cpu_s=20.0)) as child:
        assert child.patiently(child.wait, Deadline(start, start + 60.0))
        assert child.exit_status() == 0
