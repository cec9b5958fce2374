from hypothesis import given
from hypothesis import strategies as st

from rewards.calibration import Gate, is_critic_position
from rewards.critic_config import CalibrationConfig


def test_critic_tasks_are_spread_evenly() -> None:
    for share, every in ((0.1, 10), (0.2, 5), (0.5, 2)):
        for first in range(0, 1000, every):
            turn = range(first, first + every)
            assert sum(is_critic_position(position, share) for position in turn) == 1
    assert not any(is_critic_position(p, 0.0) for p in range(100))


def test_critic_tasks_take_the_place_of_every_family_alike() -> None:
    """Families come in cycles: of five at a fifth, a fixed place would always take the same."""
    taken = [position % 5 for position in range(20_000) if is_critic_position(position, 0.2)]
    assert len(taken) == 4_000
    assert all(700 < taken.count(family) < 900 for family in range(5))


@given(percent=st.integers(0, 99), start=st.integers(0, 10**6))
def test_any_hundred_prompts_hold_the_share(percent: int, start: int) -> None:
    share = percent / 100
    hundred = range(start, start + 100)
    critic = sum(is_critic_position(position, share) for position in hundred)
    assert abs(critic - percent) <= 1


def test_the_gate_opens_and_closes_with_the_agreement() -> None:
    gate = Gate(CalibrationConfig(least_agreement=0.6, least_pairs=16))
    assert not gate.open
    assert gate.update(None, 0) is None
    assert gate.update(1.0, 15) is None and not gate.open
    assert gate.describe() == (
        "rubric rewards are frozen: the critic has judged 15 pairs, at least 16 are asked "
        "(rewards.calibration.least_pairs)"
    )
    assert gate.update(0.6, 16) == (
        "rubric rewards count: the critic agrees with the verifiers on 0.60 of the last 16 pairs, "
        "at least 0.6 is asked (rewards.calibration.least_agreement)"
    )
    assert gate.open and gate.update(0.7, 64) is None
    assert gate.update(0.55, 64) == (
        "rubric rewards are frozen: the critic agrees with the verifiers on 0.55 of the last 64 "
        "pairs, at least 0.6 is asked (rewards.calibration.least_agreement)"
    )
    assert not gate.open and gate.update(0.59, 64) is None
    assert gate.update(0.61, 64) is not None and gate.open
    assert gate.update(None, 0) is not None and not gate.open


def test_the_gate_is_always_open_where_no_agreement_is_asked() -> None:
    gate = Gate(CalibrationConfig(least_agreement=0.0, held_out_percent=0))
    assert gate.open
    assert gate.update(0.0, 64) is None and gate.open
    assert gate.describe() == (
        "rubric rewards always count (rewards.calibration.least_agreement=0)"
    )


@given(agreement=st.none() | st.floats(0, 1), pairs=st.integers(0, 64))
def test_the_gate_depends_on_the_last_update_alone(agreement: float | None, pairs: int) -> None:
    config = CalibrationConfig()
    gate, fresh = Gate(config), Gate(config)
    gate.update(1.0, 64)
    gate.update(agreement, pairs)
    fresh.update(agreement, pairs)
    assert gate.open == fresh.open == (agreement is not None and pairs >= 16 and agreement >= 0.6)
