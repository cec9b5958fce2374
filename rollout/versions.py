"""Which weights each token of a completion was sampled with, in little room."""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import accumulate, chain, groupby, pairwise, starmap
from itertools import repeat as repeated
from typing import Self, overload

import numpy as np
from numpy.typing import NDArray


@dataclass(frozen=True, slots=True, eq=False, repr=False)
class Versions(Sequence[int]):
    """A sequence [L] of versions of the weights, kept as runs: they change a few times a sample.

    Example: `Versions.of([3, 3, 3, 4])` has the values (3, 4) and the ends (3, 4).
    """

    values: tuple[int, ...]  # [runs] each other than the one before
    ends: tuple[int, ...]  # [runs] where a run ends, rising

    @classmethod
    def of(cls, versions: Sequence[int] | NDArray[np.integer]) -> Self:
        """From one version a token."""
        if isinstance(versions, cls):
            return versions
        each = np.asarray(versions, dtype=np.int64)
        ends = [*np.flatnonzero(each[1:] != each[:-1]) + 1, len(each)] if len(each) else []
        return cls(tuple(int(each[end - 1]) for end in ends), tuple(map(int, ends)))

    @classmethod
    def of_runs(cls, runs: Iterable[tuple[int, int]]) -> Self:
        """From (version, tokens) of each run; neighbours may be alike, or empty."""
        filled = groupby((run for run in runs if run[1]), key=lambda run: run[0])
        merged = [(value, sum(tokens for _, tokens in alike)) for value, alike in filled]
        return cls(
            tuple(value for value, _ in merged), tuple(accumulate(tokens for _, tokens in merged))
        )

    def runs(self) -> Iterator[tuple[int, int]]:
        """(version, tokens) of each run."""
        return zip(self.values, (b - a for a, b in pairwise((0, *self.ends))), strict=True)

    def array(self) -> NDArray[np.int32]:
        """One version a token."""
        return np.repeat(np.array(self.values, np.int32), np.diff((0, *self.ends)).astype(np.int64))

    def __add__(self, after: "Versions") -> "Versions":
        return Versions.of_runs(chain(self.runs(), after.runs()))

    def __len__(self) -> int:
        return self.ends[-1] if self.ends else 0

    def __iter__(self) -> Iterator[int]:
        return chain.from_iterable(starmap(repeated, self.runs()))

    @overload
    def __getitem__(self, place: int) -> int: ...
    @overload
    def __getitem__(self, place: slice) -> "Versions": ...
    def __getitem__(self, place: int | slice) -> "int | Versions":
        if isinstance(place, slice):
            return Versions.of(self.array()[place])
        return int(self.array()[place])

    def __eq__(self, other: object) -> bool:
        if isinstance(other, Versions):
            return (self.values, self.ends) == (other.values, other.ends)
        return isinstance(other, Sequence) and list(self) == list(other)

    def __repr__(self) -> str:
        return f"Versions.of_runs({list(self.runs())})"
