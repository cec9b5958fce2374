import contextlib
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import psutil
import pytest
import ray

from rewards.errors import RewardError
from rewards.math_answer import MathVerifier, quick_verdict
from rewards.mathematics.pool import Nursery
from rewards.score import Score

ALGEBRA = (r"\boxed{\sqrt{8}}", r"2\sqrt{2}")
PARENT = """
import time
from rewards.math_answer import MathVerifier
verifier = MathVerifier()
print(verifier.verify(r"\\boxed{\\sqrt{8}}", r"2\\sqrt{2}").total, flush=True)
time.sleep(60)
"""

RIGHT = [
    ("1/2", "0.5"),
    ("1/2", r"\frac12"),
    ("1/2", r"\frac{2}{4}"),
    ("0.5", r"\dfrac{1}{2}"),
    ("-1/2", r"-\frac{1}{2}"),
    ("-1/2", r"\frac{-1}{2}"),
    ("3/2", r"1\frac{1}{2}"),
    ("1/3", "0.333333"),
    ("144", "144"),
    ("144", "144.0"),
    ("144", "144."),
    ("144", " 144 "),
    ("1234", "1,234"),
    ("1,234", "1234"),
    ("1234", r"1{,}234"),
    ("5", r"5 \text{ cm}"),
    ("5", "5 cm"),
    ("5", r"5\,\mathrm{kg}"),
    ("5", r"\$5"),
    ("5", "x=5"),
    ("x = 5", "5"),
    (r"\boxed{5}", "5"),
    ("50", r"50\%"),
    (r"50\%", "0.5"),
    (r"50\%", "50"),
    ("90", r"90^\circ"),
    ("1000", "10^{3}"),
    ("300", r"3\times 10^2"),
    ("-30", "\u221230"),
    ("5", r"\boxed{5}"),
    (r"\text{No}", "no"),
    ("Evelyn", r"\text{Evelyn}"),
    (r"\{1,2\}", r"\{2, 1\}"),
    ("(1,2)", r"\left(1, 2\right)"),
    (r"\frac{\sqrt{2}}{2}", r"\frac{1}{\sqrt{2}}"),
    ("x^2+2x+1", "(x+1)^2"),
    (r"2\pi", r"\pi \cdot 2"),
    ("x>2", "2<x"),
    ("e^{2}", "e^2"),
    (r"\begin{pmatrix}1\\2\end{pmatrix}", r"\begin{pmatrix} 1 \\ 2 \end{pmatrix}"),
    ("18", r"9 \times 2 = 18 \text{ dollars}"),
    ("18", r"9 \times 2 = \$18"),
    ("18", r"\$9 \times 2 = \$18"),
    (r"18 \text{ dollars}", r"9 \times 2 = 18 \text{ dollars}"),
    (r"18 \text{ dollars}", r"\$9 \times 2 = \$18"),
    (r"18 \text{ hours}", "18 hrs"),
    (r"3 \text{ years}", r"3 \text{ yrs}"),
    (r"3 \text{ km}", "3 kms"),
    (r"3 \text{ kg}", "3 kgs"),
    ("1/2", r"\text{P}(A) = 1/2"),
    ("P(A) = 1/2", r"\mathrm{P}(A)=1/2"),
    ("1/2", r"\nicefrac{1}{2}"),
    ("1/2", r"\sfrac{1}{2}"),
    ("1/2", "1\u20442"),
    ("-5", "\u20115"),
    ("-5", "\uff0d5"),
    ("18", "**18**"),
    (r"\text{DNE}", r"\text{The limit does not exist}"),
]

WRONG = [
    ("2", "1/2"),
    ("1/2", "2"),
    ("10000", "9999"),
    ("30", "-30"),
    ("-30", "30"),
    ("1/3", "0.333"),
    ("1/3", "0.333334"),
    ("0.5", "0.05"),
    ("144", "57+87"),
    ("9", "27/3"),
    ("135", "5*9*3"),
    ("3", r"\gcd(33, 9)"),
    ("5", "8-3"),
    ("5", "five"),
    ("5", "5x"),
    ("5", "5 million"),
    ("24", "2 4"),
    ("24", "12 24"),
    ("2", "2 or 3"),
    ("2", "2, 3"),
    ("12", "12*"),
    ("5", ""),
    ("5", "   "),
    ("5", "x"),
    ("5", "1/0"),
    ("(1,2)", "(2,1)"),
    ("[0,1)", "[0,1]"),
    ("[0,1]", "(0,1)"),
    (r"\{1,2\}", r"\{1,3\}"),
    (r"\text{No}", "on"),
    ("Evelyn", "Bob"),
    (r"\pi", "3.14"),
    (r"\frac{\pi}{2}", r"\int_0^\infty \frac{\sin x}{x} dx"),
    ("x+1", "x-1"),
    (r"\sqrt{2}", r"\frac{1}{"),
    ("18", r"9 \times 3 = \$18"),
    ("18", r"9 \times 2 = \$19"),
    ("18", r"9 \times 2 = 18 \text{ million}"),
    ("18", r"9 \times 2 \text{ cm} = 18 \text{ kg}"),
    ("18", r"\$9 \times 2 = 18 \text{ cm}"),
    (r"18 \text{ dollars}", r"9 \times 2 = 18 \text{ cents}"),
    (r"18 \text{ dollars}", r"9 \times 2 = 18 \text{ cm}"),
    (r"18 \text{ hours}", "18 mins"),
    (r"3 \text{ m}", r"3 \text{ ms}"),
    (r"3 \text{ g}", r"3 \text{ gs}"),
    ("1/2", r"1-\text{P}(A) = 1/2"),
    ("1/2", r"-\text{P}(A) = 1/2"),
    ("1/2", r"\text{Not}(A) = 1/2"),
    ("1/2", "2\u20441"),
    ("9", r"\nicefrac{27}{3}"),
    ("5", "10\u20115"),
    ("18", "**19**"),
    ("18", "**18** or **19**"),
    (r"\text{DNE}", r"\text{The limit does exist}"),
    ("-1, 3", r"1 \pm 2"),
]


@pytest.fixture(scope="module")
def verifier() -> Iterator[MathVerifier]:
    made = MathVerifier(timeout_s=5.0)
    assert not made.readable("???")  # math-verify is up
    yield made
    made.close()


@pytest.mark.parametrize(("gold", "answer"), RIGHT)
def test_right_answers(verifier: MathVerifier, gold: str, answer: str) -> None:
    score = verifier.verify(rf"So it is \boxed{{{answer}}}.", gold)
    assert (score.total, dict(score.parts)) == (1.0, {"math": 1.0}), score.why


@pytest.mark.parametrize(("gold", "answer"), WRONG)
def test_wrong_answers(verifier: MathVerifier, gold: str, answer: str) -> None:
    score = verifier.verify(rf"So it is \boxed{{{answer}}}.", gold)
    assert (score.total, dict(score.parts)) == (0.0, {"math": 0.0}) and score.why


@pytest.mark.parametrize(
    ("response", "total"),
    [
        ("The answer is 5.", 0.0),
        ("5", 0.0),
        ("", 0.0),
        (r"\boxed{4} or \boxed{5}", 0.0),
        (r"\boxed{5} or \boxed{4}", 0.0),
        (r"\boxed{5}, again \boxed{5.0}", 1.0),
        (r"\boxed{5} and \boxed{", 1.0),
        (r"\boxed 5", 0.0),
    ],
)
def test_responses(response: str, total: float) -> None:
    score = quick_verdict(response, "5")
    assert score is not None and score.total == total and score.why


def test_an_exploding_answer_scores_0_in_time() -> None:
    verifier = MathVerifier(timeout_s=1.0)
    verifier.verify(r"\boxed{x}", r"x+\pi")  # the child is up
    start = time.monotonic()
    score = verifier.verify(r"\boxed{x+9^{9^{9^{9}}}}", r"x+\pi")
    assert score.total == 0.0 and score.why
    assert time.monotonic() - start < 2.0
    assert verifier.verify(r"\boxed{\pi+x}", r"x+\pi").total == 1.0  # a child serves
    assert verifier.verify(r"\boxed{9^{9^{9^{9}}}}", "5").total == 0.0
    verifier.close()


@pytest.mark.parametrize(
    "box",
    ["9" * 100_000, "{" * 50_000 + "}" * 50_000, "x+" * 50_000 + "x", "(" * 100 + ")" * 100],
)
def test_a_huge_or_deep_box_scores_0(verifier: MathVerifier, box: str) -> None:
    for gold in ("5", r"x+\sqrt{2}"):
        start = time.monotonic()
        assert verifier.verify(rf"\boxed{{{box}}}", gold).total == 0.0
        assert time.monotonic() - start < 6.0


@pytest.mark.parametrize("gold", ["", "  ", r"\sqrt{", "???"])
def test_an_unreadable_gold_is_an_error_not_a_0(verifier: MathVerifier, gold: str) -> None:
    with pytest.raises(RewardError, match="gold"):
        verifier.verify(r"\boxed{\sqrt{5}}", gold)


def test_what_dies_is_replaced() -> None:
    verifier = MathVerifier(timeout_s=5.0)
    assert verifier.verify(*ALGEBRA).total == 1.0
    for end in (_end_workers, _end_nursery, _end_nursery, _end_workers):
        end(verifier)
        start = time.monotonic()
        assert verifier.verify(*ALGEBRA).total == 1.0
        assert time.monotonic() - start < 6.0
    verifier.close()


def _end_nursery(verifier: MathVerifier) -> None:
    process = verifier._algebra.nursery._process
    assert process is not None
    process.kill()
    process.wait()


def _end_workers(verifier: MathVerifier) -> None:
    (worker,) = verifier._algebra._idle
    os.kill(worker._pid, signal.SIGKILL)


def test_nothing_is_left_behind() -> None:
    before = set(psutil.Process().children(recursive=True))
    verifier = MathVerifier(timeout_s=5.0, workers=2)
    verifier.start()
    assert verifier.verify(*ALGEBRA).total == 1.0
    with ThreadPoolExecutor(4) as threads:
        scores = list(threads.map(lambda _: verifier.verify(*ALGEBRA).total, range(40)))
    assert scores == [1.0] * 40
    assert verifier.readable(r"\gcd(n, p-1)")
    ours = set(psutil.Process().children(recursive=True)) - before
    assert len(ours) >= 3  # two nurseries and a worker
    verifier.close()
    assert psutil.wait_procs(list(ours), timeout=5.0)[1] == []


def test_they_end_with_a_parent_that_is_killed(tmp_path: Path) -> None:
    script = tmp_path / "score.py"
    script.write_text(PARENT)
    root = Path(__file__).parents[2]
    parent = subprocess.Popen(
        [sys.executable, str(script)],
        stdout=subprocess.PIPE,
        text=True,
        cwd=root,
        env={**os.environ, "PYTHONPATH": str(root)},
    )
    assert parent.stdout is not None and parent.stdout.readline() == "1.0\n"
    family = psutil.Process(parent.pid).children(recursive=True)
    assert len(family) == 2
    parent.kill()
    parent.wait()
    parent.stdout.close()
    for each in family:
        with contextlib.suppress(psutil.NoSuchProcess):
            deadline = time.monotonic() + 5.0
            while each.status() != psutil.STATUS_ZOMBIE and time.monotonic() < deadline:
                time.sleep(0.02)
            assert each.status() == psutil.STATUS_ZOMBIE  # ended; nobody collects it in a container


def test_a_nursery_that_cannot_start_is_an_error() -> None:
    verifier = MathVerifier(timeout_s=0.5)
    pool = verifier._algebra
    pool.nursery = Nursery("rewards.no_such_module")
    with pytest.raises(RewardError, match="twice"):
        verifier.verify(*ALGEBRA)
    verifier.close()


def test_a_worker_that_cannot_start_in_time_is_an_error_not_a_0() -> None:
    verifier = MathVerifier(timeout_s=1e-6)
    verifier._reader.nursery.start()
    pool = verifier._reader
    with pytest.raises(TimeoutError):
        pool.take(time.monotonic())
    verifier.close()


def _in_thread(verifier: MathVerifier, response: str, gold: str) -> Score:
    found: list[Score] = []
    thread = threading.Thread(target=lambda: found.append(verifier.verify(response, gold)))
    thread.start()
    thread.join()
    return found[0]


def test_another_thread_gives_the_same(verifier: MathVerifier) -> None:
    for gold, answer in [("x+1", "1+x"), ("x+1", "x"), ("5", "5"), (r"\sqrt{8}", r"2\sqrt{2}")]:
        response = rf"\boxed{{{answer}}}"
        assert _in_thread(verifier, response, gold) == verifier.verify(response, gold)


class _Sync:
    def __init__(self) -> None:
        self._verifier = MathVerifier(timeout_s=1.0)

    def verify(self, response: str, gold: str) -> Score:
        return self._verifier.verify(response, gold)


class _Async(_Sync):
    async def verify(self, response: str, gold: str) -> Score:  # type: ignore[override]
        return self._verifier.verify(response, gold)


@pytest.fixture(scope="module")
def cluster() -> Iterator[None]:
    ray.init(num_cpus=1, include_dashboard=False, logging_level="error", log_to_driver=False)
    yield
    ray.shutdown()


def test_ray_actors_give_the_same(cluster: None) -> None:
    remote, free = ray.remote, {"num_cpus": 0}
    actors = [
        remote(_Sync).options(**free).remote(),
        remote(_Async).options(**free).remote(),
    ]
    rows = [("x+1", "1+x"), ("x+1", "x"), ("5", "5"), (r"x+\pi", r"x+9^{9^{9^{9}}}")]
    calls = [[each.verify.remote(rf"\boxed{{{a}}}", g) for g, a in rows] for each in actors]
    bad_golds = [each.verify.remote(r"\boxed{x}", "???") for each in actors]
    for scores, bad_gold in zip(calls, bad_golds, strict=True):
        assert [score.total for score in ray.get(scores)] == [1.0, 0.0, 1.0, 0.0]
        with pytest.raises(RewardError, match="gold"):
            ray.get(bad_gold)
