"""From the comparisons of a group's answers to their rewards."""

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

from rewards.comparison import CriticReport, PairOutcome, report_on
from rewards.critic_config import Ranking
from rewards.critic_verdict import PairVerdict
from rewards.ranking import Outcome, bradley_terry, connected, win_rates
from rewards.rubric import Rubric

Outcomes = Mapping[tuple[int, int], PairOutcome]  # by the places of both in `Group.clean`


@dataclass(frozen=True, slots=True, kw_only=True)
class Group:
    """The answers of one group, and what came of their comparisons."""

    count: int  # K
    clean: Sequence[int]  # indices of the answers that were compared
    lost: Mapping[int, str]  # of those that lost by rule, with the reason; the rest was cut
    outcomes: Outcomes
    rubrics: Sequence[Rubric]  # those that the critic decides


@dataclass(frozen=True, slots=True, kw_only=True)
class GroupRanking:
    """The rewards of one group.

    Example: of three answers the second is cut by its budget and the third flatters, so the first
    has won its only comparison: rewards are `(1.0, None, 0.0)`.
    """

    rewards: tuple[float | None, ...]  # [K] in [0, 1]; None: was not compared, or all if `failed`
    why: tuple[str, ...]  # [K] one line each
    report: CriticReport
    failed: str | None = None  # why no ranking could be made


def rank_group(group: Group, ranking: Ranking) -> GroupRanking:
    """Rewards: how much of the others an answer beats, 0 for what loses or violates.

    No reward is made up: where too few verdicts could be read the ranking has `failed`.
    """
    decided = [
        (i, j, outcome.preference)
        for (i, j), outcome in group.outcomes.items()
        if outcome.preference is not None
    ]
    report = report_on(group.outcomes.values(), disqualified=len(group.lost))
    failed = _failure(group, decided)
    if failed is not None:
        why = (f"not ranked: {failed}",) * group.count
        return GroupRanking(rewards=(None,) * group.count, why=why, report=report, failed=failed)
    rate = win_rates if ranking is Ranking.win_rate else bradley_terry
    rewards: list[float | None] = [None] * group.count
    lines = ["not compared: it was cut"] * group.count
    for index, reason in group.lost.items():
        rewards[index], lines[index] = 0.0, f"lost by rule: {reason}"
    rates = rate(len(group.clean), decided)
    for place, index in enumerate(group.clean):
        violation = _violation(group, place)
        share = _share(group, rates[place])
        rewards[index] = share if violation is None else 0.0
        lines[index] = "; ".join(
            filter(None, (violation, _won(group, place), _votes(group, place)))
        )
    return GroupRanking(rewards=tuple(rewards), why=tuple(lines), report=report)


def _failure(group: Group, decided: Sequence[Outcome]) -> str | None:
    """Why the group cannot be ranked. Past it every answer that has others has a rate."""
    pairs = len(group.outcomes)
    if 2 * len(decided) < pairs:
        return f"{pairs - len(decided)} of {pairs} comparisons have no verdict that can be read"
    if not connected(len(group.clean), decided):
        return "the comparisons whose verdict can be read do not connect all answers"
    return None


def _share(group: Group, rate: float | None) -> float:
    """The share of all other answers that one beats, given that it beats `rate` of the clean ones.

    All that lost by rule count as beaten, in a sparse design too: so they weigh the same in all.
    """
    others = len(group.clean) - 1 + len(group.lost)
    if others == 0:
        return 0.5
    beaten = len(group.lost) / others
    return beaten if rate is None else rate + (1.0 - rate) * beaten


def _violation(group: Group, place: int) -> str | None:
    """The mandatory rubrics that most judgements on an answer say it breaks, each by itself."""
    broken = [
        verdict.violations[side]
        for outcome, turned in _of(group, place)
        for verdict, side in ((outcome.first, turned), (outcome.second, 1 - turned))
        if verdict is not None
    ]
    votes = Counter(name for names in broken for name in names)
    most = {name: count for name, count in votes.items() if 2 * count > len(broken)}
    if not most:
        return None
    said = ", ".join(f"{_one_line(name)} by {most[name]}" for name in sorted(most))
    return f"reward 0: breaks {said} of {len(broken)} judgements"


def _won(group: Group, place: int) -> str:
    points = [
        1.0 - outcome.preference if turned else outcome.preference
        for outcome, turned in _of(group, place)
        if outcome.preference is not None
    ]
    by_rule = len(group.lost)
    if not points and not by_rule:
        return "nothing to compare it with: 0.5"
    rule = f" ({by_rule} by rule)" if by_rule else ""
    return f"won {sum(points) + by_rule:g} of {len(points) + by_rule} comparisons{rule}"


def _votes(group: Group, place: int) -> str:
    """What both orders say on each rubric: `true 6/7`."""
    votes = [
        {
            rubric.name: (
                _vote(outcome.first, rubric.name, turned == 1)
                + _vote(outcome.second, rubric.name, turned == 0)
            )
            / 2
            for rubric in group.rubrics
        }
        for outcome, turned in _of(group, place)
        if outcome.first is not None and outcome.second is not None
    ]
    if not votes:
        return ""
    sums = {rubric.name: sum(vote[rubric.name] for vote in votes) for rubric in group.rubrics}
    return ", ".join(f"{_one_line(name)} {points:g}/{len(votes)}" for name, points in sums.items())


def _vote(verdict: PairVerdict, name: str, is_b: bool) -> float:
    return 1.0 - verdict.rubrics[name] if is_b else verdict.rubrics[name]


def _of(group: Group, place: int) -> Iterator[tuple[PairOutcome, int]]:
    """The comparisons of one clean answer, each with its side: 1 where it is answers[1]."""
    for pair, outcome in group.outcomes.items():
        if place in pair:
            yield outcome, pair.index(place)


def _one_line(name: str) -> str:
    return " ".join(name.split())
