"""An update on its way to one engine: verified while requests run, within a time.

Every transport ends in files on this host (a sender's own, or copies of them), so that what is
loaded is read, verified and gone back to in one way.
"""

import asyncio
import os
from concurrent.futures import ThreadPoolExecutor

from rollout.errors import WeightUpdateError
from rollout.receive_changes import HeldCopy
from rollout.receive_segments import (
    REFUSED,
    Announced,
    Mappings,
    Refused,
    Update,
    announced,
    verify,
)

BASE_S = 60.0
BYTES_PER_S = 20 << 20  # a hundredth of what is measured on two busy cores


def time_limit(num_bytes: int) -> float:
    """Seconds that any step of an update of this size may take before it counts as hung."""
    return BASE_S + num_bytes / BYTES_PER_S


class Arrivals:
    """Verifies updates in a thread, one at a time."""

    def __init__(self) -> None:
        """Hold nothing yet."""
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="weights")
        self._mappings = Mappings()
        self.held: HeldCopy | None = None  # in delta mode

    async def verified(self, update: Update) -> Announced:
        """Where the update lies on this host, every byte as announced.

        Raises WeightUpdateError, naming version, file and tensor, if it is not that within its
        time limit.
        """
        limit = time_limit(update.num_bytes)
        waiting = asyncio.get_running_loop().run_in_executor(self._thread, self._verify, update)
        try:
            return await asyncio.wait_for(waiting, limit)
        except TimeoutError as error:
            raise WeightUpdateError(
                f"{subject(update.version)} was not verified within {limit:.0f} s"
            ) from error
        except (Refused, OSError) as error:
            raise WeightUpdateError(
                f"{subject(update.version)} was refused: {reason_of(error)}"
            ) from error

    def close(self) -> None:
        """Let go of all files. May be called twice."""
        self._thread.shutdown(wait=False)
        if self.held is not None:
            self.held.close()

    def _verify(self, update: Update) -> Announced:
        if update.changes is None:
            here = announced(update)
            self._mappings.trim()
            verify(here, self._mappings)
            return here
        if self.held is None:
            self.held = HeldCopy()
        return self.held.take(update)


def subject(version: int) -> str:
    """Which engine, and which weights, a failure is about."""
    return f"engine of process {os.getpid()}: version {version} of the weights"


def reason_of(error: BaseException) -> str:
    """What a refusal says, without the mark that it carries across the process border."""
    return str(error).rpartition(f"{REFUSED} ")[2]
