"""Where a sender's files lie: a folder in shared memory, of this process alone.

The same as `rollout/receive_folder.py`: the towers do not know each other.
"""

import fcntl
import os
import re
import secrets
import shutil
import tempfile
from pathlib import Path

FOLDER = re.compile(r"temper-\d+-[0-9a-f]{16}")


class PrivateFolder:
    """A folder that nobody else removes while this process lives.

    The kernel holds a lock on it until then. A process id would not do: in another container that
    shares the memory it means another process, and after a restart of this one, too.
    """

    def __init__(self, root: Path) -> None:
        """Make it below `root`, or the system's temporary folder if that is not there; folders of
        processes that are gone go."""
        root = root if root.is_dir() else Path(tempfile.gettempdir())
        remove_dead_folders(root)
        name = f"temper-{os.getpid()}-{secrets.token_hex(8)}"
        unlocked = root / f".{name}"  # a name that nobody looks for
        unlocked.mkdir(mode=0o700)
        self._lock: int | None = os.open(unlocked, os.O_RDONLY | os.O_DIRECTORY)
        fcntl.flock(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        self.path = unlocked.rename(root / name)

    def close(self) -> None:
        """Remove it with all that is in it. May be called twice."""
        shutil.rmtree(self.path, ignore_errors=True)
        if self._lock is not None:
            os.close(self._lock)
            self._lock = None


def remove_dead_folders(root: Path) -> None:
    """Remove the folders of processes that have ended without closing them."""
    for folder in root.iterdir():
        if FOLDER.fullmatch(folder.name) and _is_left(folder):
            shutil.rmtree(folder, ignore_errors=True)


def _is_left(folder: Path) -> bool:
    """Whether nobody holds the lock; False for what is another user's, or has gone meanwhile."""
    try:
        handle = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    except OSError:
        return False
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    finally:
        os.close(handle)
    return True
