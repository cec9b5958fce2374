"""The comparison of log-probs after an update."""

import math

import pytest

from rollout.config import Dtype
from rollout.errors import StaleWeightsError
from rollout.probe import compare_probe, default_tolerance


def compare(one, other, tolerance=0.5):
    return compare_probe(one, other, tolerance=tolerance, version=3, engine="engine 1")


def test_report_names_the_worst_token():
    report = compare([[-1.0, -2.0], [-3.0, -1.0]], [[-1.0, -2.5], [-3.0, 0.0]])
    assert report.mean == 0.375
    assert report.largest == 1.0
    assert (report.worst_sequence, report.worst_token, report.tokens) == (1, 1, 4)


def test_difference_over_tolerance_is_stale():
    with pytest.raises(StaleWeightsError, match=r"engine 1 .* version 3 .* sequence 0, token 1"):
        compare([[-1.0, -2.0]], [[-1.0, -4.0]])


def test_nan_is_stale():
    with pytest.raises(StaleWeightsError, match="sequence 1, token 0"):
        compare([[-1.0], [math.nan], [-9.0]], [[-1.0], [-1.0], [-1.0]])


def test_shapes_must_agree():
    with pytest.raises(ValueError):
        compare([[-1.0]], [[-1.0, -2.0]])
    with pytest.raises(ValueError, match="no tokens"):
        compare([], [])


def test_bfloat16_is_allowed_more():
    assert default_tolerance(Dtype.float32) < default_tolerance(Dtype.bfloat16)
