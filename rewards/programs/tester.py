"""Runs the tests that are not plain, in a sandbox of their own beside the program's.

Names of the program are handles; every use of one is a line to the judge, which passes it on to the
program's sandbox and brings the answer back. Expected values stay here. Each test ends with a line
of verdict, which only this process can write.
"""

from __future__ import annotations

import builtins
import io
import marshal
import os
import sys
from types import CodeType
from typing import Any

from rewards.programs.handles import Handle
from rewards.programs.values import MUTABLE, decode, encode, parse, update

SETUP = -1  # the entry of its steps
ASK, VERDICT, BROKEN = "A", "V", "B"
QUESTIONS = frozenset({
    "endswith", "is_integer", "isalnum", "isalpha", "isascii", "isdecimal", "isdigit", "isdisjoint",
    "islower", "isnumeric", "isspace", "issubset", "issuperset", "istitle", "isupper", "startswith",
})  # fmt: skip
"""Methods of text, numbers and sets that answer yes or no. An object in their place would always
say yes, so they are asked only of classes that the tests name."""


class Remote:
    """The program, asked through the judge."""

    def __init__(self, answers: int, questions: int) -> None:
        self._answers = open(answers, "rb", buffering=65536)  # noqa: SIM115
        self._questions = questions
        self._functions: list[Any] = []  # of the tests, handed to the program
        self.classes: tuple[str, ...] = ()  # names that the tests use
        self.expects_stop = False  # whether the tests themselves speak of StopIteration
        self._errors: dict[str, type[BaseException]] = {}
        self._stdin, self._stdout = sys.stdin, sys.stdout

    def read(self) -> bytes:
        """One line from the judge."""
        line = self._answers.readline()
        if not line:
            os._exit(0)
        return line

    def write(self, kind: str, text: str) -> None:
        """One line to the judge."""
        view = memoryview(f"{kind}{text}\n".encode("ascii"))
        while view:
            view = view[os.write(self._questions, view) :]

    def ask(self, operation: str, *operands: Any) -> Any:
        """One operation on the program's objects."""
        if operation == "get" and operands[1] in QUESTIONS:
            kind = operands[0]._temper_type
            if kind not in self.classes or not kind[:1].isupper():
                raise AttributeError(f"{operands[1]} is asked of plain data only")
        if operation != "call":
            return self._exchange([operation, *operands])[0]
        args, kwargs = operands[1], operands[2]
        given = [arg for arg in (*args, *kwargs.values()) if isinstance(arg, MUTABLE)]
        redirected = sys.stdin is not self._stdin or sys.stdout is not self._stdout
        text = ""
        if redirected and sys.stdin is not self._stdin:
            text = sys.stdin.read()
        value, changed, printed = self._exchange(
            [operation, *operands, text if redirected else None]
        )
        for place, new in changed:
            update(given[place], new)
        if printed is not None:
            sys.stdout.write(printed[0])
            if sys.stdin is not self._stdin:
                sys.stdin = io.StringIO(text[printed[1] :])
        return value

    def _exchange(self, question: list[Any]) -> list[Any]:
        self.write(ASK, encode(question, self._other))
        while True:
            answer = decode(parse(self.read()), self._known)
            if answer[0] == "r":
                return answer[1:]
            if answer[0] == "x":
                kind = self._error(answer[1])
                if issubclass(kind, StopIteration) and not self._may_stop(question[0]):
                    kind = RuntimeError  # `all(map(test, cases))` would take it for the end
                raise kind(answer[2])
            self._call_back(*answer[1:])

    def _may_stop(self, operation: str) -> bool:
        return operation == "next" or self.expects_stop

    def _call_back(self, number: int, args: list[Any], kwargs: dict[str, Any]) -> None:
        try:
            reply = encode(["return", self._functions[number](*args, **kwargs)], self._other)
        except Exception as error:
            reply = encode(["raise", type(error).__name__, str(error)], self._other)
        self.write(ASK, reply)

    def _other(self, value: Any) -> str:
        if isinstance(value, Handle):
            return f'["o",{value._temper_id}]'
        self._functions.append(value)
        return f'["k",{len(self._functions) - 1}]'

    def _known(self, node: list[Any]) -> Any:
        if node[0] == "o":
            return Handle(self.ask, node[1], node[2])
        if node[0] == "e":
            return self._error(node[1][1:])
        raise ValueError("no such tag")

    def _error(self, names: list[str]) -> type[BaseException]:
        """The class of an exception by the names of its bases, itself first."""
        name = names[0]
        known = getattr(builtins, name, None)
        if isinstance(known, type) and issubclass(known, BaseException):
            return known
        if name not in self._errors:
            base = self._error(names[1:]) if len(names) > 1 else Exception
            self._errors[name] = type(name, (base,), {})
        return self._errors[name]


def _names(code: CodeType) -> set[str]:
    """Every name that a piece of code uses, also in functions of it."""
    inner = [part for part in code.co_consts if isinstance(part, type(code))]
    return set(code.co_names).union(*map(_names, inner))


def _namespace(remote: Remote, targets: tuple[str, ...], trusted: Any) -> dict[str, Any]:
    """What the tests start with: as a script, beside the program's names."""
    namespace: dict[str, Any] = {"__name__": "__main__"}
    for name, module in trusted:
        found = __import__(module)
        namespace[name] = found if name == module else getattr(found, name)
    for name in targets:
        try:
            namespace[name] = remote.ask("name", name)
        except Exception:  # the test that uses it will say so
            continue
    return namespace


def main(answers: int, questions: int, packages: str) -> None:
    """Run the steps that the judge sends, in order."""
    if packages:
        sys.path.append(packages)
    remote = Remote(answers, questions)
    remote.write("", "ready")
    steps, targets, trusted = marshal.loads(bytes.fromhex(remote.read().decode("ascii")))
    remote.classes = targets
    remote.expects_stop = any("StopIteration" in _names(code) for code, *_ in steps)
    namespace = _namespace(remote, targets, trusted)
    failed: set[int] = set()
    for code, entry, is_test, imports in steps:
        problem = ""
        if failed.isdisjoint((entry, SETUP)):
            try:
                exec(code, namespace)
            except BaseException as error:  # also SystemExit: no test ends the others
                problem = f"{type(error).__name__}: {str(error)[:200]}".removesuffix(": ")
                if imports:
                    remote.write(BROKEN, encode(problem, remote._other))
                if not is_test:
                    failed.add(entry)
        else:
            problem = "not reached"
        sys.stdin, sys.stdout = remote._stdin, remote._stdout
        if is_test:
            remote.write(VERDICT, encode(problem, remote._other))
    os._exit(0)
