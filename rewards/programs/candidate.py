"""Serves the functions of one program, inside its sandbox.

Requests and replies are lines of JSON (`rewards.programs.values`) on two pipes. Nothing here is
trusted: the program shares the process and may rewrite all of it, which only changes what it
answers. What it should answer is not in this sandbox.
"""

from __future__ import annotations

import builtins
import io
import os
import sys
from collections.abc import Callable
from typing import Any

from rewards.programs.values import MUTABLE, decode, encode, parse

MODULE = "solution"


class Callback:
    """A function of the tests that was handed to the program."""

    def __init__(self, server: Server, number: int) -> None:
        self._server, self._number = server, number

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        server = self._server
        server.send(["k", self._number, list(args), kwargs])
        return server.answer_until_return()


class Server:
    """One program and the objects that were handed out."""

    def __init__(self, requests: int, replies: int) -> None:
        self._requests = open(requests, "rb", buffering=65536)  # noqa: SIM115
        self._replies = replies
        self._objects: list[Any] = []
        self._module = type(sys)(MODULE)
        sys.modules[MODULE] = self._module

    def run(self) -> None:
        """Answer until the pipe closes."""
        self._write(b"ready\n")
        while True:
            self.answer(self._read())

    def answer_until_return(self) -> Any:
        """Answer requests until the tests return from a callback."""
        while True:
            message = self._read()
            if message[0] == "return":
                return message[1]
            if message[0] == "raise":
                raise getattr(builtins, str(message[1]), RuntimeError)(message[2])
            self.answer(message)

    def answer(self, message: list[Any]) -> None:
        """Do what is asked and reply, whatever the program raises."""
        try:
            reply = self._encode(["r", *_OPERATIONS[str(message[0])](self, *message[1:])])
        except BaseException as error:  # also SystemExit: the tests decide what it means
            reply = self._failure(error)
        self._write(reply.encode() + b"\n")

    def send(self, message: list[Any]) -> None:
        """Write one message."""
        self._write(self._encode(message).encode() + b"\n")

    def load(self, source: str, helpers: str) -> list[Any]:
        """Run the program's text; names that it defines before it leaves or reads count."""
        namespace = self._module.__dict__
        for name, text in (("helpers.py", helpers), (f"{MODULE}.py", source)):
            try:
                exec(compile(text, name, "exec", dont_inherit=True), namespace)
            except (EOFError, SystemExit):
                continue
        return [None]

    def call(self, target: Any, args: list[Any], kwargs: dict[str, Any], *io_: Any) -> list[Any]:
        """Call, and say which arguments were changed in place."""
        watched = [arg for arg in (*args, *kwargs.values()) if isinstance(arg, MUTABLE)]
        before = [self._encode(arg) for arg in watched]
        stdin, sys_stdin, sys_stdout = io_[0] if io_ else None, sys.stdin, sys.stdout
        printed = None
        reader, writer = io.StringIO(stdin), io.StringIO()
        if stdin is not None:
            sys.stdin, sys.stdout = reader, writer
        try:
            value = target(*args, **kwargs)
            if stdin is not None:
                printed = [writer.getvalue(), reader.tell()]
        finally:
            sys.stdin, sys.stdout = sys_stdin, sys_stdout
        changed = [
            [place, arg]
            for place, (arg, text) in enumerate(zip(watched, before, strict=True))
            if self._encode(arg) != text
        ]
        return [value, changed, printed]

    def name(self, name: str) -> list[Any]:
        """A name of the program."""
        try:
            return [self._module.__dict__[name]]
        except KeyError:
            raise NameError(f"name '{name}' is not defined") from None

    def call_name(self, name: str, args: list[Any], kwargs: dict[str, Any]) -> list[Any]:
        """Call by name."""
        return self.call(self.name(name)[0], args, kwargs)

    def set(self, value: Any, name: str, new: Any) -> list[Any]:
        """Set an attribute."""
        setattr(value, name, new)
        return [None]

    def delete(self, value: Any, name: str) -> list[Any]:
        """Delete an attribute."""
        delattr(value, name)
        return [None]

    def state(self, value: Any) -> list[Any]:
        """The data of an object, for comparing; None if it has none."""
        kind = type(value)
        slots = [name for base in kind.__mro__ for name in vars(base).get("__slots__", ())]
        data = {name: getattr(value, name) for name in slots if hasattr(value, name)}
        data.update(getattr(value, "__dict__", {}))
        return [(kind.__qualname__, data) if data else None]

    def operate(self, name: str, *operands: Any) -> list[Any]:
        """An operator between objects of the program."""
        operator = __import__("operator")
        return [getattr(operator, name)(*operands)]

    def _other(self, value: Any) -> str:
        if isinstance(value, type) and issubclass(value, BaseException):
            return f'["e",{self._encode([base.__name__ for base in value.__mro__])}]'
        self._objects.append(value)
        return f'["o",{len(self._objects) - 1},{encode(type(value).__name__, self._other)}]'

    def _known(self, node: list[Any]) -> Any:
        if node[0] == "o":
            return self._objects[node[1]]
        if node[0] == "k":
            return Callback(self, node[1])
        raise ValueError("no such tag")

    def _encode(self, value: Any) -> str:
        return encode(value, self._other)

    def _failure(self, error: BaseException) -> str:
        names = [base.__name__ for base in type(error).__mro__]
        try:
            return self._encode(["x", names, str(error)[:1000]])
        except BaseException:
            return self._encode(["x", names, ""])

    def _read(self) -> list[Any]:
        line = self._requests.readline()
        if not line:
            os._exit(0)
        message = decode(parse(line), self._known)
        assert isinstance(message, list)
        return message

    def _write(self, data: bytes) -> None:
        view = memoryview(data)
        while view:
            view = view[os.write(self._replies, view) :]


_OPERATIONS: dict[str, Callable[..., list[Any]]] = {
    "load": Server.load,
    "name": Server.name,
    "call": Server.call,
    "call_name": Server.call_name,
    "state": Server.state,
    "operate": Server.operate,
    "get": lambda _, value, name: [getattr(value, name)],
    "set": Server.set,
    "del": Server.delete,
    "item": lambda _, value, key: [value[key]],
    "setitem": lambda _, value, key, new: [value.__setitem__(key, new)],
    "delitem": lambda _, value, key: [value.__delitem__(key)],
    "iter": lambda _, value: [iter(value)],
    "next": lambda _, value: [next(value)],
    "len": lambda _, value: [len(value)],
    "bool": lambda _, value: [bool(value)],
    "str": lambda _, value: [str(value)],
    "repr": lambda _, value: [repr(value)],
    "isinstance": lambda _, value, kind: [isinstance(value, kind)],
    "issubclass": lambda _, value, kind: [issubclass(value, kind)],
}


def main(requests: int, replies: int, packages: str) -> None:
    """Serve one program on two inherited pipes."""
    null = os.open("/dev/null", os.O_WRONLY)
    for stream in (1, 2):  # what is printed counts for nothing, and must not fill a file
        os.dup2(null, stream)
    for name in ("exit", "quit"):  # `site` would define them
        setattr(builtins, name, sys.exit)
    sys.argv = [f"{MODULE}.py"]
    if packages:
        sys.path.append(packages)
    Server(requests, replies).run()
