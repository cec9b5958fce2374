"""Errors whose message is the whole explanation: the command prints them without a traceback."""

from collections.abc import Iterator
from contextlib import contextmanager


class BadInput(ValueError):
    """The user's mistake: a key, a file, a row. Exit code 2."""


class RunFailed(RuntimeError):
    """The run cannot go on, through no mistake in its input. Exit code 1."""


@contextmanager
def bad_input() -> Iterator[None]:
    """What is wrong with the user's files and names, as such."""
    try:
        yield
    except ValueError as error:
        raise BadInput(str(error)) from error
