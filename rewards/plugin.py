"""A user's own reward: `path/to/file.py:function`.

def short(task, transcript):
    '''1 for an answer of at most 100 tokens.'''
    return float(transcript.response_tokens <= 100)
"""

import hashlib
import inspect
import math
import numbers
import sys
from collections.abc import Callable
from pathlib import Path
from traceback import extract_tb
from types import ModuleType

from rewards.config import RewardsConfig, is_plugin
from rewards.errors import RewardError
from rewards.score import Score
from rewards.task import Task, Transcript


class Plugin:
    """A loaded plug-in, which may be called from any thread if its function may."""

    def __init__(self, spec: str) -> None:
        """Run the file and find the function.

        Raises:
            ValueError: no such file or function, a file that fails, or one that is `async` or does
                not take a task and a transcript.
        """
        self._spec = spec
        path, _, name = spec.rpartition(":")
        try:
            function = load_function(Path(path), name)
            _check_signature(function)
        except ValueError as error:
            raise ValueError(f"reward {spec}: {error}") from error
        self._function: Callable[[Task, Transcript], object] = function

    def score(self, task: Task, transcript: Transcript) -> Score | None:
        """What the function says of one episode; None if it does not apply.

        Raises:
            RewardError: the function failed, or returned no finite number; names it and the task.
        """
        where = f"reward {self._spec}, task {task.id}"
        try:
            value = self._function(task, transcript)
        except (Exception, SystemExit) as error:
            at = _place(error, self._spec.rpartition(":")[0])
            raise RewardError(f"{where}: {at}{type(error).__name__}: {error}") from error
        if value is None:
            return None
        total, why = (value.total, str(value.why)) if isinstance(value, Score) else (value, "")
        if not isinstance(total, numbers.Real):
            raise RewardError(
                f"{where}: returned {type(total).__name__}, not a float, a Score or None"
            )
        if not math.isfinite(total):
            raise RewardError(f"{where}: returned {total}")
        return Score(total=float(total), why=why)


def _check_signature(function: Callable[..., object]) -> None:
    try:
        signature = inspect.signature(function)
        signature.bind("task", "transcript")
    except TypeError as error:
        raise ValueError(
            f"it is called with (task, transcript) and takes {signature}: {error}"
        ) from error


def _place(error: BaseException, path: str) -> str:
    """The last line of the user's file that an error has come through: "line 7: "."""
    lines = [each.lineno for each in extract_tb(error.__traceback__) if each.filename == path]
    return f"line {lines[-1]}: " if lines else ""


def load_plugins(config: RewardsConfig) -> dict[str, Plugin]:
    """The plug-ins of the mixture, by name. Raises ValueError for one that cannot be loaded."""
    names = {name for rewards in config.mixture.values() for name in rewards}
    return {name: Plugin(name) for name in sorted(names) if is_plugin(name)}


def load_function(path: Path, name: str) -> Callable[..., object]:
    """The function of a Python file, which is run as it is now: no cache of it is read or written.

    Raises:
        ValueError: no such file or function, a file that fails, or a function that is `async`.
    """
    if not path.is_file():
        raise ValueError("no such file")
    module = ModuleType(f"temper_plugin_{hashlib.sha256(str(path).encode()).hexdigest()[:16]}")
    module.__file__ = str(path)
    sys.modules[module.__name__] = module  # where dataclasses and pickle look for it
    try:
        exec(compile(path.read_bytes(), str(path), "exec", dont_inherit=True), vars(module))
    except (Exception, SystemExit) as error:
        del sys.modules[module.__name__]
        raise ValueError(f"{type(error).__name__}: {error}") from error
    function = vars(module).get(name)
    if not callable(function):
        here = filter(inspect.isfunction, vars(module).values())
        known = ", ".join(each.__name__ for each in here if each.__module__ == module.__name__)
        raise ValueError(f"the file defines no function {name!r}; it has {known or 'none'}")
    if inspect.iscoroutinefunction(function):
        raise ValueError("async is not supported, write a plain def")
    return function
