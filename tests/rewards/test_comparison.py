"""Reports on comparisons: counts of a few, by hand."""

from rewards.comparison import CriticReport, PairOutcome, report_on


def outcome(first: float | None, second: float | None, problems: int = 0) -> PairOutcome:
    return PairOutcome(
        first=None,
        second=None,
        says=(first, second),
        preference=None,
        judgements=2,
        retries=1,
        tokens=10,
        prompt_tokens=100,
        problems=("unreadable",) * problems,
    )


def test_what_is_counted() -> None:
    outcomes = [
        outcome(1.0, 0.0),
        outcome(1.0, 1.0),
        outcome(0.5, 0.5),
        outcome(0.5, 0.0),
        outcome(0.0, None, problems=1),
        outcome(None, None, problems=2),
    ]
    assert report_on(outcomes, disqualified=3) == CriticReport(
        pairs=6,
        judgements=12,
        retries=6,
        unreadable=3,
        inconsistent=2,
        ties=1,
        says_a=3,
        says_b=3,
        tokens=60,
        prompt_tokens=600,
        disqualified=3,
        problems=("unreadable",) * 3,
    )
    assert report_on([]) == CriticReport()


def test_reports_add_up() -> None:
    first = CriticReport(pairs=1, judgements=2, says_a=1, problems=("x",) * 4)
    second = CriticReport(pairs=2, ties=1, says_b=3, disqualified=1, problems=("y",) * 4)
    assert first + second == CriticReport(
        pairs=3,
        judgements=2,
        ties=1,
        says_a=1,
        says_b=3,
        disqualified=1,
        problems=("x", "x", "x", "x", "y"),
    )
