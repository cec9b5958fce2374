"""What passes between `rewards.scoring` and its workers: what to score with, and verdicts.

A frame is a length of four bytes and a pickle.
"""

import pickle
import struct
from dataclasses import dataclass
from enum import StrEnum
from typing import Any, BinaryIO

from rewards.rows import Line, read_row, scored_line
from rewards.task import TaskKind

LENGTH = struct.Struct("<I")


@dataclass(frozen=True, slots=True, kw_only=True)
class ScorerSpec:
    """What scores the rows: the verifier of `kind`, or a plug-in with its rows."""

    kind: TaskKind
    timeout_s: float  # of one row
    reward: str | None = None  # path/to/file.py:function


class Trouble(StrEnum):
    """What befell a row that was not simply scored."""

    late = "late"  # scores 0
    crashed = "crashed"  # the scorer raised on this response: scores 0
    text_only = "text_only"  # the gold cannot be read, and the answer is not its text: scores 0
    unscored = "unscored"  # no fault of the response: an unreadable gold, workers that died, a
    # plug-in that fails or does not apply


@dataclass(frozen=True, slots=True, kw_only=True)
class Verdict:
    """What came of one line."""

    number: int  # of the line
    score: float | None  # None: unscored
    why: str
    seconds: float
    trouble: Trouble | None = None
    line: bytes = b""  # the row with its verdict; empty without a score


@dataclass(frozen=True, slots=True, kw_only=True)
class NotStarted:
    """Why a worker cannot work."""

    message: str
    bad_input: bool  # the user's mistake


def zero(line: Line, kind: TaskKind, why: str, trouble: Trouble, seconds: float) -> Verdict:
    """The verdict 0 on a line that is a row of `kind`."""
    return Verdict(
        number=line.number,
        score=0.0,
        why=why,
        seconds=seconds,
        trouble=trouble,
        line=scored_line(read_row(kind, line.raw).record, 0.0, why),
    )


def unscored(line: Line, why: str, seconds: float) -> Verdict:
    """No score for a line."""
    return Verdict(
        number=line.number, score=None, why=why, seconds=seconds, trouble=Trouble.unscored
    )


def one_line(text: str) -> str:
    """The text with single spaces, at most 300 characters."""
    text = " ".join(text.split())
    return text if len(text) <= 300 else f"{text[:297]}..."


def write_frame(file: BinaryIO, message: object) -> None:
    """Send one message. Raises `OSError` if nobody reads."""
    body = pickle.dumps(message)
    file.write(LENGTH.pack(len(body)) + body)
    file.flush()


def read_frame(file: BinaryIO) -> Any:
    """The next message. Raises `EOFError` at the end."""
    head = file.read(LENGTH.size)
    if len(head) < LENGTH.size:
        raise EOFError("no more frames")
    return pickle.loads(file.read(LENGTH.unpack(head)[0]))
