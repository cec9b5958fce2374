"""The child process of `rewards.scoring`: scores one row after another until told to stop.

In: a `ScorerSpec`, then lists of `Line`, then None. Out: None once it is ready, or `NotStarted`,
then a `Verdict` for every line as soon as it is known, so that the parent sees which row is being
scored and for how long.
"""

import ctypes
import os
import queue
import signal
import threading
import time
from collections.abc import Callable
from typing import BinaryIO

from rewards import instructions
from rewards.code_tests import CodeVerifier
from rewards.errors import RewardError
from rewards.math_answer import MathVerifier, UnreadableGold
from rewards.mathematics.nursery import PR_SET_PDEATHSIG
from rewards.plugin import Plugin
from rewards.rows import Line, Row, RowError, read_row, scored_line
from rewards.sandbox import check_sandbox
from rewards.sandbox_config import CodeConfig
from rewards.score import Score
from rewards.task import Message, Task, TaskKind, Transcript
from rewards.verdict import (
    NotStarted,
    ScorerSpec,
    Trouble,
    Verdict,
    one_line,
    read_frame,
    unscored,
    write_frame,
    zero,
)

WAITS_S = (0.5, 2.0)  # after the first and the second failure of a verifier's environment

Scorer = Callable[[Row], Score | None]


def make_scorer(spec: ScorerSpec) -> tuple[Scorer, Callable[[], None]]:
    """What scores a row, and what ends its processes.

    Raises `ValueError` for a plug-in that cannot be loaded, `RewardError` where code cannot be run.
    """
    if spec.reward is not None:
        plugin = Plugin(spec.reward)
        return lambda row: plugin.score(*_episode(spec.kind, row)), lambda: None
    if spec.kind is TaskKind.math:
        algebra = MathVerifier(timeout_s=spec.timeout_s)
        return lambda row: algebra.verify(row.response, row.reference), algebra.close
    if spec.kind is TaskKind.code:
        limit_s = min(CodeConfig().timeout_s, spec.timeout_s)
        config = CodeConfig(timeout_s=limit_s, program_timeout_s=spec.timeout_s)
        check_sandbox(config)
        programs = CodeVerifier(config)
        return lambda row: programs.verify(row.response, row.reference), lambda: None
    return lambda row: instructions.verify(row.response, row.prompt, row.reference), lambda: None


def score_line(spec: ScorerSpec, scorer: Scorer, line: Line) -> Verdict:
    """The verdict on one line. Never raises: a row is worth 0 at worst, or no verdict."""
    started = time.perf_counter()
    try:
        row = read_row(spec.kind, line.raw)
        score = scorer(row) if spec.reward else _patiently(scorer, row)
        if score is None:
            raise RewardError("the reward does not apply")
        why = one_line(score.why)
        scored = scored_line(row.record, score.total, why)
    except UnreadableGold as error:
        why = one_line(f"{error}; the answer is not its text")
        return zero(line, spec.kind, why, Trouble.text_only, time.perf_counter() - started)
    except (RewardError, RowError) as error:
        return unscored(line, one_line(str(error)), time.perf_counter() - started)
    except Exception as error:  # the response is untrusted, and may make a scorer raise anything
        why = one_line(f"the scorer raised {type(error).__name__}: {error}")
        return zero(line, spec.kind, why, Trouble.crashed, time.perf_counter() - started)
    seconds = time.perf_counter() - started
    return Verdict(number=line.number, score=score.total, why=why, seconds=seconds, line=scored)


def main() -> None:
    """Work until told to stop; if the parent dies, end with all processes of this group.

    The thread that reads notices the end of the parent, unless a plug-in lets no thread run: `re`
    does not, but it lets signals be handled, and the kernel sends one.
    """
    signal.signal(signal.SIGTERM, _end)
    ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGTERM)
    frames, out = os.fdopen(os.dup(0), "rb"), os.fdopen(os.dup(1), "wb")
    with open(os.devnull, "rb") as nothing:
        os.dup2(nothing.fileno(), 0)
    os.dup2(2, 1)  # the pipe is ours alone, whatever a plug-in prints
    try:
        spec: ScorerSpec = read_frame(frames)
    except EOFError:
        return _end()
    try:
        scorer, close = make_scorer(spec)
    except (ValueError, RewardError) as error:
        bad_input = isinstance(error, ValueError)
        return _say(out, NotStarted(message=str(error), bad_input=bad_input))
    _say(out, None)
    chunks: queue.SimpleQueue[list[Line] | None] = queue.SimpleQueue()
    threading.Thread(target=_receive, args=(frames, chunks), daemon=True).start()
    while (chunk := chunks.get()) is not None:
        for line in chunk:
            _say(out, score_line(spec, scorer, line))
    close()
    os._exit(0)  # not waiting for the thread that reads


def _patiently(scorer: Scorer, row: Row) -> Score | None:
    """A verifier's score; an environment that fails it, such as a starved machine, may recover."""
    for wait_s in WAITS_S:
        try:
            return scorer(row)
        except UnreadableGold:
            raise
        except RewardError:
            time.sleep(wait_s)
    return scorer(row)


def _receive(frames: BinaryIO, chunks: "queue.SimpleQueue[list[Line] | None]") -> None:
    try:
        while True:
            chunks.put(read_frame(frames))
    except (EOFError, OSError):
        _end()


def _say(out: BinaryIO, message: object) -> None:
    try:
        write_frame(out, message)
    except OSError:
        _end()


def _end(*_: object) -> None:
    os.killpg(os.getpgrp(), signal.SIGKILL)


def _episode(kind: TaskKind, row: Row) -> tuple[Task, Transcript]:
    asked = (Message(role="user", content=row.prompt),)
    task = Task(id="row", kind=kind, messages=asked, reference=row.reference, token_budget=1 << 20)
    transcript = Transcript(
        messages=(*asked, Message(role="assistant", content=row.response)),
        response=row.response,
        response_tokens=len(row.response.split()),
        truncated=False,
    )
    return task, transcript


if __name__ == "__main__":
    main()
