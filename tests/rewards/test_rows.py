import gzip
import json
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from rewards.rows import RowError, lines_of, read_label, read_row, scored_line
from rewards.task import TaskKind

MATH = {"response": r"\boxed{5}", "gold": "5"}
CODE = {"response": "def f(x): return x + 1", "tests": ["assert f(1) == 2"]}
INSTRUCTIONS = {
    "response": "tea",
    "prompt": "No commas, please.",
    "instruction_id_list": ["punctuation:no_comma"],
    "kwargs": [{}],
}


def line(row: object) -> bytes:
    return json.dumps(row).encode()


@pytest.mark.parametrize(
    ("kind", "row"),
    [
        (TaskKind.math, MATH),
        (TaskKind.math, {**MATH, "id": 7, "nested": {"a": [1, None]}}),
        (TaskKind.math, {**MATH, "response": ""}),
        (TaskKind.code, CODE),
        (TaskKind.code, {"response": "", "cases": [{"stdin": "1", "stdout": "2"}]}),
        (TaskKind.code, {**CODE, "cases": None, "calls": None, "language": None, "setup": None}),
        (TaskKind.code, {**CODE, "setup": "import math", "language": "python"}),
        (TaskKind.instructions, INSTRUCTIONS),
    ],
)
def test_rows_that_can_be_read(kind: TaskKind, row: dict[str, object]) -> None:
    read = read_row(kind, line(row))
    assert read.response == row["response"] and dict(read.record) == row
    assert read.prompt == row.get("prompt", "")


@pytest.mark.parametrize(
    ("kind", "raw", "says"),
    [
        (TaskKind.math, b"{", "not JSON"),
        (TaskKind.math, b'{"response": "a", "gold": "5"} x', "not JSON"),
        (TaskKind.math, b"[1, 2]", "not a JSON object"),
        (TaskKind.math, b'"text"', "not a JSON object"),
        (TaskKind.math, b"\xff\xfe{", "not UTF-8 at byte 0"),
        (TaskKind.math, b"[" * 100_000, "not JSON"),
        (TaskKind.math, b'{"response": "a", "gold": "5", "p": NaN}', "NaN is not JSON"),
        (TaskKind.math, b'{"response": "a", "gold": "5", "p": 1e999}', "too large"),
        (TaskKind.math, b'{"response": "a", "gold": "5", "p": ' + b"9" * 5000 + b"}", "not JSON"),
        (TaskKind.math, b'{"response": "a", "gold": "5", "gold": "6"}', 'key "gold" twice'),
        (TaskKind.math, b'{"gold": "5"}', 'no key "response"'),
        (TaskKind.math, b'{"response": "a"}', 'no key "gold"'),
        (TaskKind.math, b'{"response": "a", "gold": 5}', '"gold" must be a string, got 5'),
        (TaskKind.math, b'{"response": null, "gold": "5"}', '"response" must be a string'),
        (TaskKind.math, b'{"response": "a", "gold": "  "}', '"gold" is empty'),
        (TaskKind.code, line(MATH), 'needs one of the keys "tests", "cases" and "calls"'),
        (TaskKind.code, line({**CODE, "cases": []}), 'found "tests" and "cases"'),
        (TaskKind.code, line({**CODE, "tests": []}), '"tests" must be a list that is not empty'),
        (TaskKind.code, line({**CODE, "tests": "assert 1"}), '"tests" must be a list'),
        (TaskKind.code, line({**CODE, "tests": [1]}), "strings"),
        (TaskKind.code, line({**CODE, "language": "cobol"}), "cobol"),
        (TaskKind.code, line({"response": "", "cases": [{"stdin": "1"}]}), "stdout"),
        (TaskKind.instructions, line(MATH), 'no key "prompt"'),
        (
            TaskKind.instructions,
            line({**INSTRUCTIONS, "instruction_id_list": ["punctuation:no_coma"]}),
            "punctuation:no_coma",
        ),
        (TaskKind.instructions, line({**INSTRUCTIONS, "kwargs": []}), '"kwargs" must be a list'),
        (TaskKind.instructions, line({**INSTRUCTIONS, "kwargs": [{}, {}]}), "got 2"),
        (TaskKind.instructions, line({**INSTRUCTIONS, "prompt": 3}), '"prompt" must be a string'),
    ],
)
def test_rows_that_cannot_be_read(kind: TaskKind, raw: bytes, says: str) -> None:
    with pytest.raises(RowError) as caught:
        read_row(kind, raw)
    assert says in str(caught.value) and "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("label", "right"),
    [(1, True), (0, False), (True, True), (False, False), ("correct", True), ("Wrong", False)],
)
def test_labels(label: object, right: bool) -> None:
    assert read_label({"label": label}) is right
    assert read_label({"correct": label}) is right


@pytest.mark.parametrize("record", [{}, {"label": 2}, {"label": None}, {"label": "maybe"}])
def test_labels_that_cannot_be_read(record: dict[str, object]) -> None:
    with pytest.raises(RowError, match="label"):
        read_label(record)


def test_lines_are_numbered_as_an_editor_does(tmp_path: Path) -> None:
    path = tmp_path / "rows"
    path.write_bytes(b"\xef\xbb\xbfone\r\n\n  \ntwo \xe2\x80\xa8 still two\nthree")
    plain = [(each.number, each.raw) for each in lines_of(path)]
    assert [number for number, _ in plain] == [1, 4, 5]
    assert plain[0][1] == b"one\r\n" and plain[2][1] == b"three"
    path.write_bytes(gzip.compress(path.read_bytes()))
    assert [(each.number, each.raw) for each in lines_of(path)] == plain


@pytest.mark.parametrize("content", [b"\x1f\x8bnot gzip", gzip.compress(b"x\n" * 9999)[:-20]])
def test_a_damaged_archive_is_named(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "rows.gz"
    path.write_bytes(content)
    with pytest.raises(RowError, match=r"cannot read .*rows\.gz"):
        list(lines_of(path))


def test_what_is_no_file_is_named(tmp_path: Path) -> None:
    for path, says in ((tmp_path, "a folder"), (tmp_path / "none", "No such file")):
        with pytest.raises(RowError, match=says):
            list(lines_of(path))
    with pytest.raises(RowError, match="not a regular file"):
        list(lines_of(Path("/dev/zero")))


def test_half_a_surrogate_pair_survives() -> None:
    row = read_row(TaskKind.math, rb'{"response": "\ud800", "gold": "5", "score": 3}')
    written = json.loads(scored_line(row.record, 0.0, "no box"))
    assert written == {"response": "\ud800", "gold": "5", "score": 0.0, "why": "no box"}


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(), inner, max_size=4),
    max_leaves=12,
)
keys = st.sampled_from(
    ["response", "gold", "tests", "cases", "calls", "prompt", "instruction_id_list", "kwargs",
     "language", "setup", "stdin", "stdout", "id"]
)  # fmt: skip
rows = st.dictionaries(keys, json_values | st.just([{}]) | st.just(["punctuation:no_comma"]))
kinds = st.sampled_from([TaskKind.math, TaskKind.code, TaskKind.instructions])


@settings(max_examples=300, deadline=None)
@given(kind=kinds, raw=st.binary(max_size=200) | (json_values | rows).map(line))
def test_any_bytes_are_a_row_or_a_named_error(kind: TaskKind, raw: bytes) -> None:
    try:
        row = read_row(kind, raw)
    except RowError as error:
        assert str(error) and "\n" not in str(error)
        return
    assert json.loads(scored_line(row.record, 0.5, "why"))["score"] == 0.5
    assert row.response == row.record["response"]
