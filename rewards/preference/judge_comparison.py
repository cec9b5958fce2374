"""Two judges on the same rows: is one better, and how far do they agree?"""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from rewards.intervals import Rate, rate
from rewards.preference.agreement import Interval, bootstrap, cohen_kappa, mcnemar

MOST_EXAMPLES = 10


@dataclass(frozen=True, slots=True, kw_only=True)
class JudgedRows:
    """What was kept of one evaluation."""

    judge: str
    data: str
    digest: str
    credits: dict[str, float]  # by id
    verdicts: dict[str, str]  # by id


@dataclass(frozen=True, slots=True, kw_only=True)
class JudgeComparison:
    """Paired statistics over the rows that both judged. Right: a row earns more than half."""

    first: str
    second: str
    same_data: bool
    rows: int
    only_in_first: int
    only_in_second: int
    first_accuracy: Interval
    second_accuracy: Interval
    difference: Interval  # first - second, paired bootstrap over rows
    both_right: int
    first_right_only: int
    second_right_only: int
    neither_right: int
    mcnemar_p: float  # exact, two-sided
    same_verdict: Rate  # over comparisons
    kappa: float | None  # Cohen's, of verdicts A, B and tie
    first_right_examples: tuple[str, ...]  # ids
    second_right_examples: tuple[str, ...]


def read_result(path: Path) -> JudgedRows:
    """Rows of a `result.json`, or of the folder that holds it. Raises ValueError for others."""
    file = path / "result.json" if path.is_dir() else path
    try:
        values: Any = json.loads(file.read_bytes())
        rows = values["rows"]
        kept = zip(rows["ids"], rows["credits"], rows["verdicts"], strict=True)
        decided = [(id, credit, verdict) for id, credit, verdict in kept if credit is not None]
        return JudgedRows(
            judge=values["judge"],
            data=values["data"],
            digest=values["digest"],
            credits={id: float(credit) for id, credit, _ in decided},
            verdicts={id: str(verdict) for id, _, verdict in decided},
        )
    except OSError as error:
        raise ValueError(f"cannot read {file}: {error.strerror}") from error
    except (ValueError, KeyError, TypeError) as error:
        raise ValueError(f"{file} is no result of temper eval-reward") from error


def compare_judges(first: JudgedRows, second: JudgedRows) -> JudgeComparison:
    """Raises ValueError if they share no row."""
    ids = [id for id in first.credits if id in second.credits]
    if not ids:
        raise ValueError(
            f"no row is in both: {first.judge} judged {first.data}, {second.judge} {second.data}"
        )
    one = np.array([first.credits[id] for id in ids])
    other = np.array([second.credits[id] for id in ids])
    right, also = one > 0.5, other > 0.5
    verdicts = [
        (a, b)
        for id in ids
        if len(first.verdicts[id]) == len(second.verdicts[id])
        for a, b in zip(first.verdicts[id], second.verdicts[id], strict=True)
    ]
    letters = np.array([[ord(a), ord(b)] for a, b in verdicts], dtype=np.int64).reshape(-1, 2)
    only, lost = right & ~also, also & ~right
    return JudgeComparison(
        first=first.judge,
        second=second.judge,
        same_data=first.digest == second.digest,
        rows=len(ids),
        only_in_first=len(first.credits) - len(ids),
        only_in_second=len(second.credits) - len(ids),
        first_accuracy=bootstrap(one),
        second_accuracy=bootstrap(other),
        difference=bootstrap(one - other),
        both_right=int((right & also).sum()),
        first_right_only=int(only.sum()),
        second_right_only=int(lost.sum()),
        neither_right=int((~right & ~also).sum()),
        mcnemar_p=mcnemar(int(only.sum()), int(lost.sum())),
        same_verdict=rate(int((letters[:, 0] == letters[:, 1]).sum()), len(letters)),
        kappa=cohen_kappa(letters[:, 0], letters[:, 1]),
        first_right_examples=tuple(ids[i] for i in np.flatnonzero(only)[:MOST_EXAMPLES]),
        second_right_examples=tuple(ids[i] for i in np.flatnonzero(lost)[:MOST_EXAMPLES]),
    )
