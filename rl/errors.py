"""Errors whose message is the whole explanation: the command prints them without a traceback."""


class BadInput(ValueError):
    """The user's mistake: a key, a file, a row. Exit code 2."""


class RunFailed(RuntimeError):
    """The run cannot go on, through no mistake in its input. Exit code 1."""
