"""Answers made to hang, crash or exhaust a grader: all score 0, in time."""

import time
from collections.abc import Iterator

import pytest

from rewards.errors import RewardError
from rewards.math_answer import MathVerifier, quick_verdict

LIMIT_S = 2.0
GOLDS = ["5", r"x+\sqrt{2}", "(1,2)", "1,2,3", r"\text{Yes}", "[0,1]", r"\sum_{n=1}^{k} n"]
ANSWERS = [
    "9" * 100_000,
    "9" * 1990,
    "{" * 50_000 + "}" * 50_000,
    "x+" * 50_000 + "x",
    "(" * 100 + ")" * 100,
    "(" * 900 + "2" + ")" * 900,
    "x" * 1999,
    "9^" * 600 + "9",
    "x+9^{9^{9^{9^9}}}",
    "2^{" * 100 + "2" + "}" * 100,
    "(((x^{99999999})^{99999999})^{99999999})^{9999999}",
    "x^{100000000000000000000000}",
    "e^{e^{e^{e^{e^e}}}}",
    r"\frac{" * 300 + "1" + "}{2}" * 300,
    r"\sqrt{" * 300 + "2" + "}" * 300,
    r"\sqrt[10^{9}]{2}",
    r"\sin(10^{100})",
    r"\sin" * 600,
    r"\binom{10^{50}}{10^{49}}",
    "100000!",
    "a" * 39 + "!",
    "5" + "!" * 1900,
    r"\pm" * 500,
    r"\text{" * 400,
    r"\text{a}" * 250,
    "5 " + r"\text{a} " * 40 + "=",
    "x=" + "\\text{a}\n" * 150 + "1",
    "." * 1990 + "x",
    "1" + " " * 900 + r"\over" + " " * 900 + "2{}{}",
    "x_{" + " " * 900 + "2" + " " * 900 + "x}",
    "1 " * 900,
    " " * 1999 + "17",
    "1" + " " * 1900 + "2",
    r"\ " * 900 + "1 2",
    "1," * 900,
    "|" * 1900,
    "[" * 900 + "]" * 900,
    r"\{" * 600 + r"\}" * 600,
    "(1," * 600 + "2" + ")" * 600,
    "=" * 1900,
    "x=" * 900,
    "5=" * 900 + "6",
    r"\begin{pmatrix}" * 100,
    r"\begin{pmatrix}" + "1&" * 900 + r"1\end{pmatrix}",
    r"(1,2)\cup" * 200 + "(1,2)",
    "1:" * 900 + "1",
    r"\alpha" * 300 + "!=1",
    "a, b " * 300 + "9",
    "%" * 1900,
    r"\log_" * 300,
    r"\max(" * 200 + "1" + ")" * 200,
    "\ud800" * 100,
    "\x00" * 500,
    "\u2212" * 1900,
    "__import__('os').system('true')",
    "().__class__.__bases__[0]",
    "exec('raise SystemExit')",
]


@pytest.fixture(scope="module")
def verifier() -> Iterator[MathVerifier]:
    made = MathVerifier(timeout_s=LIMIT_S)
    assert not made.readable("???")  # both nurseries serve
    made.verify(r"\boxed{\sqrt{8}}", r"2\sqrt{2}")
    yield made
    made.close()


@pytest.mark.parametrize("answer", ANSWERS, ids=range(len(ANSWERS)))
def test_hostile_answers(verifier: MathVerifier, answer: str) -> None:
    for gold in GOLDS:
        start = time.monotonic()
        try:
            assert verifier.verify(rf"\boxed{{{answer}}}", gold).total == 0.0
        except RewardError as error:  # on a machine that is busy with other work
            assert "processor" in str(error) or "in time" in str(error)
        assert time.monotonic() - start < LIMIT_S + 1.0


RESPONSES = [
    "x" * 10**6,
    "{" * 10**5 + "}" * 10**5,
    r"\boxed{" * 10**5,
    r"\boxed{" * 10**5 + "}" * 10**5,
    r"\boxed{1" * 10**4 + "}" * 10**4,
    r"\boxed{1}" * 10**5 + r"\boxed{2}",
    "".join(rf"\boxed{{{count}}}" for count in range(10**5)),
    r"\boxed" + " " * 10**6,
    r"\boxed{" + "5" * 10**6 + "}",
    " " * 10**6,
    "\\" * 10**6,
    "<think>" * 10**5,
    "</think>" * 10**5,
    "#### " * 10**5,
    "#### " + "9" * 10**6,
]


@pytest.mark.parametrize("response", RESPONSES, ids=range(len(RESPONSES)))
def test_huge_responses_take_linear_time(response: str) -> None:
    start = time.monotonic()
    score = quick_verdict(response, "5")
    assert score is not None and score.total == 0.0
    assert time.monotonic() - start < 6.0


def test_an_exploding_gold_is_no_reason_to_hang() -> None:
    verifier = MathVerifier(timeout_s=LIMIT_S)
    verifier.start()
    start = time.monotonic()
    assert verifier.verify(r"\boxed{\sqrt{2}}", "9^{9^{9^{9^{9}}}}").total == 0.0
    assert time.monotonic() - start < LIMIT_S + 1.0
    verifier.close()
