import re
from pathlib import Path

import pytest

from rewards.config import RewardsConfig
from rewards.errors import RewardError
from rewards.plugin import Plugin, load_plugins
from rewards.score import Score
from rewards.task import Message, Task, TaskKind, Transcript

TASK = Task(
    id="t/7",
    kind=TaskKind.open,
    messages=(Message(role="user", content="Say hello."),),
    reference="",
    token_budget=8,
)
HELLO = Transcript(messages=TASK.messages, response="hello", response_tokens=1, truncated=False)

FILE = """
from dataclasses import dataclass
import numpy
from rewards.score import Score

@dataclass(frozen=True)
class Wish:
    word: str

def polite(task, transcript):
    return Score(total=float("hello" in transcript.response), why=Wish("hello").word)

def short(task, transcript):
    return transcript.response_tokens <= 2

def never(task, transcript):
    return None

def words(task, transcript):
    return "many"

def nan(task, transcript):
    return Score(total=float("nan"))

def text(task, transcript):
    return Score(total="1")

def numpy_(task, transcript):
    return Score(total=numpy.float32(0.5), why=3)

def broken(task, transcript):
    return 1 / 0

def leaves(task, transcript):
    raise SystemExit(0)

def verl(data_source, solution_str, ground_truth, extra_info=None):
    return 1.0

async def later(task, transcript):
    return 1.0

number = 3
"""


@pytest.fixture
def file(tmp_path: Path) -> Path:
    path = tmp_path / "mine.py"
    path.write_text(FILE)
    return path


def test_what_a_function_may_return(file: Path) -> None:
    assert Plugin(f"{file}:polite").score(TASK, HELLO) == Score(total=1.0, why="hello")
    assert Plugin(f"{file}:short").score(TASK, HELLO) == Score(total=1.0)
    assert Plugin(f"{file}:never").score(TASK, HELLO) is None
    plain = Plugin(f"{file}:numpy_").score(TASK, HELLO)
    assert plain == Score(total=0.5, why="3") and type(plain.total) is float


def test_a_file_is_read_as_it_is_now_and_leaves_no_cache(tmp_path: Path) -> None:
    path = tmp_path / "mine.py"
    for value in (1.0, 2.0):  # of one size, within one second
        path.write_text(f"def f(task, transcript):\n    return {value}\n")
        score = Plugin(f"{path}:f").score(TASK, HELLO)
        assert score is not None and score.total == value
    assert [each.name for each in tmp_path.iterdir()] == ["mine.py"]


@pytest.mark.parametrize(
    ("function", "message"),
    [
        ("words", "returned str, not a float, a Score or None"),
        ("nan", "returned nan"),
        ("text", "returned str, not a float"),
        ("broken", "line 32: ZeroDivisionError: division by zero"),
        ("leaves", "line 35: SystemExit: 0"),
    ],
)
def test_a_failure_names_function_and_task(file: Path, function: str, message: str) -> None:
    whole = f"reward {file}:{function}, task t/7: {message}"
    with pytest.raises(RewardError, match=re.escape(whole)):
        Plugin(f"{file}:{function}").score(TASK, HELLO)


@pytest.mark.parametrize(
    ("function", "message"),
    [
        ("polit", "defines no function 'polit'; it has polite, short, never"),
        ("number", "defines no function 'number'"),
        ("later", "async is not supported"),
        ("verl", r"called with \(task, transcript\) and takes \(data_source, solution_str, "),
    ],
)
def test_a_function_that_cannot_be_called_is_refused(
    file: Path, function: str, message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        Plugin(f"{file}:{function}")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("import nowhere_at_all", "ModuleNotFoundError: No module named 'nowhere_at_all'"),
        ("def f(:", "SyntaxError"),
        ("raise SystemExit", "SystemExit"),
    ],
)
def test_a_file_that_fails_is_refused(tmp_path: Path, text: str, message: str) -> None:
    path = tmp_path / "bad.py"
    path.write_text(text)
    config = RewardsConfig(mixture={"open": {f"{path}:f": 1.0}})
    with pytest.raises(ValueError, match=rf"reward {re.escape(str(path))}:f: {message}"):
        load_plugins(config)


def test_a_missing_file_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="no such file"):
        Plugin(f"{tmp_path}/none.py:f")
