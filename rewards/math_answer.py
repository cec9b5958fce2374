r"""The reward of a mathematical answer: 1 if the box holds the gold answer, else 0.

Numbers, words and equal text are decided here; what needs algebra goes to a child process, which
may be killed. The child is started by hand, not with `multiprocessing`, whose children import the
parent's main module: so a thread, a Ray actor and a script without a main guard are all the same.
"""

import contextlib
import json
import os
import queue
import selectors
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

from rewards.errors import RewardError
from rewards.math_text import boxes, normal, number, same_number, words
from rewards.score import Score

PART = "math"
MOST_CHARACTERS = 2000  # of an answer that is worth algebra
START_TIMEOUT_S = 120.0  # a fresh child imports sympy: 2 s, or many on a busy machine
UNEVALUATED = (
    r"\int", r"\iint", r"\oint", r"\sum", r"\prod", r"\lim", r"\gcd", r"\lcm", r"\max", r"\min",
    r"\det", r"\bmod", r"\pmod", r"\frac{d}",
)  # fmt: skip
"""Operators that restate a question; an answer may hold one only if the gold answer does."""


def quick_verdict(response: str, reference: str) -> Score | None:
    r"""The verdict where no algebra is needed, else None.

    No box, an empty box and boxes that disagree score 0. A plain number must be answered with a
    plain number, not with a sum or another restated question. Raises `RewardError` for an empty
    reference, and never because of the response.
    """
    if not reference.strip():
        raise RewardError("the gold answer is empty: drop the task or give it a reference")
    found = boxes(response)
    if not found:
        return _score(0.0, r"no balanced \boxed{} in the response")
    answer, gold = found[-1], _content(reference)
    if not normal(answer):
        return _score(0.0, "the box is empty")
    if len(found) > 1 and not all(_agree(other, answer) for other in found[:-1]):
        return _score(0.0, f"{len(found)} boxes that differ")
    return _compare_text(answer, gold)


def _compare_text(answer: str, gold: str) -> Score | None:
    said = f"{_short(answer)}, gold {_short(gold)}"
    if normal(answer) == normal(gold):
        return _score(1.0, said)
    gold_number = number(gold)
    if gold_number is not None:
        answer_number = number(answer)
        if answer_number is None:
            return _score(0.0, f"{said}: not a plain number")
        return _score(float(same_number(answer_number, gold_number)), said)
    gold_words = words(gold)
    if gold_words is not None:
        spoken = words(answer) or words(rf"\text{{{answer}}}")
        return _score(float(spoken == gold_words), said)
    if len(answer) > max(MOST_CHARACTERS, 4 * len(gold)):
        return _score(0.0, f"the box holds {len(answer)} characters")
    if any(operator in answer and operator not in gold for operator in UNEVALUATED):
        return _score(0.0, f"{said}: not evaluated")
    return None


class MathVerifier:
    """Scores answers; safe to share between threads. At most `workers` are compared at once."""

    def __init__(self, timeout_s: float = 5.0, workers: int = 1) -> None:
        """Children start when first needed."""
        self._timeout_s = timeout_s
        self._children = [_Child() for _ in range(workers)]
        self._idle: queue.LifoQueue[_Child] = queue.LifoQueue()
        for child in self._children:
            self._idle.put(child)

    def verify(self, response: str, reference: str) -> Score:
        """Score one response: total and part "math" are 0 or 1, and `why` says what was compared.

        An answer that cannot be read, that takes longer than the timeout or that kills its worker
        twice scores 0. Raises `RewardError` for an unreadable gold answer and for workers that die.
        """
        verdict = quick_verdict(response, reference)
        if verdict is not None:
            return verdict
        answer, gold = boxes(response)[-1], _content(reference)
        child = self._idle.get()
        try:
            return self._compare(child, answer, gold)
        except RewardError:
            raise
        except BaseException:
            child.kill()  # interrupted: the answer still to come must not meet the next request
            raise
        finally:
            self._idle.put(child)

    def close(self) -> None:
        """End the children; a later `verify` starts new ones."""
        for child in self._children:
            child.kill()

    def _compare(self, child: "_Child", answer: str, gold: str) -> Score:
        said = f"{_short(answer)}, gold {_short(gold)}"
        for last in (False, True):
            gold_read = False
            try:
                child.start()
                deadline = time.monotonic() + self._timeout_s
                child.send({"gold": gold, "answer": answer})
                if not child.receive(deadline)["gold"]:
                    raise RewardError(f"the gold answer {_short(gold)} cannot be read")
                gold_read = True
                equal = bool(child.receive(deadline)["equal"])
                return _score(float(equal), said)
            except TimeoutError as error:
                child.spawn()
                if gold_read:
                    return _score(0.0, f"{said}: not compared within {self._timeout_s:g} s")
                if last:
                    raise RewardError(f"gold {_short(gold)} not read in time, twice") from error
            except OSError as error:  # the child died
                child.kill()
                if last and gold_read:
                    return _score(0.0, f"{said}: comparing it killed the worker, twice")
                if last:
                    raise RewardError("the worker of math answers died, twice") from error
        raise AssertionError("the second attempt returns or raises")


class _Child:
    """One process of `rewards.math_worker`. OSError: it is gone. TimeoutError: it is late."""

    def __init__(self) -> None:
        self._process: subprocess.Popen[bytes] | None = None
        self._received = b""
        self._ready = False

    def start(self) -> None:
        """Start the process unless it runs, and wait until it is ready."""
        if self._process is None or self._process.poll() is not None:
            self.spawn()
        if self._ready:
            return
        try:
            self.receive(time.monotonic() + START_TIMEOUT_S)
        except TimeoutError as error:
            raise ChildProcessError(f"no worker after {START_TIMEOUT_S:g} s") from error
        self._ready = True

    def spawn(self) -> None:
        """Replace the process, without waiting for the new one."""
        self.kill()
        package_root = str(Path(__file__).parents[1])
        path = os.pathsep.join(filter(None, [package_root, os.environ.get("PYTHONPATH")]))
        self._process = subprocess.Popen(
            [sys.executable, "-P", "-W", "ignore", "-m", "rewards.math_worker"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            env={**os.environ, "PYTHONPATH": path},
        )

    def send(self, request: dict[str, str]) -> None:
        """Write one request."""
        assert self._process is not None and self._process.stdin is not None
        self._process.stdin.write(json.dumps(request).encode() + b"\n")
        self._process.stdin.flush()

    def receive(self, deadline: float) -> dict[str, Any]:
        """Read one line, at the latest when the monotonic clock shows `deadline`."""
        assert self._process is not None and self._process.stdout is not None
        with selectors.DefaultSelector() as selector:
            selector.register(self._process.stdout, selectors.EVENT_READ)
            while b"\n" not in self._received:
                if not selector.select(max(0.0, deadline - time.monotonic())):
                    raise TimeoutError("no line before the deadline")
                chunk = os.read(self._process.stdout.fileno(), 65536)
                if not chunk:
                    raise BrokenPipeError("the worker closed its pipe")
                self._received += chunk
        line, _, self._received = self._received.partition(b"\n")
        message: dict[str, Any] = json.loads(line)
        return message

    def kill(self) -> None:
        """End the process, if there is one."""
        process, self._process = self._process, None
        self._received, self._ready = b"", False
        if process is None:
            return
        process.kill()
        process.wait()
        for pipe in (process.stdin, process.stdout):
            if pipe is not None:
                with contextlib.suppress(OSError):
                    pipe.close()


def _content(reference: str) -> str:
    found = boxes(reference)
    return found[-1] if found else reference.strip()


def _agree(left: str, right: str) -> bool:
    if normal(left) == normal(right):
        return True
    left_number, right_number = number(left), number(right)
    return (
        left_number is not None
        and right_number is not None
        and left_number.value == right_number.value
    )


def _score(total: float, why: str) -> Score:
    return Score(total=total, parts={PART: total}, why=why)


def _short(text: str) -> str:
    text = " ".join(text.split())
    return repr(text if len(text) <= 60 else f"{text[:57]}...")
