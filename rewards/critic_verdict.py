"""The critic's verdict on two answers: the line of JSON that ends a judgement, read strictly."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from rewards.critic_config import DecidedBy
from rewards.critic_prompt import asked
from rewards.rubric import Rubric

WORDS: Mapping[str, float] = {"A": 1.0, "B": 0.0, "tie": 0.5}
MOST_CHARACTERS = 64 << 10  # of the line


@dataclass(frozen=True, slots=True, kw_only=True)
class PairVerdict:
    """What one judgement says. 1: the answer shown as A is better, 0: B, 0.5: a tie."""

    better: float
    rubrics: Mapping[str, float]  # by name, each that the critic decides
    violations: tuple[frozenset[str], frozenset[str]]  # mandatory rubrics that A, and B, break


class _Refused(ValueError):
    """Why a verdict cannot be read."""


def read_verdict(text: str, rubrics: Sequence[Rubric]) -> PairVerdict | str:
    """The verdict in the last line of a judgement, or why it cannot be read.

    The line is JSON with exactly the keys that `critic_prompt.verdict_form` shows; white space
    alone may follow it.

    Args:
        text: the critic's words; untrusted.
        rubrics: as given to `critic_messages`.
    """
    line = text.rstrip().rpartition("\n")[2]
    shown = asked(rubrics)
    try:
        given = _object(_parse(line), "the verdict")
        mandatory = [rubric.name for rubric in shown if rubric.mandatory]
        _check_keys(given, ["rubrics", *(["violations"] if mandatory else []), "better"], "verdict")
        votes = _object(given["rubrics"], "rubrics")
        _check_keys(votes, [rubric.name for rubric in shown], "rubrics")
        return PairVerdict(
            better=_word(given["better"], "better"),
            rubrics={name: _word(word, name) for name, word in votes.items()},
            violations=_violations(given.get("violations", {"A": [], "B": []}), mandatory),
        )
    except _Refused as refused:
        return str(refused)


def decide(verdict: PairVerdict, rubrics: Sequence[Rubric], by: DecidedBy) -> float:
    """How much one judgement prefers the answer shown as A: 1, 0, or 0.5 for a tie.

    Args:
        verdict: what it says.
        rubrics: those that it was asked about, for their weights.
        by: its overall word, or the sign of the weighted vote over the rubrics.
    """
    if by is DecidedBy.overall:
        return verdict.better
    weights = {rubric.name: rubric.weight for rubric in asked(rubrics)}
    vote = sum(weight * (verdict.rubrics[name] - 0.5) for name, weight in weights.items())
    if abs(vote) <= 1e-9 * sum(weights.values()):  # 0.1 + 0.2 against 0.3
        return 0.5
    return 1.0 if vote > 0 else 0.0


def _parse(line: str) -> Any:
    if not line:
        raise _Refused("no text")
    if len(line) > MOST_CHARACTERS:
        raise _Refused(f"the last line has {len(line)} characters, more than {MOST_CHARACTERS}")
    try:
        return json.loads(line, object_pairs_hook=_unique, parse_constant=_no_constant)
    except _Refused:
        raise
    except (ValueError, RecursionError) as error:
        raise _Refused("the last line is not JSON") from error


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    made = dict(pairs)
    if len(made) != len(pairs):
        raise _Refused("a key stands twice")
    return made


def _no_constant(name: str) -> None:
    raise _Refused(f"{name} is no JSON")


def _object(value: object, what: str) -> dict[str, Any]:
    if not isinstance(value, dict):
        raise _Refused(f"{what} is no JSON object")
    return value


def _check_keys(given: Mapping[str, Any], wanted: Sequence[str], what: str) -> None:
    missing = [name for name in wanted if name not in given]
    if missing:
        raise _Refused(f"{what} lacks {missing[0]!r:.80}")
    extra = given.keys() - set(wanted)
    if extra:
        raise _Refused(f"{what} has {min(extra)!r:.80}, which was not asked for")


def _word(value: object, what: str) -> float:
    if not isinstance(value, str) or value not in WORDS:
        raise _Refused(f'{what!r:.80} is {value!r:.40}, not "A", "B" or "tie"')
    return WORDS[value]


def _violations(given: object, mandatory: Sequence[str]) -> tuple[frozenset[str], frozenset[str]]:
    sides = _object(given, "violations")
    _check_keys(sides, ["A", "B"], "violations")
    return _names(sides["A"], mandatory), _names(sides["B"], mandatory)


def _names(given: object, mandatory: Sequence[str]) -> frozenset[str]:
    if not isinstance(given, list):
        raise _Refused("violations are no list of names")
    for name in given:
        if not isinstance(name, str) or name not in mandatory:
            raise _Refused(f"violations name {name!r:.80}, which is no mandatory rubric")
    if len(set(given)) != len(given):
        raise _Refused("violations name a rubric twice")
    return frozenset(given)
