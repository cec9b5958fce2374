"""Keeping the critic honest: pairs whose truth a verifier knows, and the gate (K2 sec. 3.2.2).

How pairs are chosen is ours. Lengths and sides must not tell which answer is right: pairs come in
couples of about the same two lengths, the right one longer in one and shorter in the other, and
the right one is shown first as often as second, whether it is longer or shorter.
"""

import hashlib
import itertools
import json
import math
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from fractions import Fraction
from random import Random

from rewards.critic_config import CalibrationConfig
from rewards.task import Message, Task, TaskKind

VERIFIABLE = (TaskKind.math, TaskKind.code, TaskKind.instructions)
PAIRS_PER_GROUP = 2  # so that one question does not fill a step
LEAST_DIFFERENCE = 1e-6  # of two rewards: less is rounding
MOST_ANSWERS = 64  # of a group that are paired: the pairs grow with the square
MOST_WAITING = 128  # pairs of one length class that wait; the oldest go first
NEAR = 0.1  # most `distance` of a couple: at 0.3 rules on lengths earn 0.53, at 0.1 at most 0.51


@dataclass(frozen=True, slots=True, kw_only=True)
class Verified:
    """One complete answer of a group that a verifier scored."""

    response: str
    tokens: int
    reward: float


@dataclass(frozen=True, slots=True, kw_only=True)
class VerifiedPair:
    """Two answers to one question, of which the verifier rewarded `right` more."""

    task_id: str
    family: str
    prompt: tuple[Message, ...]
    right: str
    wrong: str
    right_tokens: int
    wrong_tokens: int
    step: int  # that the answers are from

    @property
    def longer(self) -> int:
        """1 where the right one is longer, -1 where it is shorter, 0 where neither is."""
        return (self.right_tokens > self.wrong_tokens) - (self.right_tokens < self.wrong_tokens)

    @property
    def lengths(self) -> list[int]:
        """The shorter, the longer; in tokens."""
        return sorted((self.right_tokens, self.wrong_tokens))


@dataclass(frozen=True, slots=True, kw_only=True)
class DrawnPair:
    """A pair to judge, and the side that its right answer is shown on."""

    pair: VerifiedPair
    right_first: bool


def held_out(task: Task, percent: int, seed: int) -> bool:
    """Whether this question only measures the critic: by a hash of the prompt's text.

    The same on every machine and for every task with the same words.
    """
    words = json.dumps([seed, [(message.role, message.content) for message in task.messages]])
    return int.from_bytes(hashlib.sha256(words.encode()).digest()[:8]) % 100 < percent


def is_critic_position(position: int, share: float) -> bool:
    """Whether prompt number `position` (from 0) of a run is a critic task.

    One in every 1 / share prompts, at a place drawn by hash: families come in cycles, too, and a
    fixed place would always take the prompts of one.
    """
    exact = Fraction(share).limit_denominator(1_000_000)
    if not exact:
        return False
    turn = math.floor(position * exact)
    first, stop = math.ceil(turn / exact), math.ceil((turn + 1) / exact)
    drawn = int.from_bytes(hashlib.sha256(str(turn).encode()).digest()[:8])
    return position == first + drawn % (stop - first)


class PairPool:
    """Pairs of verifiable groups: some train the critic, those of held-out questions measure it."""

    def __init__(self, config: CalibrationConfig, seed: int) -> None:
        """An empty pool; `seed` also chooses the held-out questions."""
        self._config, self._seed = config, seed
        self._random = Random(seed)
        self._training = _Balanced(self._random)
        self._measuring = _Balanced(self._random)
        self._sides = {-1: 0, 0: 0, 1: 0}  # right first minus right second, by length class

    def add(self, step: int, task: Task, answers: Sequence[Verified]) -> int:
        """Take pairs from the group that answered `task` at `step`; returns how many.

        Groups of a kind without a verifier give none, nor do equal rewards or equal texts.
        """
        if task.kind not in VERIFIABLE:
            return 0
        pairs = list(_pairs(step, task, _distinct(answers, self._random)))
        chosen = _few(pairs, self._random)
        out = held_out(task, self._config.held_out_percent, self._seed)
        side = self._measuring if out else self._training
        side.forget(step - self._config.max_age)
        side.put(chosen)
        return len(chosen)

    def draw(self, step: int) -> DrawnPair | None:
        """The next pair to train on at `step`; None rather than a biased one.

        Over the pairs drawn, "the right one is longer" and "it is shorter" differ by at most 1,
        and so do "shown first" and "shown second" in each of the length classes.
        """
        self._training.forget(step - self._config.max_age)
        pair = self._training.take()
        if pair is None:
            return None
        balance = self._sides[pair.longer]
        first = balance < 0 or (balance == 0 and self._random.random() < 0.5)
        self._sides[pair.longer] += 1 if first else -1
        return DrawnPair(pair=pair, right_first=first)

    def measure(self, step: int, count: int) -> list[VerifiedPair]:
        """At most `count` held-out pairs, each given once; balanced in length as those of `draw`.

        Fewer rather than others: a rule on lengths must not pass the gate.
        """
        self._measuring.forget(step - self._config.max_age)
        pairs = (self._measuring.take() for _ in range(count))
        return [pair for pair in pairs if pair is not None]

    @property
    def waiting(self) -> int:
        """Pairs that wait, both to train and to measure."""
        return len(self._training) + len(self._measuring)


class Gate:
    """Whether rubric rewards count: only while the critic agrees with the verifiers."""

    def __init__(self, config: CalibrationConfig) -> None:
        """Closed until enough pairs have been judged, unless no agreement is asked."""
        self._config = config
        self._agreement: float | None = None
        self._pairs = 0

    @property
    def open(self) -> bool:
        """Whether rubric rewards count."""
        if self._config.least_agreement == 0.0:
            return True
        if self._agreement is None or self._pairs < self._config.least_pairs:
            return False
        return self._agreement >= self._config.least_agreement

    def update(self, agreement: float | None, pairs: int) -> str | None:
        """Take the agreement over the last `pairs` readable pairs; a line if the gate moved."""
        before = self.open
        self._agreement, self._pairs = agreement, pairs
        return None if self.open == before else self.describe()

    def describe(self) -> str:
        """One line: the state, and why."""
        asked, where = self._config, "rewards.calibration"
        if asked.least_agreement == 0.0:
            return f"rubric rewards always count ({where}.least_agreement=0)"
        if self._agreement is None or self._pairs < asked.least_pairs:
            return (
                f"rubric rewards are frozen: the critic has judged {self._pairs} pairs, at least "
                f"{asked.least_pairs} are asked ({where}.least_pairs)"
            )
        return (
            f"rubric rewards {'count' if self.open else 'are frozen'}: the critic agrees with the "
            f"verifiers on {self._agreement:.2f} of the last {self._pairs} pairs, at least "
            f"{asked.least_agreement:g} is asked ({where}.least_agreement)"
        )


def distance(one: VerifiedPair, other: VerifiedPair) -> float:
    """How far the lengths of two pairs lie apart, whichever of their answers is right.

    |log(longer / longer')| + |log(shorter / shorter')|, each length + 1; infinite for two families,
    or "the longer in mathematics" would be a rule. At 0 no rule on the two lengths, whether on
    their difference or on their size, can tell the two pairs apart.
    """
    if one.family != other.family:
        return math.inf
    sizes = zip(one.lengths, other.lengths, strict=True)
    return sum(abs(math.log((a + 1) / (b + 1))) for a, b in sizes)


class _Balanced:
    """Pairs by length class, taken so that longer and shorter right answers stay equally many."""

    def __init__(self, random: Random) -> None:
        self._random = random
        self._classes: dict[int, list[VerifiedPair]] = {-1: [], 0: [], 1: []}  # oldest first
        self._balance = 0  # taken with a longer right answer minus taken with a shorter one
        self._last: VerifiedPair | None = None  # the last of unequal length
        self._partner: VerifiedPair | None = None  # its like from the other class, set aside
        self._barren = False  # no couple until pairs come: the search is quadratic

    def __len__(self) -> int:
        return sum(map(len, self._classes.values())) + (self._partner is not None)

    def put(self, added: Iterable[VerifiedPair]) -> None:
        for pair in added:
            self._barren = False
            pairs = self._classes[pair.longer]
            pairs.append(pair)
            if len(pairs) > MOST_WAITING:
                pairs.remove(min(pairs, key=lambda each: each.step))

    def forget(self, oldest: int) -> None:
        for pairs in self._classes.values():
            pairs[:] = [pair for pair in pairs if pair.step >= oldest]
        if self._partner and self._partner.step < oldest:
            self._partner = None

    def take(self) -> VerifiedPair | None:
        """The next that keeps the balance."""
        if self._balance:
            return self._counterpart() or self._equal()
        equal = len(self._classes[0])
        unequal = 2 * min(len(self._classes[1]), len(self._classes[-1]))
        if self._random.random() * (equal + unequal) < equal:
            return self._equal()
        return self._couple() or self._equal()

    def _counterpart(self) -> VerifiedPair | None:
        pair, self._partner = self._partner, None
        if not pair:
            last, others = self._last, self._classes[-1 if self._balance > 0 else 1]
            if last is None or not others:
                return None
            pair = min(others, key=lambda each: (distance(each, last), -each.step))
            others.remove(pair)
        return self._taken(pair)

    def _couple(self) -> VerifiedPair | None:
        """Take one pair and set its like aside; the newest that has a like."""
        few, many = sorted((self._classes[-1], self._classes[1]), key=len)
        for pair in () if self._barren else sorted(few, key=lambda each: -each.step):
            near = [each for each in many if distance(each, pair) <= NEAR]
            if near:
                like = max(near, key=lambda each: (each.step, -distance(each, pair)))
                few.remove(pair)
                many.remove(like)
                now, self._partner = (pair, like) if self._random.random() < 0.5 else (like, pair)
                return self._taken(now)
        self._barren = True
        return None

    def _equal(self) -> VerifiedPair | None:
        """The newest of equal length: it moves no balance."""
        pairs = self._classes[0]
        if not pairs:
            return None
        newest = max(pairs, key=lambda pair: pair.step)
        pairs.remove(newest)
        return newest

    def _taken(self, pair: VerifiedPair) -> VerifiedPair:
        if pair.longer:
            self._balance += pair.longer
            self._last = pair
        return pair


def _distinct(answers: Sequence[Verified], random: Random) -> list[Verified]:
    """One of each text. A text that was rewarded in two ways has no truth."""
    same: dict[str, list[Verified]] = {}
    for answer in answers:
        same.setdefault(answer.response.strip(), []).append(answer)
    kept = [each[0] for each in same.values() if len({round(one.reward, 6) for one in each}) == 1]
    return kept if len(kept) <= MOST_ANSWERS else random.sample(kept, MOST_ANSWERS)


def _pairs(step: int, task: Task, answers: Sequence[Verified]) -> Iterator[VerifiedPair]:
    for right, wrong in itertools.permutations(answers, 2):
        if right.reward - wrong.reward > LEAST_DIFFERENCE:
            yield VerifiedPair(
                task_id=task.id,
                family=task.tags[0] if task.tags else task.kind.value,
                prompt=task.messages,
                right=right.response,
                wrong=wrong.response,
                right_tokens=right.tokens,
                wrong_tokens=wrong.tokens,
                step=step,
            )


def _few(pairs: list[VerifiedPair], random: Random) -> list[VerifiedPair]:
    """A random pair and, of the other length class, the one most like it."""
    if len(pairs) <= PAIRS_PER_GROUP:
        return pairs
    first, second = random.sample(pairs, PAIRS_PER_GROUP)
    others = [pair for pair in pairs if first.longer and pair.longer == -first.longer]
    return [first, min(others or [second], key=lambda each: distance(each, first))]
