"""A program that was started in a sandbox: wait for it, read what it wrote, end it."""

import contextlib
import os
import re
import select
import signal
import subprocess
import tempfile
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass

from rewards.sandbox_cgroup import Group

END_TIMEOUT_S = 10.0
REAP_TIMEOUT_S = 2.0
WATCH_EVERY_S = 0.01
STEP_S = 0.1  # between looks at a program that is past its soft deadline
_EXIT = re.compile(rb'"exit-code": *([0-9]+)')


@dataclass(frozen=True, slots=True)
class Deadline:
    """On the monotonic clock. A busy machine is no fault of a program: one that wants to run has
    until `hard`, one that sleeps or waits until `soft`."""

    soft: float
    hard: float


@dataclass(frozen=True, slots=True)
class Namespace:
    """The first process of a sandbox: when it is gone, all are."""

    pid: int  # on this machine
    handle: int  # its pidfd: readable once the whole namespace is gone
    status: int  # where bubblewrap, which alone holds the other end, writes the exit status
    gate: int  # what it reads before it lets the program begin: unread, nothing has begun


@dataclass(frozen=True, slots=True)
class Output:
    """Two anonymous files: a program may fill them without anybody reading along."""

    stdout: int
    stderr: int

    @classmethod
    def make(cls) -> "Output":
        """Two empty files."""
        return cls(*(os.memfd_create(name, os.MFD_CLOEXEC) for name in ("stdout", "stderr")))

    def close(self) -> None:
        """Forget what was written."""
        os.close(self.stdout)
        os.close(self.stderr)


class Sandboxed:
    """A program that was started. Always leave it through `with` or `stop`."""

    def __init__(
        self,
        process: subprocess.Popen[bytes],
        output: Output,
        group: Group | None,
        folder: "tempfile.TemporaryDirectory[str] | None" = None,
    ) -> None:
        """Take over what was started."""
        self.namespace: Namespace | None = None
        self._process = process
        self._handle = os.pidfd_open(process.pid)
        self._output = output
        self._group = group
        self._folder = folder
        self._status: bytes | None = None
        self._stopped = False
        self._watcher: threading.Thread | None = None
        self._ended = threading.Event()  # for the watcher

    def __enter__(self) -> "Sandboxed":
        """Itself."""
        return self

    def __exit__(self, *_: object) -> None:
        """Kill what still runs."""
        self.stop()

    @property
    def pid(self) -> int:
        """Of the process that was started: bubblewrap's, where there is a sandbox."""
        return self._process.pid

    def wait(self, timeout_s: float) -> bool:
        """Whether it ended in time."""
        return readable(self._handle, timeout_s)

    def patiently(self, ready: Callable[[float], bool], deadline: Deadline) -> bool:
        """Whether `ready(SECONDS)` comes true before the deadline."""
        if ready(deadline.soft - time.monotonic()):
            return True
        while time.monotonic() < deadline.hard:
            if ready(STEP_S):
                return True
            if not self._wants_to_run():
                return False
        return False

    def _wants_to_run(self) -> bool:
        """Whether it is running, or waits for nothing but a core; its CPU time is bounded."""
        pid = self.pid if self.namespace is None else self.namespace.pid
        try:
            with open(f"/proc/{pid}/stat") as file:
                return file.read().rpartition(")")[2].split()[0] in ("R", "D")
        except (OSError, IndexError):
            return False

    def watch(self, most_processes: int) -> None:
        """Kill it when it has more processes: where the kernel does not count them for us."""
        assert self.namespace is not None
        self._watcher = threading.Thread(
            target=self._watch, args=(self.namespace, most_processes), daemon=True
        )
        self._watcher.start()

    def _watch(self, namespace: Namespace, most_processes: int) -> None:
        folder = f"/proc/{namespace.pid}/root/proc"  # theirs: it shows this namespace only
        while not self._ended.wait(WATCH_EVERY_S):
            with contextlib.suppress(OSError):
                began = not _unread(namespace.gate)  # before, it still sees our own /proc
                if began and sum(map(str.isdigit, os.listdir(folder))) > most_processes:
                    _signal(namespace)

    def exit_status(self) -> int | None:
        """Of a program that ended, as a shell counts it; None if it could not even begin, or if
        bubblewrap was killed: no fault of the program."""
        if self.namespace is not None:
            return self._exit_status(self.namespace)
        code = self._process.wait()
        return 128 - code if code < 0 else code

    def _exit_status(self, namespace: Namespace) -> int | None:
        if self._status is None:
            self._process.wait()
            text = b""
            while chunk := os.read(namespace.status, 4096):
                text += chunk
            self._status = text
        if found := _EXIT.search(self._status):
            return int(found[1])
        if self._process.returncode < 0 and not self._stopped:
            return None  # bubblewrap was killed, which nothing inside can do
        return None if _unread(namespace.gate) else 128 + signal.SIGKILL

    def stdout(self, most_bytes: int) -> bytes:
        """The beginning of what was printed."""
        return os.pread(self._output.stdout, most_bytes, 0)

    def complaint(self, most_bytes: int = 400) -> str:
        """The end of what was written to stderr, as one line."""
        size = os.fstat(self._output.stderr).st_size
        tail = os.pread(self._output.stderr, most_bytes, max(0, size - most_bytes))
        return " ".join(tail.decode(errors="replace").split())

    def stop(self) -> None:
        """Kill every process of the program, wait until none remains, forget what was written."""
        if self._stopped:
            return
        self._stopped = True
        if self._watcher is not None:  # before its descriptors are closed, and become another's
            self._ended.set()
            self._watcher.join()
        self._kill()
        os.close(self._handle)
        if self.namespace is not None:
            for descriptor in (self.namespace.handle, self.namespace.status, self.namespace.gate):
                os.close(descriptor)
        self._output.close()
        if self._group is not None:
            self._group.remove()
        if self._folder is not None:
            self._folder.cleanup()

    def _kill(self) -> None:
        if self.namespace is not None:
            _signal(self.namespace)
            readable(self._handle, REAP_TIMEOUT_S)  # bubblewrap reaps what was killed, and ends
        elif self._folder is not None:
            _signal_session(self._process.pid)
        self._process.kill()
        self._process.wait()
        if self.namespace is not None:
            readable(self.namespace.handle, END_TIMEOUT_S)
            with contextlib.suppress(ChildProcessError):  # ours only if orphans come to us
                os.waitid(os.P_PIDFD, self.namespace.handle, os.WEXITED | os.WNOHANG)


def _unread(pipe: int) -> bool:
    """Whether bytes wait in a pipe."""
    poll = select.poll()
    poll.register(pipe, select.POLLIN)
    return any(event & select.POLLIN for _, event in poll.poll(0))


def readable(descriptor: int, timeout_s: float) -> bool:
    """Whether a descriptor becomes readable, or its other end closes, in time."""
    poll = select.poll()
    poll.register(descriptor, select.POLLIN)
    return bool(poll.poll(max(0.0, timeout_s) * 1000))


def _signal(namespace: Namespace) -> None:
    with contextlib.suppress(ProcessLookupError, OSError):
        signal.pidfd_send_signal(namespace.handle, signal.SIGKILL)


def _signal_session(pid: int) -> None:
    with contextlib.suppress(ProcessLookupError):
        os.killpg(pid, signal.SIGKILL)
