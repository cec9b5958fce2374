"""Errors whose message is the whole explanation: the command prints them without a traceback."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


class BadInput(ValueError):
    """The user's mistake: a key, a file, a row. Exit code 2."""


class RunFailed(RuntimeError):
    """The run cannot go on, through no mistake in its input. Exit code 1."""


class PartLost(RunFailed):
    """A process of the run has ended, or does not answer: what it was doing is to be done again."""

    def __init__(self, part: str, why: str) -> None:
        """`part` as a person knows it ("rollout worker 1"), and what is known of its end."""
        super().__init__(f"{part} was lost: {why}")
        self.part, self.why = part, why


class CrashLoop(RunFailed):
    """A part is lost again and again, and the run comes no further between."""


@contextmanager
def bad_input() -> Iterator[None]:
    """What is wrong with the user's files and names, as such."""
    try:
        yield
    except ValueError as error:
        raise BadInput(str(error)) from error


@contextmanager
def writing(path: Path, then: str = "give the command again with resume=true") -> Iterator[None]:
    """What the disk refuses of a run's files, as such; `then`: what to do once it does not.

    Raises:
        RunFailed: instead of OSError.
    """
    try:
        yield
    except OSError as error:
        raise RunFailed(
            f"cannot write {path}: {error.strerror or error}. "
            f"Free space there, or make it writable, then {then}"
        ) from error
