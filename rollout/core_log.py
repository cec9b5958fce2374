"""What an engine's core process says, where its owner finds the reason for its end."""

import contextlib
import os
import re
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

LOOKED_AT = 1 << 16  # last bytes of it
ERROR = re.compile(
    r"^(?:\([^)]*\) )?"  # (EngineCore pid=7)
    r"(?:ERROR .*?\] )?"  # ERROR 11-23 13:59:01 [core.py:100]
    r"([\w.]*(?:Error|Exception)\b: .+)$",
    re.MULTILINE,
)


class CoreLog:
    """A file that a core process and its children write to, for as long as they live."""

    def __init__(self) -> None:
        """Make it, in the system's temporary folder."""
        handle, name = tempfile.mkstemp(prefix="temper-engine-", suffix=".log")
        os.close(handle)
        self._path = Path(name)

    @contextlib.contextmanager
    def written(self) -> Iterator[None]:
        """Processes that are started within write there what they would print."""
        sys.stdout.flush()
        sys.stderr.flush()
        before = [os.dup(1), os.dup(2)]
        with self._path.open("ab") as file:
            for stream in (1, 2):
                os.dup2(file.fileno(), stream)
        try:
            yield
        finally:
            sys.stdout.flush()
            sys.stderr.flush()
            for stream, kept in zip((1, 2), before, strict=True):
                os.dup2(kept, stream)
                os.close(kept)

    def reason(self) -> str:
        """The last error that was printed, and where the others are, to be put after a sentence;
        empty if there is none, as of a process that was killed."""
        with contextlib.suppress(OSError):
            text = self._path.read_bytes()[-LOOKED_AT:].decode(errors="replace")
            if errors := ERROR.findall(text):
                return f": {errors[-1].strip()} (more in {self._path})"
        return ""

    def remove(self) -> None:
        """Nobody died: there is nothing to read in it. May be called twice."""
        self._path.unlink(missing_ok=True)
