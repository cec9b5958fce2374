import json
from pathlib import Path

import pytest

from rewards.math_answer import MathVerifier

CASES = [
    json.loads(line)
    for line in (Path(__file__).parents[1] / "data" / "math_cases.jsonl").read_text().splitlines()
]


def test_there_are_enough_cases() -> None:
    rights = sum(case["right"] for case in CASES)
    assert rights >= 150 and len(CASES) - rights >= 250


@pytest.mark.parametrize("right", [True, False])
def test_every_case(verifier: MathVerifier, right: bool) -> None:
    failed = []
    for case in CASES:
        if case["right"] is right:
            score = verifier.verify(rf"So it is \boxed{{{case['answer']}}}.", case["gold"])
            if score.total != float(right):
                failed.append((case["gold"], case["answer"], score.why))
    assert failed == []


LONG = "We add the apples, then the pears: $2 + 3 = 5$.\n\n"
RESPONSES = [
    (LONG + r"**Answer:** \boxed{5}", "5", 1.0),
    (LONG + r"$\boxed{5}$", "5", 1.0),
    (LONG + r"\[ \boxed{ 5 } \]", "5", 1.0),
    (LONG + r"$$x = \boxed{5}.$$", "5", 1.0),
    (LONG + r"\fbox{5}", "5", 1.0),
    (LONG + "#### 5", "5", 1.0),
    (LONG + "#### 5\n", "5", 1.0),
    (LONG + "#### $5", "5", 1.0),
    (LONG + "#### 1,000", "1000", 1.0),
    (LONG + "#### 6", "5", 0.0),
    (LONG + "#### 5\nor so", "5", 0.0),
    (LONG + "#### 5 or 6", "5", 0.0),
    ("#### 5\n" + r"\boxed{6}", "5", 0.0),
    (LONG + "The answer is 5.", "5", 0.0),
    (LONG + "**5**", "5", 0.0),
    (LONG + "Answer: 5", "5", 0.0),
    (LONG + "$5$", "5", 0.0),
    (r"\boxed{5", "5", 0.0),
    (r"\boxed 5", "5", 0.0),
    (r"boxed{5}", "5", 0.0),
    (r"\boxed{4} or \boxed{5}", "5", 0.0),
    (r"\boxed{5} or \boxed{4}", "5", 0.0),
    (r"\boxed{5}, again \boxed{5.0}", "5", 1.0),
    (r"\boxed{\frac{\sqrt2}{2}} is \boxed{\frac{1}{\sqrt2}}", r"\frac{\sqrt2}{2}", 1.0),
    (r"\boxed{\frac{\sqrt2}{2}} is \boxed{\sqrt2}", r"\frac{\sqrt2}{2}", 0.0),
    (r"\boxed{5} and \boxed{", "5", 1.0),
    (r"\boxed{\boxed{5}}", "5", 1.0),
    (r"\boxed{6 \boxed{5}}", "5", 0.0),
    (r"\boxed{\boxed{5} 6}", "5", 0.0),
    (r"\boxed{\boxed{5}\boxed{6}}", "5", 0.0),
    (r"<think>\boxed{4}</think> So \boxed{5}", "5", 1.0),
    (r"<think>\boxed{5}</think> So \boxed{4}", "5", 0.0),
    (r"<think>\boxed{5}</think> So it is done.", "5", 0.0),
    (r"<think>\boxed{5}</think>", "5", 1.0),
    (r"\boxed{}", "5", 0.0),
    (r"\boxed{ }", "5", 0.0),
    (r"\boxed{$$}", "5", 0.0),
    ("", "5", 0.0),
    (r"\boxed{72}", "Natalia sold 48/2 = <<48/2=24>>24 clips.\n#### 72", 1.0),
    (r"\boxed{24}", "Natalia sold 48/2 = <<48/2=24>>24 clips.\n#### 72", 0.0),
    (r"\boxed{72}", "$72$", 1.0),
    (r"\boxed{72}", r"so \boxed{72}.", 1.0),
    (" ".join(rf"\boxed{{{count}}}" for count in range(100)), "5", 0.0),
]


@pytest.mark.parametrize(("response", "gold", "total"), RESPONSES)
def test_responses(verifier: MathVerifier, response: str, gold: str, total: float) -> None:
    score = verifier.verify(response, gold)
    assert (score.total, dict(score.parts)) == (total, {"math": total}) and score.why


GOLDS = [
    ("5", True),
    (r"\frac{\sqrt{2}}{2}", True),
    ("The #### 72", True),
    (r"\text{Monday}", True),
    (r"[0, 1) \cup \{3\}", True),
    (r"\sum_{n=1}^{\infty} \frac{1}{n^2}", True),
    ("", False),
    ("???", False),
    (r"\sqrt{", False),
    (r"as in \includegraphics{a}", False),
]


@pytest.mark.parametrize(("gold", "readable"), GOLDS)
def test_which_golds_can_be_read(verifier: MathVerifier, gold: str, readable: bool) -> None:
    assert verifier.readable(gold) is readable
