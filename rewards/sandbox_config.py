"""Settings of the sandbox and of the code reward. Light: imports nothing heavy."""

import math
from dataclasses import dataclass


@dataclass(kw_only=True, slots=True)
class CodeConfig:
    """How programs of the policy are run and scored."""

    timeout_s: float = 6.0
    """CPU seconds of one process: all calls of function tests, or one stdin/stdout case."""
    program_timeout_s: float = 60.0
    """Wall seconds of one program over all its tests, from its first process on."""
    memory_mb: int = 1024
    """Most memory of one sandbox."""
    processes: int = 64
    """Most processes and threads of one sandbox."""
    disk_mb: int = 64
    """Most that one sandbox may write to its private folder; also the largest file."""
    output_mb: int = 4
    """Most that one program may print or return; it is stopped there."""
    max_concurrent: int = 0
    """Sandboxes that run at once on this machine; 0: two per core."""
    partial_credit: bool = False
    """Score the fraction of the tests that pass, instead of 1 for all and 0 otherwise."""
    float_tolerance: float = 0.0
    """Relative and absolute tolerance of numbers in stdout; 0 compares text."""
    packages: str = ""
    """Folder of Python packages that programs may import, mounted read-only; none by default."""
    unsafe_run_without_sandbox: bool = False
    """DANGER: where bubblewrap cannot run, run programs of the policy with limits of resources
    only. They can then read your files, reach your network and signal your processes."""

    def __post_init__(self) -> None:
        """Refuse limits that cannot hold."""
        for name in ("timeout_s", "program_timeout_s"):
            if not 0.0 < getattr(self, name) < math.inf:
                raise ValueError(f"rewards.code.{name} must be positive, got {getattr(self, name)}")
        for name, least in (("memory_mb", 64), ("processes", 1), ("disk_mb", 1), ("output_mb", 1)):
            if getattr(self, name) < least:
                raise ValueError(
                    f"rewards.code.{name} must be at least {least}, got {getattr(self, name)}"
                )
        if self.max_concurrent < 0:
            raise ValueError(
                f"rewards.code.max_concurrent must be 0 or more, got {self.max_concurrent}"
            )
        if not (math.isfinite(self.float_tolerance) and self.float_tolerance >= 0.0):
            raise ValueError(
                f"rewards.code.float_tolerance must be 0 or more, got {self.float_tolerance}"
            )

    @property
    def wall_s(self) -> float:
        """Wall seconds of one process that sleeps or waits; one that wants to run has until
        `program_timeout_s`, so that a busy machine punishes nobody."""
        return min(3.0 * self.timeout_s + 5.0, self.program_timeout_s)
