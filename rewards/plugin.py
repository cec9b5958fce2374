"""A user's own reward: `path/to/file.py:function`.

def short(task, transcript):
    '''1 for an answer of at most 100 tokens.'''
    return float(transcript.response_tokens <= 100)
"""

import hashlib
import importlib.util
import inspect
import math
import numbers
import sys
from collections.abc import Callable
from pathlib import Path
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
            ValueError: no such file or function, a file that fails, or one that is `async`.
        """
        self._spec = spec
        path, _, name = spec.rpartition(":")
        module = _module(Path(path), spec)
        function = vars(module).get(name)
        if not callable(function):
            raise ValueError(f"reward {spec}: the file defines no function {name!r}")
        if inspect.iscoroutinefunction(function):
            raise ValueError(f"reward {spec}: async is not supported, write a plain def")
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
            raise RewardError(f"{where}: {type(error).__name__}: {error}") from error
        if value is None:
            return None
        if isinstance(value, Score):
            score = value
        elif isinstance(value, numbers.Real):
            score = Score(total=float(value))
        else:
            raise RewardError(
                f"{where}: returned {type(value).__name__}, not a float, a Score or None"
            )
        if not math.isfinite(score.total):
            raise RewardError(f"{where}: returned {score.total}")
        return score


def load_plugins(config: RewardsConfig) -> dict[str, Plugin]:
    """The plug-ins of the mixture, by name. Raises ValueError for one that cannot be loaded."""
    names = {name for rewards in config.mixture.values() for name in rewards}
    return {name: Plugin(name) for name in sorted(names) if is_plugin(name)}


def _module(path: Path, spec: str) -> ModuleType:
    if not path.is_file():
        raise ValueError(f"reward {spec}: no such file")
    name = f"temper_plugin_{hashlib.sha256(str(path).encode()).hexdigest()[:16]}"
    found = importlib.util.spec_from_file_location(name, path)
    assert found is not None and found.loader is not None, "a .py file has a loader"
    module = importlib.util.module_from_spec(found)
    sys.modules[name] = module  # where dataclasses and pickle look for it
    try:
        found.loader.exec_module(module)
    except (Exception, SystemExit) as error:
        del sys.modules[name]
        raise ValueError(f"reward {spec}: {type(error).__name__}: {error}") from error
    return module
