"""The process that bears workers: it imports once, and every fork of it serves within milliseconds.

It is single-threaded and runs no untrusted work itself, so forking is safe and it is always quick
to answer. Over its control socket, `fork N` with a file descriptor starts worker N on that socket,
and `kill N` ends it. When the parent goes, the control socket closes and everything ends.
"""

import contextlib
import ctypes
import gc
import json
import logging
import math
import os
import resource
import select
import signal
import socket
import sys
from collections.abc import Callable
from typing import Protocol


class Comparer(Protocol):
    """What a worker does. Whatever it raises means no."""

    def reads(self, gold: str) -> bool:
        """Whether the gold answer can be read."""

    def equal(self, gold: str, answer: str) -> bool:
        """Whether an answer is that gold."""


PR_SET_PDEATHSIG = 1
REAP_S = 1.0


def serve(comparer: Comparer, memory_bytes: int) -> None:
    """Run the nursery, on the socket whose descriptor is the first argument, until it closes."""
    control, parent = socket.socket(fileno=int(sys.argv[1])), os.getppid()
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    logging.disable(logging.CRITICAL)
    gc.freeze()  # what is imported stays shared with the forks
    control.send(b"ready")
    children: dict[str, int] = {}
    while True:
        _reap(children)
        if not readable(control, REAP_S):
            if os.getppid() != parent:  # a fork of the parent may still hold the socket open
                break
            continue
        try:
            message, descriptors, _, _ = socket.recv_fds(control, 64, 1)
        except OSError:
            message, descriptors = b"", []
        if not message:
            break
        word, _, token = message.decode().partition(" ")
        if word == "kill":
            _kill(children, token)
            continue
        child = _fork(control, descriptors[0], comparer, memory_bytes)
        if child:
            children[token] = child
        os.close(descriptors[0])
    for token in list(children):
        _kill(children, token)


def readable(connection: socket.socket, timeout_s: float) -> bool:
    """Whether something came, or its end. Not `select`, which fails from descriptor 1024 on."""
    poll = select.poll()
    poll.register(connection, select.POLLIN)
    return bool(poll.poll(math.ceil(1000 * timeout_s)))


def _fork(
    control: socket.socket, descriptor: int, comparer: Comparer, memory_bytes: int
) -> int | None:
    nursery = os.getpid()
    try:
        child = os.fork()
    except OSError:  # no more processes: the parent sees its socket close
        return None
    if child:
        return child
    try:
        control.close()
        ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
        if os.getppid() == nursery:
            resource.setrlimit(resource.RLIMIT_AS, (memory_bytes, memory_bytes))
            resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
            _work(socket.socket(fileno=descriptor), comparer)
    except BaseException:  # the parent sees the socket close
        os._exit(1)
    os._exit(0)


def _work(connection: socket.socket, comparer: Comparer) -> None:
    """Answer requests, one JSON object per line, until the connection closes."""
    sys.stdout = sys.stderr = open(os.devnull, "w")  # noqa: SIM115 (for the process's whole life)

    def say(message: dict[str, int | bool]) -> None:
        connection.sendall(json.dumps(message).encode() + b"\n")

    say({"pid": os.getpid()})
    for line in connection.makefile("r"):
        request = json.loads(line)
        gold, answer = request["gold"], request["answer"]
        known = _holds(comparer.reads, gold)
        say({"gold": known})
        if known:
            say({"equal": _holds(comparer.equal, gold, answer)})


def _holds(question: Callable[..., bool], *texts: str) -> bool:
    try:
        return question(*texts)
    except Exception:  # the answer is untrusted, and a library raises anything
        return False


def _kill(children: dict[str, int], token: str) -> None:
    child = children.pop(token, None)
    if child is not None:
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)


def _reap(children: dict[str, int]) -> None:
    for token, child in list(children.items()):
        with contextlib.suppress(ChildProcessError):
            if os.waitpid(child, os.WNOHANG)[0]:
                children.pop(token)
