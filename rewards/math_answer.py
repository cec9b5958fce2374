r"""The reward of a mathematical answer: 1 if the box holds the gold answer, else 0.

Equal text, numbers, words, and lists, intervals, matrices or equations of rational expressions are
decided here, by a grammar of our own that never evaluates text. What needs algebra goes to a forked
worker, which may be killed: `math_worker` compares values to 60 digits; `math_reader` asks
math-verify about the few golds that our grammar does not read.
"""

import os
import re
import threading
import time
from collections.abc import Sequence

from rewards.errors import RewardError
from rewards.mathematics.compare import NoAlgebra, Undecided, same
from rewards.mathematics.forms import Kind, read_form, read_gold
from rewards.mathematics.pool import Nursery, Worker
from rewards.mathematics.text import boxes, choice, final_answers, normal, wording, words
from rewards.score import Score

PART = "math"
MOST_CHARACTERS = 2000  # of an answer that is worth reading
MOST_ANSWERS = 16  # that may say the same in one response
START_S = 120.0  # for math-verify to be imported on a busy machine, while tasks are loaded
GRACE_S = 0.8  # what a call may take beyond its limit
_ENDLESS = re.compile(r"(?:(\.[0-9]{3,400})|(?<!\.))\.\.[ .$]*$")
_WORD = re.compile(r"(?<![\\A-Za-z])[A-Za-z]{3}")
STARVED = 0.25  # of the limit: a late worker that had less of a processor was not slow itself


def quick_verdict(response: str, reference: str) -> Score | None:
    r"""The verdict where no algebra is needed, else None; linear in the length of the response.

    No box, an empty box and boxes that disagree score 0. A plain number must be answered with a
    plain number, not with a sum or another restated question. Raises `RewardError` for an empty
    reference, and never because of the response.
    """
    verdict = _judge(response, reference)
    return verdict if isinstance(verdict, Score) else None


class MathVerifier:
    """Scores answers; safe to share between threads, each of which may have a worker of its own."""

    def __init__(self, timeout_s: float = 5.0, workers: int = 1) -> None:
        """Keeps at most `workers` idle. Nothing starts before `start` or the first need."""
        self._timeout_s = timeout_s
        self._algebra = _Pool("rewards.mathematics.worker", workers)
        self._reader = _Pool("rewards.mathematics.reader", workers)

    def start(self) -> None:
        """Start what may be needed, without waiting: 0.2 s for algebra, 3 s for math-verify."""
        self._algebra.nursery.start()
        self._reader.nursery.start()

    def verify(self, response: str, reference: str) -> Score:
        """Score one response: total and part "math" are 0 or 1, and `why` says what was compared.

        Returns or raises within the timeout plus one second. An answer that cannot be read, that
        takes longer than the timeout or that kills its worker twice scores 0. Raises `RewardError`
        for an unreadable gold answer, and where the machine gave the workers no chance to answer.
        """
        verdict = _judge(response, reference)
        if isinstance(verdict, Score):
            return verdict
        latest = time.monotonic() + self._timeout_s + GRACE_S
        gold = _content(reference)
        for answer in verdict:
            score = self._compare(answer, gold, latest)
            if not score.total:
                return score
        return score

    def readable(self, reference: str) -> bool:
        """Whether answers can be compared with this gold: else drop the task when it is loaded.

        Raises `RewardError` if the workers cannot start.
        """
        gold = _content(reference)
        if not gold or read_gold(gold) is not None:
            return bool(gold)
        try:
            self._compare("?", gold, time.monotonic() + START_S)
        except UnreadableGold:
            return False
        return True

    def close(self) -> None:
        """End the processes; a later `verify` starts new ones."""
        self._algebra.close()
        self._reader.close()

    def _compare(self, answer: str, gold: str, latest: float) -> Score:
        pool = self._algebra if read_gold(gold) is not None else self._reader
        for _ in range(2):  # a worker may have died of an earlier answer
            try:
                worker = pool.take(latest)
            except TimeoutError as error:
                raise RewardError("no worker of math answers in time: start() it early") from error
            except OSError:
                continue
            deadline = min(latest, time.monotonic() + self._timeout_s)
            try:
                equal = _ask(worker, answer, gold, deadline)
            except TimeoutError:
                starved = worker.worked_s() < STARVED * self._timeout_s
                pool.discard(worker)
                return self._late(answer, gold, starved=starved)
            except OSError:
                pool.discard(worker)
                continue
            except BaseException:
                pool.discard(worker)  # interrupted: what it still says must not meet the next one
                raise
            pool.give(worker)
            if equal is None:
                raise UnreadableGold(f"the gold answer {_short(gold)} cannot be read")
            return _score(float(equal), _said(answer, gold))
        raise RewardError("the worker of math answers died, twice")

    def _late(self, answer: str, gold: str, *, starved: bool) -> Score:
        if starved:
            raise RewardError("a worker of math answers had no processor to work on")
        return _score(0.0, f"{_said(answer, gold)}: not compared within {self._timeout_s:g} s")


class UnreadableGold(RewardError):
    """Neither our grammar nor math-verify reads the gold answer."""


class _Pool:
    """The workers of one nursery: as many as there are callers, few of them kept when idle."""

    def __init__(self, module: str, keep: int) -> None:
        self.nursery = Nursery(module)
        self._keep = keep
        self._lock = threading.Lock()
        self._idle: list[Worker] = []
        self._owner = os.getpid()

    def take(self, deadline: float) -> Worker:
        if self._owner != os.getpid():  # a fork: not its workers, and a thread may hold the lock
            self._lock, self._idle, self._owner = threading.Lock(), [], os.getpid()
        with self._lock:
            while self._idle:
                worker = self._idle.pop()
                if worker.alive():
                    return worker
                worker.close()
        return self.nursery.fork(deadline)

    def give(self, worker: Worker) -> None:
        with self._lock:
            if len(self._idle) < self._keep:
                self._idle.append(worker)
                return
        worker.close()

    def discard(self, worker: Worker) -> None:
        worker.close()
        self.nursery.kill(worker.token)

    def close(self) -> None:
        with self._lock:
            for worker in self._idle:
                worker.close()
            self._idle = []
        self.nursery.close()


def _ask(worker: Worker, answer: str, gold: str, deadline: float) -> bool | None:
    """Whether they are equal; None if the worker cannot read the gold. Raises what it raises."""
    worker.send(gold, answer, deadline)
    if not worker.receive(deadline)["gold"]:
        return None
    return bool(worker.receive(deadline)["equal"])


def _judge(response: str, reference: str) -> Score | list[str]:
    """The verdict, or the answers that need algebra: all must equal the gold."""
    gold = _content(reference)
    if not gold:
        raise RewardError("the gold answer is empty: drop the task or give it a reference")
    answers = final_answers(response)
    if not answers:
        return _score(0.0, r"no balanced \boxed{} in the response")
    distinct = list(dict.fromkeys(answers))
    if len(distinct) > MOST_ANSWERS:
        return _score(0.0, f"{len(distinct)} answers that differ")
    return _judge_all(distinct, gold)


def _judge_all(answers: Sequence[str], gold: str) -> Score | list[str]:
    undecided: list[str] = []
    differ = f"{len(answers)} boxes, not all of them right: " if len(answers) > 1 else ""
    for answer in answers:
        if not answer.strip(" \t\r\n$.{}"):
            return _score(0.0, f"{differ}the box is empty")
        if len(answer) > max(MOST_CHARACTERS, 4 * len(gold)):
            return _score(0.0, f"{differ}the box holds {len(answer)} characters")
        equal = _equal(answer, gold)
        if equal is False:
            return _score(0.0, differ + _said(answer, gold))
        if equal is None:
            undecided.append(answer)
    return undecided or _score(1.0, _said(answers[-1], gold))


def _equal(answer: str, gold: str) -> bool | None:
    """Whether they are equal as far as it takes no algebra, else None."""
    if _endless(answer) and not _endless(gold):
        return False
    if normal(answer) == normal(gold):
        return True
    letters = choice(answer), choice(gold)
    if letters[1] and letters[0]:
        return letters[0] == letters[1]
    form = read_gold(gold)
    if form is None:
        if _WORD.search(gold) and wording(answer) == wording(gold):
            return True
        return False if letters[1] else None
    if form.kind is Kind.words:
        return (words(answer) or words(rf"\text{{{answer}}}")) == form.text
    try:
        return same(form, read_form(answer), NoAlgebra())
    except Undecided:
        return None
    except Exception:  # the answer is untrusted: whatever it breaks, it is not the gold
        return False


def _endless(text: str) -> bool:
    """Whether it goes on: `1, 2, ...` is no list of two. But 0.333333... is a decimal."""
    match = _ENDLESS.search(text)
    return match is not None and not match.group(1)


def _content(reference: str) -> str:
    """The gold answer in a reference, which may be a worked solution with a box or `#### X`."""
    found = boxes(reference)
    return found[-1] if found else reference.rpartition("####")[2].strip()


def _score(total: float, why: str) -> Score:
    return Score(total=total, parts={PART: total}, why=why)


def _said(answer: str, gold: str) -> str:
    return f"{_short(answer)}, gold {_short(gold)}"


def _short(text: str) -> str:
    text = " ".join(text.split())
    return repr(text if len(text) <= 60 else f"{text[:57]}...")
