"""How sure a rate is."""

import math
from dataclasses import dataclass

Z95 = 1.959964  # two-sided 95 % of the normal distribution


@dataclass(frozen=True, slots=True, kw_only=True)
class Rate:
    """So many of so many, with a 95 % interval."""

    count: int
    of: int
    low: float
    high: float

    @property
    def value(self) -> float:
        """The share; 0 of nothing."""
        return self.count / self.of if self.of else 0.0

    def __str__(self) -> str:
        """As in a table: `3/120 = 2.5 % [0.9, 7.1]`."""
        return (
            f"{self.count}/{self.of} = {100 * self.value:.1f} % "
            f"[{100 * self.low:.1f}, {100 * self.high:.1f}]"
        )


def rate(count: int, of: int) -> Rate:
    """Wilson's 95 % score interval (Wilson 1927); of nothing it is [0, 1]."""
    if of == 0:
        return Rate(count=0, of=0, low=0.0, high=1.0)
    low, high = wilson(count / of, of)
    return Rate(count=count, of=of, low=low, high=high)


def wilson(share: float, of: int) -> tuple[float, float]:
    """The ends of Wilson's 95 % score interval for a share of `of` independent draws."""
    scale = 1 + Z95**2 / of
    centre = (share + Z95**2 / (2 * of)) / scale
    half = Z95 * math.sqrt(share * (1 - share) / of + Z95**2 / (4 * of**2)) / scale
    return (centre - half if share > 0.0 else 0.0), (centre + half if share < 1.0 else 1.0)
