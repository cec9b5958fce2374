import itertools
import math

import pytest

from rewards.score import Score
from rewards.task import Message, Task, TaskKind, Transcript
from rl.difficulty import (
    TaskProfile,
    Verdict,
    guessable,
    histogram,
    mixed_chance,
    profile_of,
    shares,
    with_guesses,
)
from rollout.episode import Completion, Episode, Group, StopReason

KEEP = (0.1, 0.9)


def _task(question: str = "1+1?", reference: str = "2", kind: TaskKind = TaskKind.math) -> Task:
    return Task(
        id="sums/train/0",
        kind=kind,
        messages=(Message(role="user", content=question),),
        reference=reference,
        token_budget=9,
        tags=("sums",),
    )


def _group(results: list[tuple[float, int]]) -> Group:
    """Of (score, tokens)."""
    completion = Completion(
        prompt_ids=[1],
        token_ids=[2],
        logprobs=[0.0],
        versions=[0],
        stop_reason=StopReason.stop,
        temperature=1.0,
    )
    transcripts = [
        Transcript(messages=(), response="", response_tokens=tokens, truncated=False)
        for _, tokens in results
    ]
    episodes = tuple(
        Episode(completion=completion, transcript=transcript, score=Score(total=total))
        for transcript, (total, _) in zip(transcripts, results, strict=True)
    )
    return Group(task=_task(), episodes=episodes)


def _profile(correct: int, family: str = "sums", samples: int = 10) -> TaskProfile:
    return TaskProfile(
        task=f"{family}/{correct}",
        family=family,
        question="q",
        correct=correct,
        samples=samples,
        mean_tokens=5.0,
        p80_correct_tokens=None,
        guesses=None,
        verdict=Verdict.kept if 1 <= correct <= 9 else Verdict.too_hard,
    )


def test_a_profile_counts_full_marks_and_the_lengths_of_right_answers() -> None:
    results = [(1.0, 10), (1.0, 30), (0.9, 99), (-0.5, 64), (1.0, 20), (1.0, 40), (1.0, 50)]
    profile = profile_of(_group(results), "1+1?", KEEP)
    assert (profile.correct, profile.samples, profile.question) == (5, 7, "1+1?")
    assert math.isclose(profile.mean_tokens, 313 / 7)
    assert profile.p80_correct_tokens == 40
    assert profile.verdict is Verdict.kept


@pytest.mark.parametrize(
    ("right", "of", "verdict"),
    [
        (0, 10, Verdict.too_hard),
        (1, 10, Verdict.kept),
        (9, 10, Verdict.kept),
        (10, 10, Verdict.too_easy),
        (1, 11, Verdict.too_hard),
        (19, 20, Verdict.too_easy),
    ],
)
def test_moderate_difficulty_includes_its_ends(right: int, of: int, verdict: Verdict) -> None:
    group = _group([(1.0, 5)] * right + [(0.0, 5)] * (of - right))
    assert profile_of(group, "q", KEEP).verdict is verdict


def test_one_right_guess_drops_a_task() -> None:
    profile = profile_of(_group([(1.0, 5), (0.0, 5)]), "q", KEEP)
    assert with_guesses(profile, _group([(0.0, 5)] * 8)).verdict is Verdict.kept
    guessed = with_guesses(profile, _group([(0.0, 5)] * 7 + [(1.0, 5)]))
    assert (guessed.verdict, guessed.guesses) == (Verdict.guessed, 1)


@pytest.mark.parametrize(
    ("question", "reference", "verdict"),
    [
        ("Is it compact?", "Yes", Verdict.true_or_false),
        ("Is it compact?", r"\text{no}", Verdict.true_or_false),
        ("Answer 'yes' or 'no': is it compact?", "1", Verdict.true_or_false),
        ("Find it. (A) 1 (B) 2 (C) 3", "B", Verdict.multiple_choice),
        ("Find it. (a) 1 (b) 2 (c) 3", "2", Verdict.multiple_choice),
        ("Find it.\nA. 1\nB. 2\nC. 3", r"\text{(C)}", Verdict.multiple_choice),
        ("Which of the following is prime: 4, 5, 6?", "5", Verdict.multiple_choice),
        ("Prove that it is 2.", "2", Verdict.proof),
        ("Let x = 1. Show that x + 1 = 2.", "2", Verdict.proof),
        ("They watched a show that was 30 minutes long. How long?", "30", None),
        ("Triangle ABC has (A) on a circle. Find its area.", "x^2", None),
        ("How many are true?", "3", None),
        ("What is X?", "X", None),
    ],
)
def test_what_is_easy_to_hack(question: str, reference: str, verdict: Verdict | None) -> None:
    assert guessable(_task(question, reference)) is verdict
    assert guessable(_task(question, reference, TaskKind.code)) is None


def test_the_last_bar_holds_what_is_always_solved() -> None:
    assert histogram([_profile(n) for n in (0, 0, 1, 5, 9, 10)]) == [2, 1, 0, 0, 0, 1, 0, 0, 0, 2]
    assert histogram([_profile(1, samples=3)]) == [0, 0, 0, 1, 0, 0, 0, 0, 0, 0]


def test_the_chance_of_a_mixed_group_equals_enumeration() -> None:
    draws = [True] * 3 + [False] * 4
    groups = list(itertools.combinations(draws, 4))
    mixed = sum(len(set(group)) == 2 for group in groups) / len(groups)
    assert math.isclose(mixed_chance(7, 3, 4), mixed)
    assert mixed_chance(7, 0, 4) == mixed_chance(7, 7, 4) == 0.0


def test_shares_of_all_and_of_each_family() -> None:
    profiles = [_profile(0), _profile(5), _profile(10), _profile(10, "gcd")]
    found = shares(profiles, group_size=2)
    assert list(found) == ["all", "sums", "gcd"]
    row = found["sums"]
    assert (row.tasks, row.kept) == (3, 1)
    assert math.isclose(row.pass_rate, 0.5)
    for share in (row.all_wrong, row.all_right, row.mixed):
        assert math.isclose(share, 1 / 3)
    assert math.isclose(row.mixed_in_training, (5 / 9) / 3)  # 2 of 10 draws differ: 5 * 5 / 45
    assert (found["gcd"].mixed, found["gcd"].mixed_in_training, found["gcd"].kept) == (0, 0, 0)
    assert found["all"].all_right == 0.5


def test_a_group_larger_than_the_samples_is_as_large_as_they_are() -> None:
    assert shares([_profile(1, samples=2)], group_size=8)["all"].mixed_in_training == 1.0
