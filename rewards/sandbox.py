"""Runs untrusted programs under bubblewrap; the door to `bwrap`.

A program gets its own user, process, mount, IPC, network, host-name and cgroup namespaces, a
read-only system without anybody's files, a private folder in memory, no environment, limits of
resources, a system-call filter, and a wall time after which every process of it is killed. Nothing
of it remains: its processes end with the first of their namespace, its files with their mount.

Starting rests on `subprocess` alone (no code between fork and exec), so threads and Ray actors may
start programs. bubblewrap waits at a gate until the limits are set and the group is joined.
"""

import contextlib
import functools
import json
import os
import platform
import resource
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from rewards.errors import RewardError
from rewards.programs.languages import SYSTEM_PATH
from rewards.sandbox_cgroup import Group, GroupLimits, find_roots
from rewards.sandbox_config import CodeConfig
from rewards.sandbox_process import Namespace, Output, Sandboxed, readable
from rewards.sandbox_seccomp import sealed_file, seccomp_program

START_TIMEOUT_S = 30.0
OPEN_FILES = 256
_PACKAGES = "/packages"  # inside
INSTALL = (
    "install it (apt-get install bubblewrap) and allow user namespaces (sysctl "
    "kernel.unprivileged_userns_clone=1, kernel.apparmor_restrict_unprivileged_userns=0; in "
    "Docker: --security-opt seccomp=unconfined), or accept the danger with "
    "rewards.code.unsafe_run_without_sandbox=true"
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Launch:
    """One program to start."""

    command: Sequence[str]  # as seen inside; "{python}" and "{work}" are replaced
    files: Mapping[str, bytes] = field(default_factory=dict)  # by name in the private folder
    keep: Sequence[int] = ()  # descriptors that it inherits, under the same numbers
    address_space: bool = True  # limit it too; runtimes that reserve much more than they use: False
    stack_mb: int = 16  # also of every thread
    cpu_s: float = 6.0
    stdin: bytes = b""


class Sandbox:
    """Starts programs; safe to share between threads."""

    def __init__(self, config: CodeConfig) -> None:
        """Find out what this machine allows. Raises `RewardError` if programs may not be run."""
        self._config = config
        self._bwrap = shutil.which("bwrap") or ""
        self._groups = find_roots()
        self._filter = seccomp_program()
        self._arguments: list[str] = []
        self.isolated = True
        problem = self._probe()
        if problem is not None and not config.unsafe_run_without_sandbox:
            raise RewardError(f"untrusted code is not run: {problem}; {INSTALL}")
        if problem is not None:
            self.isolated = False
            _warn(f"untrusted code runs WITHOUT a sandbox: {problem}")

    @property
    def packages(self) -> str:
        """Where programs find the packages that they may import; empty without any."""
        return _PACKAGES if self.isolated and self._config.packages else self._config.packages

    def describe(self) -> str:
        """For a person: what programs run under."""
        if not self.isolated:
            return "NO sandbox, limits of resources only"
        parts = ["bubblewrap", self._groups.describe()]
        parts.append("seccomp" if self._filter else "no seccomp (libseccomp is missing)")
        parts += ["processes counted by watching"] if self._watches() else []
        return ", ".join(parts)

    def start(self, launch: Launch) -> Sandboxed:
        """Start a program. Raises `RewardError` if the sandbox itself fails."""
        try:
            return self._start(launch)
        except OSError as error:
            raise RewardError(f"the sandbox could not start: {error}") from error

    def _probe(self) -> str | None:
        """None if bubblewrap works here, else what is wrong."""
        if not self._bwrap:
            return "bubblewrap is missing"
        problem = ""
        mounts = [*_namespaces(), *_mounts(self._config)]
        for proc in (["--proc", "/proc"], []):  # containers may forbid a new /proc
            for nested in (["--disable-userns"], []):  # bubblewrap 0.7 does not know it
                options = [*nested, *mounts, *proc, "--remount-ro", "/"]
                self._arguments = [self._bwrap, *options]
                problem = self._trial() or ""
                if not problem:
                    return None
        return f"bubblewrap does not work here ({problem})"

    def _trial(self) -> str | None:
        launch = Launch(command=["{python}", "-I", "-S", "-c", "pass"])
        try:
            with self._start_isolated(launch, None) as child:
                if child.wait(START_TIMEOUT_S) and child.exit_status() == 0:
                    return None
                return child.complaint() or "Python does not start in it"
        except (OSError, RewardError) as error:
            return str(error)

    def _watches(self) -> bool:
        """Whether neither a group nor a limit counts processes."""
        limited = os.geteuid() != 0 and _processes_are_counted()  # no limit binds root
        return self._groups.pids is None and not limited

    def _start(self, launch: Launch) -> Sandboxed:
        if not self.isolated:
            return self._start_bare(launch)
        group = None
        if self._groups.version:
            megabytes, processes = self._config.memory_mb, self._config.processes
            limits = GroupLimits(memory_bytes=megabytes << 20, processes=processes)
            group = Group(self._groups, limits)
        try:
            return self._start_isolated(launch, group)
        except BaseException:
            if group is not None:
                group.remove()
            raise

    def _start_isolated(self, launch: Launch, group: Group | None) -> Sandboxed:
        with contextlib.ExitStack() as theirs, contextlib.ExitStack() as ours:
            status, status_inside = _pipe(ours, theirs)
            gate_inside, gate = _pipe(theirs, ours)
            arguments = ["--json-status-fd", str(status_inside), "--block-fd", str(gate_inside)]
            given = [status_inside, gate_inside]
            if self._filter:
                given.append(_keep(theirs, sealed_file("seccomp", self._filter)))
                arguments += ["--seccomp", str(given[-1])]
            for name, content in launch.files.items():
                given.append(_keep(theirs, sealed_file("program", content)))
                arguments += ["--perms", "0755", "--file", str(given[-1]), f"/tmp/{name}"]
            command = [_inside(part, python_inside(), "/tmp") for part in launch.command]
            gate_read = _keep(ours, os.dup(gate_inside))
            child = self._spawn(
                [*self._arguments, *arguments, *command], launch, given, group=group
            )
            theirs.close()  # so that an early end is noticed
            try:
                pid = _first_process(status)
                handles = os.pidfd_open(pid), os.dup(status), os.dup(gate_read)
                child.namespace = Namespace(pid, *handles)
                self._limit(pid, launch)
                if group is not None:
                    group.add(pid)
                os.write(gate, b"x")
                if self._watches():
                    child.watch(self._config.processes)
            except BaseException as error:
                child.wait(1.0)
                complaint = child.complaint()
                child.stop()
                if isinstance(error, OSError | ValueError):
                    raise RewardError(f"bubblewrap: {complaint or error}") from error
                raise
            return child

    def _start_bare(self, launch: Launch) -> Sandboxed:
        folder = tempfile.TemporaryDirectory(prefix="temper-unsafe-")
        for name, content in launch.files.items():
            Path(folder.name, name).write_bytes(content)
            Path(folder.name, name).chmod(0o755)
        command = [_inside(part, str(_python()), folder.name) for part in launch.command]
        child = self._spawn(command, launch, (), folder=folder)
        self._limit(child.pid, launch)
        return child

    def _spawn(
        self,
        command: list[str],
        launch: Launch,
        given: Sequence[int],
        group: Group | None = None,
        folder: tempfile.TemporaryDirectory[str] | None = None,
    ) -> Sandboxed:
        home = folder.name if folder is not None else "/"
        stdin, output = sealed_file("stdin", launch.stdin), Output.make()
        try:
            process = subprocess.Popen(
                command,
                stdin=stdin,
                stdout=output.stdout,
                stderr=output.stderr,
                pass_fds=(*given, *launch.keep),
                env={"PATH": SYSTEM_PATH, "HOME": home, "LANG": "C.UTF-8"},
                cwd=home,
                start_new_session=folder is not None,
            )
            return Sandboxed(process, output, group, folder)
        except BaseException:
            output.close()
            raise
        finally:
            os.close(stdin)

    def _limit(self, pid: int, launch: Launch) -> None:
        config = self._config
        disk, cpu = config.disk_mb << 20, max(1, round(launch.cpu_s + 0.499))
        memory = (config.memory_mb << 20) * (2 if self._groups.memory else 1)  # the group counts
        limits = {
            resource.RLIMIT_CPU: (cpu, cpu),  # process 1 of a namespace does not heed the soft one
            resource.RLIMIT_DATA: (memory, memory),
            resource.RLIMIT_FSIZE: (disk, disk),
            resource.RLIMIT_NOFILE: (OPEN_FILES, OPEN_FILES),
            resource.RLIMIT_CORE: (0, 0),
            resource.RLIMIT_STACK: (launch.stack_mb << 20, launch.stack_mb << 20),
        }
        if launch.address_space:
            limits[resource.RLIMIT_AS] = (memory, memory)
        if self.isolated and _processes_are_counted():
            limits[resource.RLIMIT_NPROC] = (config.processes, config.processes)
        for name, (soft, hard) in limits.items():
            most = resource.prlimit(pid, name)[1]
            if most != resource.RLIM_INFINITY:
                soft, hard = min(soft, most), min(hard, most)
            resource.prlimit(pid, name, (soft, hard))
        with contextlib.suppress(OSError):  # short of memory, it goes first, not the trainer
            Path(f"/proc/{pid}/oom_score_adj").write_text("1000")


def check_sandbox(config: CodeConfig) -> str:
    """What programs will run under. Raises `RewardError`, with what to install, if they cannot."""
    return Sandbox(config).describe()


def python_inside() -> str:
    """The interpreter's path inside the sandbox."""
    executable = _python()
    if executable.is_relative_to("/usr"):
        return str(executable)
    return str(Path("/python") / executable.relative_to(_prefix()))


@functools.lru_cache(maxsize=1)
def _python() -> Path:
    return Path(getattr(sys, "_base_executable", sys.executable)).resolve()


def _prefix() -> Path:
    return Path(sys.base_prefix).resolve()


def _namespaces() -> list[str]:
    """The program is the first process of its namespace: bubblewrap's own would outlive bubblewrap
    and stay behind as a zombie wherever process 1 of the machine does not reap."""
    return [
        "--unshare-user", "--unshare-pid", "--unshare-net", "--unshare-ipc", "--unshare-uts",
        "--unshare-cgroup-try", "--as-pid-1", "--uid", "1000", "--gid", "1000",
        "--hostname", "sandbox", "--die-with-parent", "--new-session", "--cap-drop", "ALL",
        "--clearenv",
        "--setenv", "PATH", SYSTEM_PATH, "--setenv", "HOME", "/tmp",
        "--setenv", "LANG", "C.UTF-8", "--setenv", "TMPDIR", "/tmp",
    ]  # fmt: skip


def _mounts(config: CodeConfig) -> list[str]:
    """The system, read-only; devices; a private folder. The root is sealed by the caller."""
    arguments = ["--ro-bind", "/usr", "/usr"]
    for name in ("bin", "sbin", "lib", "lib32", "lib64", "libx32"):
        path = Path("/", name)
        if path.is_symlink():
            arguments += ["--symlink", os.readlink(path).lstrip("/"), str(path)]
        elif path.is_dir():
            arguments += ["--ro-bind", str(path), str(path)]
    for path in (Path("/etc/alternatives"), Path("/etc/ld.so.cache")):
        arguments += ["--ro-bind-try", str(path), str(path)]
    if not _python().is_relative_to("/usr"):
        arguments += ["--ro-bind", str(_prefix()), "/python"]
    if config.packages:
        arguments += ["--ro-bind", str(Path(config.packages).resolve()), _PACKAGES]
    size = str(config.disk_mb << 20)
    return [
        *arguments, "--dev", "/dev", "--size", size, "--tmpfs", "/dev/shm",
        "--size", size, "--tmpfs", "/tmp", "--chdir", "/tmp", "--remount-ro", "/dev",
    ]  # fmt: skip


@functools.lru_cache(maxsize=1)
def _processes_are_counted() -> bool:
    """Whether RLIMIT_NPROC counts this sandbox only (Linux 5.14), not all processes of the user."""
    major, minor = (int(part) for part in platform.release().split(".")[:2])
    return (major, minor) >= (5, 14)


@functools.lru_cache(maxsize=8)
def _warn(text: str) -> None:
    """Once per process and text."""
    print(f"WARNING: {text}", file=sys.stderr)


def _first_process(status: int) -> int:
    """Its id, from the first line of `--json-status-fd`.

    Raises ValueError or OSError if bubblewrap ends or is late.
    """
    deadline, text = time.monotonic() + START_TIMEOUT_S, b""
    while b"\n" not in text:
        late = not readable(status, deadline - time.monotonic())
        chunk = b"" if late else os.read(status, 4096)
        if not chunk:
            raise ValueError("it did not start")
        text += chunk
    return int(json.loads(text.partition(b"\n")[0])["child-pid"])


def _pipe(reading: contextlib.ExitStack, writing: contextlib.ExitStack) -> tuple[int, int]:
    reader, writer = os.pipe()
    return _keep(reading, reader), _keep(writing, writer)


def _keep(stack: contextlib.ExitStack, descriptor: int) -> int:
    stack.callback(os.close, descriptor)
    return descriptor


def _inside(part: str, python: str, work: str) -> str:
    return part.replace("{python}", python).replace("{work}", work)
