"""Does an engine compute with the weights that it was sent? Only its log-probs can tell.

Every checksum can be right while a kernel reads a weight in the wrong layout. So after an update
engine and learner score the same fixed sequences.

Two experts may be chosen all but alike. Then rounding lets engine and learner choose differently
for one token, which is no fault and tells much by its log-prob: in a tiny K2 that samples in
bfloat16 a nat or two, now and then in two of four sequences. A weight in its wrong place shows in
every sequence and in most tokens. So no token counts for more than `OUTLIER` tolerances, and the
median of the sequences decides.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from statistics import fmean, median

from rollout.config import Dtype
from rollout.errors import StaleWeightsError

OUTLIER = 8.0  # times the tolerance: more than that no token counts for


@dataclass(frozen=True, slots=True, kw_only=True)
class ProbeReport:
    """Absolute log-prob differences, in nats."""

    typical: float  # median over the sequences of the mean over their tokens, outliers cut
    largest: float
    worst_sequence: int  # index of the sequence with the largest difference
    worst_token: int  # index within that sequence's log-probs
    tokens: int  # of all sequences


def default_tolerance(dtype: Dtype) -> float:
    """Largest typical difference (nats) that rounding explains in an engine of this `dtype`."""
    return {Dtype.float32: 1e-3, Dtype.bfloat16: 3e-2}[dtype]


def compare_probe(
    engine_logprobs: Sequence[Sequence[float]],
    learner_logprobs: Sequence[Sequence[float]],
    *,
    tolerance: float,
    version: int,
    engine: str,
) -> ProbeReport:
    """Compare log-probs [sequence][token] of the same sequences, from engine and learner.

    Raises StaleWeightsError, naming version, engine and worst sequence, if the typical difference
    exceeds `tolerance` (nats) or any is not a finite number.
    """
    worst = (-1.0, 0, 0)
    means, tokens = [], 0
    for index, (ours, theirs) in enumerate(zip(engine_logprobs, learner_logprobs, strict=True)):
        differences = [abs(one - other) for one, other in zip(ours, theirs, strict=True)]
        for position, difference in enumerate(differences):
            # A NaN is the worst of all, and no comparison with it is true.
            if not (difference <= worst[0] or math.isnan(worst[0])):
                worst = (difference, index, position)
        if differences:
            means.append(fmean(min(difference, OUTLIER * tolerance) for difference in differences))
        tokens += len(differences)
    if tokens == 0:
        raise ValueError("the probe has no tokens")
    report = ProbeReport(
        typical=median(means),
        largest=worst[0],
        worst_sequence=worst[1],
        worst_token=worst[2],
        tokens=tokens,
    )
    if not math.isfinite(report.largest) or report.typical > tolerance:
        raise StaleWeightsError(
            f"{engine} does not compute with version {version} of the weights: its log-probs "
            f"differ from the learner's by {report.typical:.4f} nats in a typical sequence "
            f"(at most {tolerance:g} expected) and by {report.largest:.3f} in probe sequence "
            f"{report.worst_sequence}, token {report.worst_token}"
        )
    return report
