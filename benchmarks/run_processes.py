"""The processes of a run by what they do in it: who looks on, driver, parts, orphans."""

import contextlib
import re

import psutil

PARTS = {
    "rollout worker": r"ray::\w*RolloutWorker",
    "engine core": r"VLLM",
    "reward worker": r"ray::\w*RewardWorker",
    "learner shard": r"ray::\w*LearnerWorker",
    "Ray's raylet": r"\S*/raylet\b",
    "Ray's head": r"\S*/gcs_server\b",
    "Ray's agent": r"ray::(Dashboard|RuntimeEnv)Agent",
}
DRIVER, LOOKING_ON = "driver", "who looks on"


class RunProcesses:
    """Finds them as long as it is asked often: an orphan is known by having been seen before."""

    def __init__(self) -> None:
        """Know of none."""
        self._seen: set[psutil.Process] = set()
        self._command = 0

    def begin(self, command: int) -> None:
        """`temper train --revive` was started, as the process of this number."""
        self._command = command
        self._seen.add(psutil.Process(command))

    def alive(self) -> list[psutil.Process]:
        """All of them, by their numbers."""
        children: dict[int, list[psutil.Process]] = {}
        for process in psutil.process_iter(["ppid"]):
            children.setdefault(process.info["ppid"], []).append(process)
        self._seen = {process for process in self._seen if _alive(process)}
        look = list(self._seen)
        while look:
            new = [c for c in children.get(look.pop().pid, []) if c not in self._seen]
            self._seen.update(new)
            look += new
        return sorted(self._seen, key=lambda process: process.pid)

    def by_part(self) -> dict[str, list[psutil.Process]]:
        """Those that have a part in the run."""
        found: dict[str, list[psutil.Process]] = {}
        for process in self.alive():
            line = title(process)
            for part in [name for name, pattern in PARTS.items() if re.match(pattern, line)]:
                found.setdefault(part, []).append(process)
            if process.pid == self._command:
                found[LOOKING_ON] = [process]
            elif "multiprocessing.spawn" in line and _parent(process) == self._command:
                found[DRIVER] = [process]
        return found

    def kill(self) -> None:
        """End all of them."""
        for process in self.alive():
            kill(process)


def kill(process: psutil.Process) -> None:
    """End a process as `kill -9` does, if it has not ended by itself."""
    with contextlib.suppress(psutil.NoSuchProcess):
        process.kill()


def title(process: psutil.Process) -> str:
    """Its command line; empty if it has ended."""
    try:
        return " ".join(process.cmdline())
    except psutil.Error:
        return ""


def _parent(process: psutil.Process) -> int | None:
    try:
        return process.ppid()
    except psutil.Error:
        return None


def _alive(process: psutil.Process) -> bool:
    try:
        return process.is_running() and process.status() != psutil.STATUS_ZOMBIE
    except psutil.Error:
        return False
