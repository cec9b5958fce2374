"""Finding the program in a response."""

import time

import pytest

from rewards.programs.languages import LANGUAGES, find_language
from rewards.programs.program import find_program

PYTHON = LANGUAGES["python"]


@pytest.mark.parametrize(
    ("response", "program"),
    [
        ("def f(): pass", "def f(): pass"),
        ("Here:\n```python\nx = 1\n```\nDone.", "x = 1"),
        ("```py\nx = 1\n```\n```\nprint(x)\n```", "x = 1"),
        ("```\nx = 1\n```", "x = 1"),
        ("```python\nold\n```\nbetter:\n```python\nnew\n```", "new"),
        ("```python\ndef f(): pass\n```\nuse it:\n```python\nprint(f())\n```", "def f(): pass"),
        ("```python\ndef f(): 1\n```\n```python\ndef f(): 2\n```", "def f(): 2"),
        ("<think>```python\nwrong\n```</think>\n```python\nright\n```", "right"),
        ("<think>a</think>b</think>```python\nx\n```", "x"),
        ("```python\nnever closed", "never closed"),
        ("```python\r\nx = 1\r\n```\r\n", "x = 1"),
        ("~~~python\nx = '```'\n~~~", "x = '```'"),
        ("````python\nx = '''\n```\n'''\n````", "x = '''\n```\n'''"),
        ("1. so:\n   ```python\n   x = 1\n   ```", "   x = 1"),
        ("```json\n{}\n```\n```python\nx\n```", "x"),
    ],
)
def test_program_of_a_response(response: str, program: str) -> None:
    assert find_program(response, PYTHON, ("f",)).strip("\n") == program


@pytest.mark.parametrize(
    "response",
    ["`" * 500_000, "```" + "a" * 500_000 + "`", "```\n" * 200_000, "~" * 300_000 + "\n" * 300_000],
)
def test_takes_linear_time(response: str) -> None:
    start = time.monotonic()
    find_program(response, PYTHON, ("f",))
    assert time.monotonic() - start < 10.0


def test_languages_by_label() -> None:
    assert find_language("Python3").name == "python"
    with pytest.raises(ValueError, match="known: python"):
        find_language("cobol")
