"""Scores of responses, as comparisons of a good one with a bad one.

Shapes: R rows, C comparisons.
"""

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from rewards.preference.agreement import Floats, Ints
from rewards.preference.best_of_n import row_credits
from rewards.preference.records import ONE_OF_TWO, Row, Shape


@dataclass(frozen=True, slots=True, kw_only=True)
class Comparisons:
    """Every two responses of a row of which one is better than the other, by the labels."""

    row: Ints  # [C]
    good: Ints  # [C] index of the better response in its row
    bad: Ints  # [C]
    margin: Floats  # [C] score of the better minus score of the other
    length: Floats  # [C] characters of the better minus characters of the other
    good_first: NDArray[np.bool_]  # [C] the better is on side A

    def of_rows(self, chosen: NDArray[np.bool_]) -> "Comparisons":
        """Those of the rows marked in `chosen` [R]; row numbers stay."""
        kept = chosen[self.row]
        return Comparisons(
            row=self.row[kept],
            good=self.good[kept],
            bad=self.bad[kept],
            margin=self.margin[kept],
            length=self.length[kept],
            good_first=self.good_first[kept],
        )


def compare(rows: Sequence[Row], scores: Sequence[Floats]) -> Comparisons:
    """All comparisons of judged rows."""
    places: list[tuple[int, int, int]] = []
    margins: list[float] = []
    lengths: list[int] = []
    first: list[bool] = []
    for place, (row, said) in enumerate(zip(rows, scores, strict=True)):
        values = said.tolist()
        sizes = [len(response) for response in row.responses]
        for good, best in enumerate(row.quality):
            for bad, worse in enumerate(row.quality):
                if best > worse:
                    places.append((place, good, bad))
                    margins.append(values[good] - values[bad])
                    lengths.append(sizes[good] - sizes[bad])
                    first.append((good < bad) != row.swapped)
    table = np.array(places, dtype=np.int64).reshape(-1, 3)
    return Comparisons(
        row=table[:, 0],
        good=table[:, 1],
        bad=table[:, 2],
        margin=np.array(margins),
        length=np.array(lengths, dtype=np.float64),
        good_first=np.array(first, dtype=np.bool_),
    )


def credit_of(margin: Floats) -> Floats:
    """1 for a comparison decided right, 0 for a wrong one, 1/2 for a tie."""
    return np.where(margin > 0, 1.0, np.where(margin < 0, 0.0, 0.5))


CREDIT = {
    Shape.pairs: "pairs decided right, a tie half",
    Shape.judgebench: "pairs decided right, a tie half",
    Shape.reward_bench: "pairs decided right, a tie half",
    Shape.rm_bench: "of the 9 comparisons of a prompt, decided right, a tie half",
    Shape.scored: "of the comparisons of a prompt, decided right, a tie half",
    Shape.best_of_n: "best-scored response is right (RM@N), equal scores share",
    Shape.reward_bench_2: "best-scored response is a chosen one, equal scores share",
}
"""What the accuracy of a shape counts."""


def credits(
    shape: Shape, rows: Sequence[Row], scores: Sequence[Floats], made: Comparisons
) -> Floats:
    """What every row [R] earns, in [0, 1]; NaN for a row in which nothing can be decided."""
    if shape in (Shape.best_of_n, Shape.reward_bench_2):
        return row_credits(rows, scores)
    if shape in ONE_OF_TWO:
        return credit_of(made.margin)
    sums = np.bincount(made.row, credit_of(made.margin), len(rows))
    counts = np.bincount(made.row, minlength=len(rows))
    return np.where(counts > 0, sums / np.maximum(counts, 1), np.nan)


def group_by_prompt(rows: Sequence[Row]) -> list[Row]:
    """Scored rows of one prompt as one row with several responses.

    Responses without recorded scores go to a row of their own where others have some.
    """
    groups: dict[tuple[object, ...], list[Row]] = defaultdict(list)
    for row in rows:
        groups[(row.prompt, row.subset, row.recorded is None)].append(row)
    made = []
    for same in groups.values():
        recorded = [score for row in same for score in row.recorded or ()]
        made.append(
            replace(
                same[0],
                responses=tuple(each for row in same for each in row.responses),
                quality=tuple(each for row in same for each in row.quality),
                recorded=tuple(recorded) if recorded else None,
            )
        )
    return made
