"""The reward of a program: do its tests pass? Decided outside the program's process.

The program runs in a sandbox and answers calls with plain data; what it should answer stays here,
or in a second sandbox for tests that are more than plain comparisons. So a program can earn nothing
but by answering right: there is no verdict in its process to forge, and no expected value to read.
"""

import contextlib
import hashlib
import os
import threading
import time
from collections.abc import Generator
from concurrent.futures import Future

from rewards.errors import RewardError
from rewards.programs.cases import Runner
from rewards.programs.evaluate import Evaluator, is_plain
from rewards.programs.languages import Language, find_language
from rewards.programs.program import find_program
from rewards.programs.reference import SETUP, CodeReference, parse_reference
from rewards.programs.relay import next_verdict, send_tests
from rewards.programs.session import LATE, Process, ProgramError, Session, payload, start_process
from rewards.sandbox import Sandbox
from rewards.sandbox_config import CodeConfig
from rewards.sandbox_process import Deadline
from rewards.score import Score

__all__ = ["CodeVerifier", "parse_reference"]
PART = "code"
RETRY_AFTER_S = 0.5
MOST_REMEMBERED = 512
MOST_CHARACTERS = 1_000_000  # of a program
TESTER = ("handles", "tester")
Verdicts = Generator[tuple[str, str], None, None]  # (test, what is wrong; empty if it passed)


class CodeVerifier:
    """Scores programs; safe to share between threads, of which hundreds may wait."""

    def __init__(self, config: CodeConfig | None = None) -> None:
        """No sandbox is made before a program needs it."""
        self._config = config or CodeConfig()
        cores = len(os.sched_getaffinity(0))
        self._slots = threading.BoundedSemaphore(self._config.max_concurrent or 2 * cores)
        self._lock = threading.Lock()
        self._sandbox: Sandbox | None = None
        self._outcomes: dict[bytes, Future[tuple[int, str]]] = {}

    def verify(self, response: str, reference: str) -> Score:
        """Score one response: part "code" is 1 if all tests pass, else 0 (or their fraction).

        Raises `RewardError` where no sandbox can run, and ValueError for a reference that cannot
        be read or a language whose tools are missing.
        """
        tests = parse_reference(reference)
        language = find_language(tests.language.name)
        program = find_program(response, language, tests.targets)
        if not program.strip():
            return _score(0.0, "no program in the response")
        if len(program) > MOST_CHARACTERS:
            return _score(0.0, f"the program has {len(program)} characters")
        passed, why = self._remembered(program, reference, tests, language)
        share = passed / tests.tests
        total = share if self._config.partial_credit else float(passed == tests.tests)
        return _score(total, f"{passed} of {tests.tests} tests passed{why}")

    def _remembered(
        self, program: str, reference: str, tests: CodeReference, language: Language
    ) -> tuple[int, str]:
        """The outcome, once for equal programs: samples of a group are often equal, and end
        together. A lateness is not remembered, for the machine may have been to blame."""
        text = f"{len(program)} {program}{reference}"
        key = hashlib.sha256(text.encode(errors="surrogatepass")).digest()
        with self._lock:
            known = self._outcomes.get(key)
            if known is None:
                mine = self._outcomes[key] = Future()
                while len(self._outcomes) > MOST_REMEMBERED:
                    del self._outcomes[next(iter(self._outcomes))]
        if known is not None:
            return known.result()
        try:
            outcome = self._patiently(program, tests, language)
        except BaseException as error:
            self._forget(key)
            mine.set_exception(error)
            raise
        if LATE in outcome[1]:
            self._forget(key)
        mine.set_result(outcome)
        return outcome

    def _forget(self, key: bytes) -> None:
        with self._lock:
            self._outcomes.pop(key, None)

    def _patiently(self, program: str, tests: CodeReference, language: Language) -> tuple[int, str]:
        with self._slots:
            try:
                return self._run(program, tests, language)
            except RewardError:  # of the sandbox: no fault of the program can raise it
                time.sleep(RETRY_AFTER_S)
                return self._run(program, tests, language)

    def check(self) -> None:
        """Raise `RewardError`, with what to install, where no sandbox can run."""
        self._box()

    def _run(self, program: str, tests: CodeReference, language: Language) -> tuple[int, str]:
        """How many tests pass, and what became of the first that does not."""
        deadline = time.monotonic() + self._config.program_timeout_s
        if tests.cases:
            verdicts = self._cases(program, tests, language, deadline)
        elif is_plain(tests.steps, tests.targets):
            verdicts = self._plain(program, tests, deadline)
        else:
            verdicts = self._relayed(program, tests, deadline)
        passed, why = 0, ""
        with contextlib.closing(verdicts):
            for name, problem in verdicts:
                passed += not problem
                why = why or (problem and f"; {name}: {problem}")
                if problem and not self._config.partial_credit:
                    break
        return passed, why

    def _cases(
        self, program: str, tests: CodeReference, language: Language, deadline: float
    ) -> Verdicts:
        runner = Runner(self._box(), self._config, language)
        files, problem = runner.build(program, deadline)
        for number, case in enumerate(tests.cases, start=1):
            yield f"case {number}", problem or runner.run(files, case, deadline)
            if problem:
                return

    def _plain(self, program: str, tests: CodeReference, deadline: float) -> Verdicts:
        with self._start("candidate") as process:
            process.greet()
            session = Session(process, self._patience(deadline))
            try:
                session.load(program, tests.helpers)
            except ProgramError as error:
                yield "the program", error.why
                return
            evaluator = Evaluator(session, tests.targets)
            failed: dict[int, str] = {}
            for step in tests.steps:
                problem = failed.get(step.entry, "") or failed.get(SETUP, "")
                problem = problem or evaluator.problem(step.node)
                if step.is_test:
                    yield step.source, problem
                elif problem:
                    failed[step.entry] = problem

    def _relayed(self, program: str, tests: CodeReference, deadline: float) -> Verdicts:
        name = "the program"
        with self._start("candidate") as process, self._start(*TESTER) as tester:
            process.greet()
            tester.greet()
            patience = self._patience(deadline)
            try:
                Session(process, patience).load(program, tests.helpers)
                send_tests(tester, tests, patience)
                for step in tests.steps:
                    if step.is_test:
                        name = step.source
                        yield name, next_verdict(tester, process, patience)
            except ProgramError as error:
                yield name, error.why

    def _patience(self, deadline: float) -> Deadline:
        return Deadline(min(deadline, time.monotonic() + self._config.wall_s), deadline)

    def _start(self, *modules: str) -> Process:
        config = self._config
        return start_process(
            self._box(),
            payload("values", *modules),
            config.timeout_s,
            config.output_mb << 20,
            self._box().packages,
        )

    def _box(self) -> Sandbox:
        with self._lock:
            if self._sandbox is None:
                self._sandbox = Sandbox(self._config)
            return self._sandbox


def _score(total: float, why: str) -> Score:
    line = "".join(mark if mark.isprintable() else "?" for mark in " ".join(why.split()))
    return Score(total=total, parts={PART: total}, why=line[:300])
