"""Every position is accounted for, whatever is asked again."""

import json
from dataclasses import asdict
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from rl.checkpoint import RunState, read_state
from rl.journal import Journal, JournalError, JournalState, Stage


def _closed(journal: Journal, *positions: int) -> None:
    for position in positions:
        journal.finish(position)
        journal.close(position, Stage.trained)


def test_a_position_goes_from_pending_to_trained() -> None:
    journal = Journal(JournalState())
    assert journal.stage(0) is Stage.pending
    assert [journal.start() for _ in range(4)] == [0, 1, 2, 3]
    assert journal.stage(2) is Stage.running
    journal.finish(2)
    assert journal.stage(2) is Stage.finished
    journal.close(2, Stage.trained)
    assert journal.stage(2) is Stage.trained
    journal.finish(0)
    journal.close(0, Stage.passed_over)
    assert {stage: n for stage, n in journal.counts().items() if n} == {
        Stage.running: 2,
        Stage.trained: 1,
        Stage.passed_over: 1,
    }


def test_the_state_holds_what_a_resumed_run_asks_again() -> None:
    journal = Journal(JournalState())
    for _ in range(12):
        journal.start()
    _closed(journal, 0, 1, 2, 4, 5, 6, 8, 9)
    journal.finish(7)
    journal.close(7, Stage.passed_over)
    journal.finish(3)  # complete, but in no step yet
    state = journal.state
    assert state == JournalState(end=10, open=(3,), passed_over=1)
    again = Journal(state)
    assert again.stage(3) is Stage.pending and again.stage(9) is Stage.trained
    assert [again.start() for _ in range(3)] == [3, 10, 11]
    assert again.counts()[Stage.trained] == 8 and again.counts()[Stage.passed_over] == 1


def test_a_group_that_is_given_up_runs_once_more() -> None:
    journal = Journal(JournalState(end=5, open=(2,)))
    assert journal.start() == 2
    journal.finish(2)
    journal.give_up(2)
    assert journal.stage(2) is Stage.pending
    assert journal.start() == 5, "it is started by name: its place is still its own"
    journal.start_again(2)
    _closed(journal, 2)
    assert journal.state == JournalState(end=5)


def test_it_travels_in_the_state_of_a_checkpoint_and_old_ones_have_none(tmp_path: Path) -> None:
    journal = JournalState(end=10, open=(3, 7), passed_over=1)
    state = RunState(step=2, rollout_tokens=9, train_seconds=1.0, eval_before={}, journal=journal)
    written = asdict(state)
    (tmp_path / "state.json").write_text(json.dumps(written))
    assert read_state(tmp_path).journal == journal
    del written["journal"]
    (tmp_path / "state.json").write_text(json.dumps(written))
    assert read_state(tmp_path).journal is None


@pytest.mark.parametrize("position", [1, 3, 9])
def test_nothing_is_trained_twice_or_before_it_is_complete(position: int) -> None:
    journal = Journal(JournalState(end=3, open=(1,)))
    journal.start()
    with pytest.raises(JournalError, match=f"position {position} is"):
        journal.close(position, Stage.trained)  # 1 runs, 3 is pending, 9 far away
    with pytest.raises(JournalError, match="position 0 is trained"):
        journal.finish(0)
    journal.finish(1)
    with pytest.raises(JournalError, match="cannot be closed as running"):
        journal.close(1, Stage.running)


MOVES = st.lists(
    st.tuples(
        st.sampled_from(["start", "start", "train", "train", "save", "crash"]), st.integers(0, 5)
    ),
    max_size=80,
)


@settings(deadline=None, max_examples=80)
@given(MOVES)
def test_any_order_and_any_crash_leaves_each_position_once(moves: list[tuple[str, int]]) -> None:
    """At a crash the steps since the last checkpoint were never trained."""
    total = 24
    saved, trained_when_saved = JournalState(), list[int]()
    journal, running, trained = Journal(saved), list[int](), list[int]()
    for move, which in moves:
        if move == "start" and len(running) < 6 and len(running) + len(trained) < total:
            running.append(journal.start())
        elif move == "train" and running:
            position = running.pop(which % len(running))
            _closed(journal, position)
            trained.append(position)
        elif move == "save":
            saved, trained_when_saved = journal.state, list(trained)
            assert len(saved.open) < 6, "what exists at a time, less one that was trained"
        elif move == "crash":
            journal, running, trained = Journal(saved), [], list(trained_when_saved)
        assert len(set(trained)) == len(trained)
        assert all(journal.stage(position) is Stage.trained for position in trained)
    while len(trained) < total:
        if not running:
            running.append(journal.start())
        _closed(journal, running[0])
        trained.append(running.pop(0))
    assert sorted(trained) == list(range(total))
    assert journal.state == JournalState(end=total)
