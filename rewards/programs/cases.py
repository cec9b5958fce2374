"""Programs that read stdin and write stdout: build once, run each case in a sandbox of its own."""

import math
import time
from dataclasses import dataclass

from rewards.errors import RewardError
from rewards.programs.languages import Language
from rewards.programs.reference import Case
from rewards.programs.session import LATE, ending
from rewards.sandbox import Launch, Sandbox
from rewards.sandbox_config import CodeConfig
from rewards.sandbox_process import Deadline

BUILD_CPU_S = 30.0
BUILD_BYTES = 64 << 20


@dataclass(frozen=True, slots=True, kw_only=True)
class Finished:
    """What a program left behind."""

    stdout: bytes
    problem: str = ""  # why it does not count, in words; empty if it ended well


class Runner:
    """Runs one program on cases."""

    def __init__(self, sandbox: Sandbox, config: CodeConfig, language: Language) -> None:
        """Nothing is started yet."""
        self._sandbox = sandbox
        self._config = config
        self._language = language

    def build(self, program: str, deadline: float) -> tuple[dict[str, bytes], str]:
        """The files that a run needs, and what the compiler complained of (then the files are
        useless). `deadline` on the monotonic clock."""
        files = {self._language.file: program.encode(errors="replace")}
        if not self._language.build:
            return files, ""
        command = f"{self._language.build} && cat {{work}}/program"
        finished = self._finish(
            Launch(
                command=["/bin/sh", "-c", command],
                files=files,
                cpu_s=max(BUILD_CPU_S, self._config.timeout_s),
            ),
            Deadline(deadline, deadline),
            BUILD_BYTES,
        )
        return {"program": finished.stdout}, finished.problem and f"build: {finished.problem}"

    def run(self, files: dict[str, bytes], case: Case, deadline: float) -> str:
        """Empty if the program passes the case, else why not. `deadline` as above."""
        finished = self._finish(
            Launch(
                command=self._language.run,
                files=files,
                stdin=case.stdin.encode(errors="replace"),
                cpu_s=self._config.timeout_s,
                address_space=self._language.address_space,
                stack_mb=self._language.stack_mb,
            ),
            Deadline(min(deadline, time.monotonic() + self._config.wall_s), deadline),
            self._config.output_mb << 20,
        )
        if finished.problem:
            return finished.problem
        return difference(
            finished.stdout.decode(errors="replace"), case.stdout, self._config.float_tolerance
        )

    def _finish(self, launch: Launch, deadline: Deadline, most_bytes: int) -> Finished:
        with self._sandbox.start(launch) as child:
            if not child.patiently(child.wait, deadline):
                return Finished(stdout=b"", problem=LATE)
            code = child.exit_status()
            if code is None:
                raise RewardError(f"the sandbox does not start, or was killed: {child.complaint()}")
            stdout = child.stdout(most_bytes + 1)
            if len(stdout) > most_bytes:
                return Finished(stdout=b"", problem="too much output")
            if code:
                problem = f"{ending(code)}; {child.complaint(200)}"
                return Finished(stdout=stdout, problem=problem.removesuffix("; "))
            return Finished(stdout=stdout)


def difference(printed: str, expected: str, tolerance: float = 0.0) -> str:
    """Empty if two texts have the same lines, else the first that differs.

    Lines are compared by their words, so white space at their ends and its amount between words do
    not count; nor do empty lines at the end. With a tolerance, numbers need only be close.
    """
    got, wanted = _lines(printed), _lines(expected)
    for number in range(max(len(got), len(wanted))):
        left = got[number].split() if number < len(got) else None
        right = wanted[number].split() if number < len(wanted) else None
        if left is None or right is None or not _same(left, right, tolerance):
            shown = "nothing" if left is None else repr(got[number].strip()[:80])
            return f"line {number + 1} is {shown}"
    return ""


def _lines(text: str) -> list[str]:
    return text.rstrip().split("\n")


def _same(left: list[str], right: list[str], tolerance: float) -> bool:
    if left == right:
        return True
    return (
        tolerance > 0.0
        and len(left) == len(right)
        and all(_near(*pair, tolerance) for pair in zip(left, right, strict=True))
    )


def _near(got: str, wanted: str, tolerance: float) -> bool:
    if got == wanted:
        return True
    try:
        return math.isclose(float(got), float(wanted), rel_tol=tolerance, abs_tol=tolerance)
    except ValueError:
        return False
