"""Workers of `rewards.mathematics.nursery`, seen from the process that scores."""

import contextlib
import itertools
import json
import os
import socket
import subprocess
import sys
import threading
import time
from pathlib import Path

from rewards.mathematics.nursery import readable

GRACE_S = 1.0
_TICKS = os.sysconf("SC_CLK_TCK")


class Worker:
    """One forked process. OSError: it is gone. TimeoutError: it is late."""

    def __init__(self, token: int, connection: socket.socket, deadline: float) -> None:
        """Wait until it serves, at the latest until the monotonic clock shows `deadline`."""
        self.token = token
        self._connection = connection
        self._received = b""
        self._pid = self.receive(deadline)["pid"]
        self._processor_s = self._processor_time()

    def send(self, gold: str, answer: str, deadline: float) -> None:
        """Put one question."""
        self._processor_s = self._processor_time()
        self._connection.settimeout(_left(deadline))
        self._connection.sendall(json.dumps({"gold": gold, "answer": answer}).encode() + b"\n")

    def receive(self, deadline: float) -> dict[str, int]:
        """One message."""
        while b"\n" not in self._received:
            if not readable(self._connection, _left(deadline)):
                raise TimeoutError("no message before the deadline")
            chunk = self._connection.recv(65536)
            if not chunk:
                raise BrokenPipeError("the worker is gone")
            self._received += chunk
        line, _, self._received = self._received.partition(b"\n")
        message: dict[str, int] = json.loads(line)
        return message

    def alive(self) -> bool:
        """Whether an idle worker still waits for a question."""
        return not readable(self._connection, 0.0)

    def worked_s(self) -> float:
        """Seconds of processor time since the question."""
        return self._processor_time() - self._processor_s

    def close(self) -> None:
        """Let go: an idle worker ends by itself."""
        self._connection.close()

    def _processor_time(self) -> float:
        try:
            fields = Path(f"/proc/{self._pid}/stat").read_text().rpartition(")")[2].split()
        except OSError:
            return 0.0
        return (int(fields[11]) + int(fields[12])) / _TICKS


class Nursery:
    """The parent's side of one nursery process, which is started, watched and replaced.

    Started by hand, not with `multiprocessing`, whose children import the parent's main module: so
    a thread, a Ray actor and a script without a main guard are all the same.
    """

    def __init__(self, module: str) -> None:
        """The module is run with `-m`; nothing starts yet."""
        self._module = module
        self._lock = threading.Lock()
        self._process: subprocess.Popen[bytes] | None = None
        self._control: socket.socket | None = None
        self._ready = False
        self._owner = os.getpid()
        self._tokens = itertools.count()

    def start(self) -> None:
        """Start the process unless it runs, without waiting for it."""
        self._own()
        with self._lock:
            self._launch()

    def fork(self, deadline: float) -> Worker:
        """A new worker. TimeoutError: not before the deadline. OSError: the nursery died."""
        self._own()
        if not self._lock.acquire(timeout=_left(deadline)):
            raise TimeoutError("the nursery is busy")
        try:
            control = self._launch()
            self._await_ready(control, deadline)
            ours, theirs = socket.socketpair()
            token = next(self._tokens)
            with theirs:
                socket.send_fds(control, [f"fork {token}".encode()], [theirs.fileno()])
        except OSError as error:
            if not isinstance(error, TimeoutError):
                self._discard(0.0)
            raise
        finally:
            self._lock.release()
        try:
            return Worker(token, ours, deadline)
        except BaseException:
            ours.close()
            self.kill(token)
            raise

    def kill(self, token: int) -> None:
        """End a worker, whatever it does."""
        self._own()
        with self._lock, contextlib.suppress(OSError):
            if self._control is not None:
                self._control.send(f"kill {token}".encode())

    def close(self) -> None:
        """End the process and all its workers."""
        self._own()
        with self._lock:
            self._discard(GRACE_S)

    def _own(self) -> None:
        """In a fork of the scoring process: neither its nursery nor a lock that a thread held."""
        if self._owner != os.getpid():
            self._lock, self._owner = threading.Lock(), os.getpid()
            self._process, self._control, self._ready = None, None, False

    def _launch(self) -> socket.socket:
        if self._process is None or self._control is None or self._process.poll() is not None:
            self._discard(0.0)
            self._control, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
            package_root = str(Path(__file__).parents[2])
            path = os.pathsep.join(filter(None, [package_root, os.environ.get("PYTHONPATH")]))
            with theirs:
                self._process = subprocess.Popen(
                    [
                        sys.executable,
                        "-P",
                        "-W",
                        "ignore",
                        "-m",
                        self._module,
                        str(theirs.fileno()),
                    ],
                    stdin=subprocess.DEVNULL,
                    pass_fds=[theirs.fileno()],
                    env={**os.environ, "PYTHONPATH": path, "OMP_NUM_THREADS": "1"},
                )
        return self._control

    def _await_ready(self, control: socket.socket, deadline: float) -> None:
        if self._ready:
            return
        if not readable(control, _left(deadline)):
            raise TimeoutError("the nursery has not started yet")
        if not control.recv(16):
            raise BrokenPipeError("the nursery died while it started")
        self._ready = True

    def _discard(self, grace_s: float) -> None:
        process, control = self._process, self._control
        self._process, self._control, self._ready = None, None, False
        if control is not None:
            control.close()
        if process is not None:
            try:
                process.wait(grace_s)  # it ends its workers and itself; killed, its workers follow
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()


def _left(deadline: float) -> float:
    return max(0.0, deadline - time.monotonic())
