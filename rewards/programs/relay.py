"""Tests that are not plain: their sandbox and the program's, with the judge between."""

import ast
import json
import marshal

from rewards.errors import RewardError
from rewards.programs.reference import CodeReference
from rewards.programs.session import Process, ProgramError
from rewards.sandbox_process import Deadline

ASK, VERDICT, BROKEN = b"A", b"V", b"B"


def send_tests(tester: Process, tests: CodeReference, deadline: Deadline) -> None:
    """Give the tests to their sandbox. Raises `ProgramError`."""
    steps = [
        (
            compile(ast.Module(body=[step.node], type_ignores=[]), "tests", "exec"),
            step.entry,
            step.is_test,
            isinstance(step.node, ast.Import | ast.ImportFrom),
        )
        for step in tests.steps
    ]
    tester.send(marshal.dumps((steps, tests.targets, tests.trusted)).hex(), deadline)


def next_verdict(tester: Process, program: Process, deadline: Deadline) -> str:
    """Carry questions and answers between the two until a test ends; empty if it passed.

    Nothing that the program says is read here: it goes to the tests, as the answer to a question.
    Raises `ProgramError` if either ends, is late or says too much, `RewardError` if the tests
    import what is not there.
    """
    while True:
        line = tester.receive(deadline)
        if line[:1] == VERDICT:
            problem = json.loads(line[1:])
            return str(problem)
        if line[:1] == BROKEN:
            raise RewardError(
                f"the tests cannot be run: {json.loads(line[1:])}; put a folder of packages that "
                "they may import in rewards.code.packages"
            )
        if line[:1] != ASK:
            raise ProgramError("the tests broke off")
        program.write(line[1:] + b"\n", deadline)
        tester.write(program.receive(deadline) + b"\n", deadline)
