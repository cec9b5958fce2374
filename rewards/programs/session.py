"""One program in its sandbox, asked from outside: what to call, and what came back."""

import ast
import contextlib
import json
import marshal
import os
import select
import time
from functools import lru_cache
from pathlib import Path
from types import CodeType, TracebackType
from typing import Any

from rewards.errors import RewardError
from rewards.programs.handles import Handle
from rewards.programs.values import MUTABLE, decode, encode, update
from rewards.sandbox import Launch, Sandbox
from rewards.sandbox_process import Deadline, Sandboxed
from rewards.sandbox_seccomp import sealed_file

START_TIMEOUT_S = 30.0
LATE = "out of time"
_BOOT = """\
import sys, marshal
for name, code in marshal.load(open(int(sys.argv[1]), "rb")):
    module = sys.modules[name] = type(sys)(name)
    exec(code, module.__dict__)
module.main(*map(int, sys.argv[2:4]), *sys.argv[4:])
"""


class ProgramError(Exception):
    """The program raised, broke the protocol or ended; `why` is one line."""

    def __init__(self, why: str, raised: str = "") -> None:
        """`raised` is the name of the exception that the program raised."""
        super().__init__(why)
        self.why = why
        self.raised = raised


class Session:
    """A running program. Use it in `with`."""

    def __init__(self, process: "Process", deadline: Deadline) -> None:
        """`deadline` for everything together."""
        self._process = process
        self._deadline = deadline

    def load(self, program: str, helpers: str = "") -> None:
        """Run the program's text. Raises `ProgramError` if it raises."""
        self._ask("load", program, helpers)

    def ask(self, operation: str, *operands: Any) -> Any:
        """One operation on the program's objects. Raises `ProgramError`."""
        try:
            return self._ask(operation, *operands)[0]
        except ProgramError as error:
            if operation == "len" and error.raised == "TypeError":  # what has no length is iterated
                raise TypeError(error.why) from error
            raise

    def call(self, name: str, args: list[Any], kwargs: dict[str, Any]) -> Any:
        """Call a function; arguments that it changes in place are changed here too."""
        given = [arg for arg in (*args, *kwargs.values()) if isinstance(arg, MUTABLE)]
        value, changed, _ = self._ask("call_name", name, args, kwargs)
        try:
            for place, new in changed:
                update(given[place], new)
        except Exception as error:  # as above
            raise ProgramError("the program answered garbage") from error
        return value

    def _ask(self, operation: str, *operands: Any) -> list[Any]:
        self._process.send(encode([operation, *operands], _number_of), self._deadline)
        line = self._process.receive(self._deadline)
        try:
            reply = decode(json.loads(line), self._other)
        except Exception as error:  # the line is untrusted, and decoding it raises anything
            raise ProgramError("the program answered garbage") from error
        match reply:
            case ["r", *values] if len(values) == (3 if operation.startswith("call") else 1):
                return values
            case ["x", [str(name), *_], str(text)]:
                if operation == "next" and name == "StopIteration":
                    raise StopIteration
                raise ProgramError(f"{name}: {text}" if text else name, name)
        raise ProgramError("the program answered garbage")

    def _other(self, node: list[Any]) -> Any:
        match node:
            case ["o", int(number), str(type_name)]:
                return Handle(self.ask, number, type_name)
            case ["e", ["l", str(name), *_]]:
                return Handle(self.ask, -1, name)
        raise ValueError("no such tag")


class Process:
    """Lines to and from a Python program in the sandbox, each before a deadline."""

    def __init__(self, child: Sandboxed, requests: int, replies: int, most_bytes: int) -> None:
        """`most_bytes` of all replies together."""
        self._child = child
        self._requests, self.replies = requests, replies
        self._left = most_bytes
        self._received = bytearray()

    def __enter__(self) -> "Process":
        """Itself."""
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, _: TracebackType | None
    ) -> None:
        """Kill it."""
        self.stop()

    def greet(self) -> None:
        """Wait until it is ready. Raises `RewardError`: no program has run in it yet."""
        try:
            latest = time.monotonic() + START_TIMEOUT_S
            ready = self.receive(Deadline(latest, latest)) == b"ready"
        except ProgramError as error:
            raise RewardError(
                f"Python does not start in the sandbox: {error.why} {self._child.complaint()}"
            ) from error
        if not ready:
            raise RewardError("Python in the sandbox does not greet")

    def stop(self) -> None:
        """Kill it and close the pipes."""
        self._child.stop()
        os.close(self._requests)
        os.close(self.replies)

    def send(self, line: str, deadline: Deadline) -> None:
        """Write one line. Raises `ProgramError`."""
        self.write(line.encode("ascii") + b"\n", deadline)

    def write(self, data: bytes, deadline: Deadline) -> None:
        """Write bytes. Raises `ProgramError`."""
        view = memoryview(data)
        while view:
            if not self._ready(self._requests, select.POLLOUT, deadline):
                raise ProgramError(LATE)
            try:
                view = view[os.write(self._requests, view) :]
            except BlockingIOError:
                continue
            except OSError as error:
                raise ProgramError(self._ending()) from error

    def receive(self, deadline: Deadline) -> bytes:
        """Read one line. Raises `ProgramError`."""
        start = 0
        while (end := self._received.find(b"\n", start)) < 0:
            start = len(self._received)
            if not self._ready(self.replies, select.POLLIN, deadline):
                raise ProgramError(LATE)
            chunk = os.read(self.replies, 65536)
            if not chunk:
                raise ProgramError(self._ending())
            self._left -= len(chunk)
            if self._left < 0:
                raise ProgramError("too much output")
            self._received += chunk
        line = bytes(self._received[:end])
        del self._received[: end + 1]
        return line

    def _ready(self, descriptor: int, event: int, deadline: Deadline) -> bool:
        poll = select.poll()
        poll.register(descriptor, event)
        return self._child.patiently(
            lambda seconds: bool(poll.poll(max(0.0, seconds) * 1000)), deadline
        )

    def _ending(self) -> str:
        if not self._child.wait(1.0):
            return "the program closed its pipes"
        code = self._child.exit_status()
        if code is None:
            raise RewardError("the sandbox was killed from outside")
        return ending(code)


def start_process(
    sandbox: Sandbox, modules: bytes, cpu_s: float, most_bytes: int, packages: str = ""
) -> Process:
    """Start a Python process in a sandbox; `modules` are from `payload`."""
    with contextlib.ExitStack() as theirs, contextlib.ExitStack() as ours:
        code = _close_later(theirs, sealed_file("python", modules))
        requests_inside, requests = os.pipe()
        _close_later(theirs, requests_inside)
        _close_later(ours, requests)
        replies, replies_inside = os.pipe()
        _close_later(theirs, replies_inside)
        _close_later(ours, replies)
        os.set_blocking(requests, False)
        numbers = [str(number) for number in (code, requests_inside, replies_inside)]
        launch = Launch(
            command=["{python}", "-I", "-S", "-B", "-X", "utf8", "-c", _BOOT, *numbers, packages],
            keep=(code, requests_inside, replies_inside),
            cpu_s=cpu_s,
        )
        process = Process(sandbox.start(launch), requests, replies, most_bytes)
        ours.pop_all()
        return process


@lru_cache(maxsize=4)
def payload(*names: str) -> bytes:
    """Modules of this package, compiled for the interpreter in the sandbox, the main one last."""
    return marshal.dumps([*map(_package, ("rewards", "rewards.programs")), *map(_module, names)])


def _package(name: str) -> tuple[str, CodeType]:
    return name, compile("", name, "exec")


def _module(name: str) -> tuple[str, CodeType]:
    """One module without what only type checkers and readers need: imports for annotations cost
    a sandbox milliseconds, each time."""
    path = Path(__file__).with_name(f"{name}.py")
    tree = ast.parse(path.read_text())
    tree.body = [node for node in tree.body if not _for_annotations(node)]
    return f"rewards.programs.{name}", compile(tree, f"{name}.py", "exec", optimize=2)


_ANNOTATIONS = ("collections.abc", "typing")


def _for_annotations(node: ast.stmt) -> bool:
    return isinstance(node, ast.ImportFrom) and node.module in _ANNOTATIONS


def ending(code: int) -> str:
    """What an exit status says, in words."""
    if code == 128 + 24:
        return "out of CPU time"
    if code == 128 + 9:
        return "killed: out of memory or CPU time"
    if code == 128 + 11:
        return "crashed (segmentation fault)"
    return f"the program ended early (exit status {code})"


def _number_of(value: Any) -> str:
    if isinstance(value, Handle):
        return f'["o",{value._temper_id}]'
    raise ProgramError(f"a {type(value).__name__} cannot be given to the program")


def _close_later(stack: contextlib.ExitStack, descriptor: int) -> int:
    stack.callback(os.close, descriptor)
    return descriptor
