"""Every metric of a run is explained somewhere in docs/."""

import ast
import re
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
METRIC = re.compile(r"[a-z]+/[a-z0-9_]*[a-z0-9]")  # a name that ends in _ is put together
INTERNAL = {"correction/weight_square"}  # becomes correction/ess


def _names() -> set[str]:
    """What looks like a metric among the strings of rl/."""
    trees = [ast.parse(path.read_text()) for path in (ROOT / "rl").glob("*.py")]
    constants = [n.value for tree in trees for n in ast.walk(tree) if isinstance(n, ast.Constant)]
    return {text for text in constants if isinstance(text, str) and METRIC.fullmatch(text)}


def test_every_metric_is_in_a_document() -> None:
    documents = "".join(path.read_text() for path in (ROOT / "docs").glob("*.md"))
    names = _names() - INTERNAL
    assert {"reward/mean", "time/step", "optim/max_logit"} <= names and len(names) > 50
    assert sorted(name for name in names if f"`{name}`" not in documents) == []
