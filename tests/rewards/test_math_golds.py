"""Every gold answer of the data sets, against itself: read from TEMPER_DATA where it is there."""

import gzip
import json
import os
from pathlib import Path

import pytest

from rewards.math_answer import quick_verdict
from rewards.mathematics.forms import read_gold
from rewards.mathematics.text import boxes

DATA = Path(os.environ.get("TEMPER_DATA", Path(__file__).parents[3] / "shared" / "data"))
FILES = [
    ("gsm8k/train.jsonl.gz", "answer", 1.0),
    ("gsm8k/test.jsonl.gz", "answer", 1.0),
    ("deepmath/math_deepmath_deal.jsonl.gz", "ground_truth", 0.994),
    ("math-word/svamp.jsonl.gz", "Answer", 1.0),
    ("math-word/mawps.jsonl.gz", "target", 1.0),
    ("math-word/college_math.jsonl.gz", "answer", 0.85),
    ("math-word/olympiadbench.jsonl.gz", "final_answer", 0.99),
]
SAMPLE = [
    "Natalia sold 48/2 = <<48/2=24>>24 clips.\n#### 72",
    "#### 1,080",
    "#### -3",
    r"\dfrac{\pi}{2}",
    r"\dbinom{99}{49}",
    "x + 2y - 2z - 9 = 0",
    r"\{Y + 2Y^2, 1 + Y + 2Y^2, 2 + Y + 2Y^2\}",
    r"\frac{1}{5}, \frac{1}{4}, \frac{2}{5}, \frac{1}{2}",
    "-2f'(0)",
    "U(0,1)",
    r"\ln|\ln|x|| + C",
    "422_8",
    r"\mathbf{0}",
    r"18\text{ hours}",
    r"$\left[0, \frac{\pi}{4}\right] \cup\left(\frac{\pi}{2}, \frac{3 \pi}{2}\right)$",
    r"$x=-2,6$",
    r"$\{x \mid x \neq-1\}$",
    r"$y=c_{1} \cos (\ln x)+c_{2} \sin (\ln x)$",
    r"$f(x)=x$,$f(x)=2-x$",
]


def _golds(name: str, field: str) -> list[str]:
    with gzip.open(DATA / name, "rt") as lines:
        values = [json.loads(line)[field] for line in lines]
    return [str(value[0] if isinstance(value, list) else value) for value in values]


def _content(gold: str) -> str:
    found = boxes(gold)
    return found[-1] if found else gold.rpartition("####")[2].strip()


def _refused(golds: list[str]) -> list[str]:
    scores = [(gold, quick_verdict(rf"\boxed{{{_content(gold)}}}", gold)) for gold in golds]
    return [gold for gold, score in scores if score is None or score.total != 1.0]


def test_a_sample_of_golds() -> None:
    assert _refused(SAMPLE) == []
    assert [gold for gold in SAMPLE if read_gold(_content(gold)) is None] == []


@pytest.mark.skipif(not DATA.is_dir(), reason="TEMPER_DATA names no folder; a sample is tested")
@pytest.mark.parametrize(("name", "field", "share"), FILES)
def test_all_golds(name: str, field: str, share: float) -> None:
    golds = _golds(name, field)
    assert _refused(golds) == []
    read = sum(read_gold(_content(gold)) is not None for gold in golds)
    assert read >= share * len(golds)
