import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from rollout.versions import Versions

LISTS = st.lists(st.integers(-1, 3), max_size=12)


@settings(deadline=None)
@given(LISTS, LISTS)
def test_runs_are_the_list_that_they_were_made_from(first: list[int], second: list[int]) -> None:
    one, other = Versions.of(first), Versions.of(second)
    both = one + other
    assert list(both) == both.array().tolist() == first + second
    assert both == first + second and both == Versions.of(first + second)
    assert len(both) == len(first) + len(second)
    assert (one == other) == (first == second)
    assert [both[place] for place in range(-len(both), 0)] == first + second
    assert both[1:7] == (first + second)[1:7]
    assert all(tokens > 0 for _, tokens in both.runs())
    assert Versions.of_runs((version, 1) for version in first) == one
    assert Versions.of(one) is one


def test_neighbours_that_are_alike_are_one_run_and_empty_ones_none() -> None:
    merged = Versions.of_runs([(1, 2), (2, 0), (1, 3), (4, 1)])
    assert (merged.values, merged.ends) == ((1, 4), (5, 6))
    assert str(merged) == "Versions.of_runs([(1, 5), (4, 1)])"


def test_a_place_beyond_the_end_is_refused() -> None:
    with pytest.raises(IndexError):
        Versions.of([1, 2])[2]
