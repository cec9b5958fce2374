"""The comparison of log-probs after an update."""

import math

import numpy as np
import pytest

from rollout.config import Dtype
from rollout.errors import StaleWeightsError
from rollout.probe import compare_probe, default_tolerance


def compare(one, other, tolerance=0.5):
    return compare_probe(one, other, tolerance=tolerance, version=3, engine="engine 1")


def test_report_names_the_worst_token():
    report = compare([[-1.0, -2.0], [-3.0, -1.0]], [[-1.0, -2.5], [-3.0, 0.0]])
    assert report.typical == 0.375
    assert report.largest == 1.0
    assert (report.worst_sequence, report.worst_token, report.tokens) == (1, 1, 4)


def test_log_probs_of_a_completion_are_an_array():
    drawn = [np.array(each, np.float32) for each in ([-1.0, -2.0], [], [-3.0])]
    report = compare(drawn, [[-1.0, -2.5], [], [-3.0]])
    assert (report.typical, report.largest, report.tokens) == (0.125, 0.5, 3)


def test_difference_over_tolerance_is_stale():
    with pytest.raises(StaleWeightsError, match=r"engine 1 .* version 3 .* sequence 0, token 1"):
        compare([[-1.0, -2.0]], [[-1.0, -4.0]])


def test_one_token_of_one_sequence_may_differ_as_where_two_experts_tie():
    exact = [[-1.0] * 9] * 4
    tied = [*exact[:3], [-1.0] * 8 + [-9.0]]
    report = compare(exact, tied, tolerance=1e-6)
    assert (report.typical, report.largest, report.worst_sequence) == (0.0, 8.0, 3)


@pytest.mark.parametrize(("tokens", "stale"), [(1, False), (3, True)])
def test_ties_in_most_sequences_are_told_from_a_weight_in_its_wrong_place(tokens, stale):
    """In bfloat16 a tie costs a nat, in several sequences of a probe: a false alarm ends a run."""
    tolerance = default_tolerance(Dtype.bfloat16)
    exact = [[-1.0] * 20] * 4
    engine = [[-1.01] * (20 - tokens) + [-3.0] * tokens] * 3 + exact[:1]
    if not stale:
        assert compare(exact, engine, tolerance).typical == pytest.approx(0.01 * 0.95 + 0.24 / 20)
        return
    with pytest.raises(StaleWeightsError, match=r"by 0\.0445 nats in a typical sequence"):
        compare(exact, engine, tolerance)


def test_nan_is_stale():
    with pytest.raises(StaleWeightsError, match="sequence 1, token 0"):
        compare([[-1.0], [math.nan], [-9.0]], [[-1.0], [-1.0], [-1.0]])


def test_what_the_engine_holds_impossible_is_stale():
    with pytest.raises(StaleWeightsError, match="sequence 1, token 0"):
        compare([[-1.0], [-math.inf], [-9.0]], [[-1.0], [-1.0], [-9.0]])


def test_shapes_must_agree():
    with pytest.raises(ValueError):
        compare([[-1.0]], [[-1.0, -2.0]])
    with pytest.raises(ValueError, match="no tokens"):
        compare([], [])


def test_bfloat16_is_allowed_more():
    assert default_tolerance(Dtype.float32) < default_tolerance(Dtype.bfloat16)
