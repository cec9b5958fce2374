"""Control groups: the memory and the processes of one sandbox, counted together.

Used where this process may make groups: version 1 by controller, or version 2 where the memory
controller is delegated to us. A group lives as long as one program.
"""

import contextlib
import itertools
import os
import time
from dataclasses import dataclass
from pathlib import Path

PREFIX = "temper-"
REMOVE_TIMEOUT_S = 2.0  # the kernel lets go of a group soon after its last process
PERIOD_US = 100_000
_numbers = itertools.count()


@dataclass(frozen=True, slots=True, kw_only=True)
class GroupLimits:
    """What all processes of a group may use together."""

    memory_bytes: int
    processes: int
    cores: int = 1


@dataclass(frozen=True, slots=True)
class GroupRoots:
    """Folders in which we may make groups, by controller; empty where we may not."""

    memory: Path | None = None
    pids: Path | None = None
    cpu: Path | None = None
    version: int = 0

    def describe(self) -> str:
        """For a person: what is counted."""
        found = [name for name in ("memory", "pids", "cpu") if getattr(self, name) is not None]
        return f"cgroup v{self.version} ({', '.join(found)})" if found else "no cgroup"


class Group:
    """One group; `add` the first process before it has children, `remove` when it is gone."""

    def __init__(self, roots: GroupRoots, limits: GroupLimits) -> None:
        """Make the folders and write the limits. Raises OSError."""
        name = f"{PREFIX}{os.getpid()}-{next(_numbers)}"
        parents = {root for root in (roots.memory, roots.pids, roots.cpu) if root is not None}
        self._folders = [parent / name for parent in sorted(parents)]
        try:
            for folder in self._folders:
                folder.mkdir()
            for path, value in _settings(roots, name, limits):
                path.write_text(value)
        except OSError:
            self.remove()
            raise

    def add(self, pid: int) -> None:
        """Move one process into the group. Raises OSError."""
        for folder in self._folders:
            (folder / "cgroup.procs").write_text(str(pid))

    def remove(self) -> None:
        """Remove the folders, whose processes are dead or dying."""
        deadline = time.monotonic() + REMOVE_TIMEOUT_S
        for folder in self._folders:
            while True:
                try:
                    folder.rmdir()
                except FileNotFoundError:
                    pass
                except OSError:
                    if time.monotonic() < deadline:
                        time.sleep(0.002)
                        continue
                break


def _settings(roots: GroupRoots, name: str, limits: GroupLimits) -> list[tuple[Path, str]]:
    one = roots.version == 1
    settings = []
    if roots.memory is not None:
        file = "memory.limit_in_bytes" if one else "memory.max"
        settings.append((roots.memory / name / file, str(limits.memory_bytes)))
        swap = "memory.memsw.limit_in_bytes" if one else "memory.swap.max"
        if (roots.memory / name / swap).exists():
            settings.append((roots.memory / name / swap, str(limits.memory_bytes) if one else "0"))
    if roots.pids is not None:
        settings.append((roots.pids / name / "pids.max", str(limits.processes)))
    if roots.cpu is not None:
        quota = limits.cores * PERIOD_US
        if one:
            settings.append((roots.cpu / name / "cpu.cfs_quota_us", str(quota)))
        else:
            settings.append((roots.cpu / name / "cpu.max", f"{quota} {PERIOD_US}"))
    return settings


def find_roots() -> GroupRoots:
    """Where groups can be made, found by making one."""
    mounts = [line.split() for line in _lines("/proc/self/mounts")]
    own = [line.split(":", 2) for line in _lines("/proc/self/cgroup")]
    found: dict[str, Path] = {}
    for controller, file in (
        ("memory", "memory.limit_in_bytes"), ("pids", "pids.max"), ("cpu", "cpu.cfs_quota_us"),
    ):  # fmt: skip
        bases = [m[1] for m in mounts if m[2] == "cgroup" and controller in m[3].split(",")]
        paths = [o[2] for o in own if controller in o[1].split(",")]
        if (folder := _usable(bases, paths, (file,))) is not None:
            found[controller] = folder
    if found:
        for folder in set(found.values()):
            _sweep(folder)
        return GroupRoots(**found, version=1)
    bases = [mount[1] for mount in mounts if mount[2] == "cgroup2"]
    paths = [path for number, _, path in own if number == "0"]
    folder = _usable(bases, [*paths, *(str(Path(p).parent) for p in paths)], ("memory.max",))
    if folder is None:
        return GroupRoots()
    _sweep(folder)
    pids = _usable([str(folder)], [], ("pids.max",))
    return GroupRoots(
        memory=folder, pids=pids, cpu=_usable([str(folder)], [], ("cpu.max",)), version=2
    )


def _usable(bases: list[str], paths: list[str], files: tuple[str, ...]) -> Path | None:
    """The first folder in which a group with these files can be made."""
    for base in bases:
        for path in [*paths, "/"]:
            folder = Path(base + path)
            probe = folder / f"{PREFIX}{os.getpid()}-probe-{next(_numbers)}"
            try:
                probe.mkdir()
            except OSError:
                continue
            complete = all((probe / file).exists() for file in files)
            with contextlib.suppress(OSError):
                probe.rmdir()
            if complete:
                return folder
    return None


def _sweep(folder: Path) -> None:
    """Remove empty groups that a killed process of ours left behind."""
    for stale in folder.glob(f"{PREFIX}*"):
        pid = stale.name.removeprefix(PREFIX).split("-")[0]
        if pid.isdigit() and not Path("/proc", pid).exists():
            with contextlib.suppress(OSError):
                stale.rmdir()


def _lines(path: str) -> list[str]:
    try:
        return Path(path).read_text().splitlines()
    except OSError:
        return []
