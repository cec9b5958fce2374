import gzip
import json
import math
import re
from dataclasses import asdict, replace
from pathlib import Path

import pyarrow
import pytest
from pyarrow import parquet

from rewards.rubric import Rubric, Rule
from rewards.task import Message, Task, TaskKind
from rollout.config import FamilyConfig, Source, TasksConfig
from rollout.problem import DataError
from rollout.sources import RowFile, check_generators, expand, first_faults, open_source
from rollout.tasks import Split, TaskStream

GSM8K = {"question": "2 pens cost $3 each?", "answer": "2*3=$<<2*3=6>>6.\nIn all.\n#### 1,006"}
DEEPMATH = {
    "prompt": "Find x.",
    "messages": json.dumps(
        [{"role": "system", "content": "Box it."}, {"role": "user", "content": "Find x."}]
    ),
    "ground_truth": "1/2",
    "difficulty": "4.5",
}

MBPP = {
    "content": "Add.",
    "test_list": ["assert add(1, 2) == 3"],
    "labels": {"test_setup_code": "import math"},
    "canonical_solution": "def add(a, b):\r\n    return a + b\r\n",
}
SCRIPT = """
def check(a):
    return add(a, 1)

assert check(1) == 2
"""
IFBENCH = {
    "prompt": "Say hello.",
    "instruction_id_list": ["count:numbers"],
    "kwargs": [{"N": 3, "keyword": None}],
}
TASK = {
    "id": "sums/train/3",
    "kind": "math",
    "messages": [{"role": "user", "content": "1+1?\nBox it."}],
    "reference": "2",
    "token_budget": 48,
    "solution": None,
    "tags": ["sums", "easy"],
    "question": "1+1?",
}


def _file(folder: Path, rows: list[object], source: Source = Source.gsm8k) -> FamilyConfig:
    path = folder / "rows.jsonl"
    lines = [row if isinstance(row, str) else json.dumps(row) for row in rows]
    path.write_text("\n".join(lines))
    return FamilyConfig(source=source, name="words", path=str(path))


def test_gsm8k(tmp_path: Path) -> None:
    problem = RowFile(_file(tmp_path, [GSM8K])).problem(0)
    assert problem.messages[0].content == "2 pens cost $3 each?"
    assert problem.reference == "1006"
    assert problem.worked == "2*3=$6.\nIn all.\n\\boxed{1006}"


def test_deepmath(tmp_path: Path) -> None:
    rows: list[object] = [DEEPMATH, {"prompt": "1+1?", "ground_truth": 2}]
    source = RowFile(_file(tmp_path, rows, Source.deepmath))
    first, second = source.problem(0), source.problem(1)
    assert [message.role for message in first.messages] == ["system", "user"]
    assert (first.question, first.reference, first.worked) == ("Find x.", "1/2", None)
    assert first.tags == ("difficulty=4.5",)
    assert (second.messages[0].content, second.reference) == ("1+1?", "2")


@pytest.mark.parametrize(
    ("row", "reference"),
    [
        ({"tests": ["assert f() == 1"]}, {"tests": ["assert f() == 1"]}),
        (
            {"cases": [{"stdin": "1", "stdout": "2"}], "language": "cpp"},
            {"cases": [{"stdin": "1", "stdout": "2"}], "language": "cpp"},
        ),
        (
            {"test": json.dumps([{"input": {"stdin": "1"}, "output": {"stdout": "2"}}])},
            {"cases": [{"stdin": "1", "stdout": "2"}]},
        ),
        (
            {"test": SCRIPT},
            {"tests": [SCRIPT]},
        ),
        (
            {"calls": [{"function": "f", "args": [1], "expected": 2}], "setup": "x = 1"},
            {"calls": [{"function": "f", "args": [1], "expected": 2}], "setup": "x = 1"},
        ),
    ],
    ids=["tests", "cases", "code_contests", "script", "calls"],
)
def test_code_rows_of_every_shape(
    tmp_path: Path, row: dict[str, object], reference: dict[str, object]
) -> None:
    source = RowFile(_file(tmp_path, [{"question": "Write it.", **row}], Source.code))
    problem = source.problem(0)
    assert (problem.kind, problem.worked) == (TaskKind.code, None)
    assert json.loads(problem.reference) == reference


def test_a_code_row_with_a_solution(tmp_path: Path) -> None:
    problem = RowFile(_file(tmp_path, [MBPP], Source.code)).problem(0)
    assert problem.question == "Add."
    assert json.loads(problem.reference) == {
        "tests": ["assert add(1, 2) == 3"],
        "setup": "import math",
    }
    assert problem.worked == "```python\ndef add(a, b):\n    return a + b\n```"


def test_instructions(tmp_path: Path) -> None:
    problem = RowFile(_file(tmp_path, [IFBENCH], Source.instructions)).problem(0)
    assert (problem.kind, problem.question) == (TaskKind.instructions, "Say hello.")
    assert json.loads(problem.reference) == {
        "instruction_id_list": ["count:numbers"],
        "kwargs": [{"N": 3}],
    }


def test_whole_tasks(tmp_path: Path) -> None:
    config = TasksConfig(families=[_file(tmp_path, [TASK], Source.tasks)], held_out_percent=0)
    task = TaskStream(config, Split.train).at(0)
    assert task.id == "words/train/0"
    assert task.messages[0].content == "1+1?\nBox it."
    assert (task.kind, task.reference, task.token_budget) == (TaskKind.math, "2", 48)
    assert task.tags == ("words", "sums", "easy")
    assert RowFile(config.families[0]).problem(0).question == "1+1?"


def test_an_instruction_does_not_move_a_task_to_the_other_split(tmp_path: Path) -> None:
    rows: list[object] = [
        {**TASK, "messages": [{"role": "user", "content": f"{n}+1?"}], "question": None}
        for n in range(60)
    ]
    plain = _file(tmp_path, rows, Source.tasks)
    boxed = replace(plain, instruction="Box it.")
    config = TasksConfig(families=[plain], test_families=[boxed], held_out_percent=50)
    train, held_out = TaskStream(config, Split.train), TaskStream(config, Split.held_out)
    trained = {train.at(n).messages[0].content for n in range(60)}
    tested = {held_out.at(n).messages[0].content for n in range(60 - len(trained))}
    assert len(tested) == 60 - len(trained) and all(text.endswith("\nBox it.") for text in tested)
    assert not trained & {text.removesuffix("\nBox it.") for text in tested}


def test_gzip_the_data_folder_and_the_instruction(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "rows.jsonl.gz").write_bytes(gzip.compress(json.dumps(GSM8K).encode()))
    monkeypatch.setenv("TEMPER_DATA", str(tmp_path))
    family = FamilyConfig(
        source=Source.gsm8k,
        name="words",
        path="${TEMPER_DATA}/rows.jsonl.gz",
        instruction="Box it.",
    )
    assert RowFile(family).problem(0).messages[0].content == "2 pens cost $3 each?\nBox it."
    monkeypatch.delenv("TEMPER_DATA")
    assert expand("${TEMPER_DATA}/x") == Path("../shared/data/x")


def test_a_line_ends_at_a_newline_alone(tmp_path: Path) -> None:
    row = {"question": "One\u2028line\x85of\x0cmany.", "answer": "#### 1"}
    text = json.dumps(row, ensure_ascii=False)
    (tmp_path / "rows.jsonl").write_bytes(f"\ufeff{text}\r\n{text}\n".encode())
    family = FamilyConfig(source=Source.gsm8k, name="w", path=str(tmp_path / "rows.jsonl"))
    source = RowFile(family)
    assert source.size == 2
    assert source.problem(1).question == row["question"]


@pytest.mark.parametrize(
    ("source", "row", "message"),
    [
        (
            Source.gsm8k,
            "{",
            r"line 2: the row is not valid JSON \(Expecting .* at column 2\): write",
        ),
        (Source.gsm8k, "[]", "line 2: the row is no JSON object"),
        (Source.gsm8k, {"answer": "#### 1"}, "line 2: key 'question' is missing"),
        (Source.gsm8k, {"question": "q", "answer": "1"}, "line 2: key 'answer' has no gold"),
        (Source.gsm8k, {"question": "q", "answer": "####"}, "line 2: key 'answer' has no gold"),
        (
            Source.gsm8k,
            {"question": "\ud800", "answer": "#### 1"},
            "line 2: a text holds half of a",
        ),
        (
            Source.gsm8k,
            '{"question": ' + "9" * 5000 + "}",
            "line 2: the row is no JSON that can be read: Exceeds",
        ),
        (Source.gsm8k, "[" * 100_000, "line 2: the row is no JSON that can be read: maximum"),
        (Source.deepmath, {"prompt": "q"}, "line 2: the row has no gold answer: give it"),
        (Source.deepmath, {"ground_truth": "1"}, "line 2: the row has no question: give it"),
        (Source.deepmath, {"messages": [{}], "ground_truth": "1"}, "line 2: key 'messages'"),
        (Source.deepmath, {"messages": 3, "ground_truth": "1"}, "line 2: key 'messages'"),
    ],
)
def test_a_bad_row_is_named(tmp_path: Path, source: Source, row: object, message: str) -> None:
    good = GSM8K if source is Source.gsm8k else DEEPMATH
    with pytest.raises(DataError, match=rf"rows\.jsonl, {message}"):
        RowFile(_file(tmp_path, [good, row, good], source))


@pytest.mark.parametrize(
    ("source", "change", "message"),
    [
        (Source.code, {"content": ""}, "the row has no question: give it one of the keys"),
        (Source.code, {"test_list": []}, "the row has no tests: give it one of the keys tests,"),
        (Source.code, {"test_list": "assert"}, "key 'test_list' must be a list"),
        (Source.code, {"test_list": None, "test": "assert f("}, "key 'test': test 1 is no Python"),
        (Source.code, {"test_list": None, "test": "x = 1"}, "key 'test': the tests hold no assert"),
        (Source.code, {"test_list": None, "test": [{"input": 3}]}, "key 'test' must list"),
        (Source.code, {"language": "cobol"}, "key 'test_list': unknown language 'cobol'"),
        (Source.instructions, {"instruction_id_list": []}, "key 'instruction_id_list': instr"),
        (Source.instructions, {"instruction_id_list": ["count:num"]}, "key .*unknown instruction"),
        (Source.instructions, {"kwargs": {"N": 3}}, "key .*kwargs must be a list of 1"),
        (Source.tasks, {"kind": "maths"}, "key 'kind' must be one of math, code"),
        (Source.tasks, {"messages": None}, "key 'messages'"),
        (Source.tasks, {"token_budget": 0}, "key 'token_budget'"),
        (Source.tasks, {"tags": "sums"}, "key 'tags'"),
        (Source.tasks, {"kind": "code"}, "key 'reference': the reference of a code task"),
        (Source.tasks, {"reference": None}, "key 'reference' is null, expected"),
    ],
)
def test_a_bad_row_of_every_shape_is_named(
    tmp_path: Path, source: Source, change: dict[str, object], message: str
) -> None:
    good = {Source.code: MBPP, Source.instructions: IFBENCH, Source.tasks: TASK}[source]
    with pytest.raises(DataError, match=rf"rows\.jsonl, line 2: {message}"):
        RowFile(_file(tmp_path, [good, {**good, **change}], source))


def test_an_open_task_needs_no_reference(tmp_path: Path) -> None:
    row = {"kind": "open", "messages": TASK["messages"], "reference": ""}
    config = TasksConfig(families=[_file(tmp_path, [row], Source.tasks)], held_out_percent=0)
    task = TaskStream(config, Split.train).at(0)
    assert (task.kind, task.reference, task.token_budget) == (TaskKind.open, "", 4096)


def test_open_rows_bring_their_own_rubrics(tmp_path: Path) -> None:
    own = {"name": "rhymes", "text": "It rhymes.", "weight": 2, "mandatory": True}
    rows = [{"prompt": "Write a verse.", "rubrics": [own]}, {"prompt": "Write prose."}]
    source = RowFile(_file(tmp_path, [*rows], Source.open))
    first, second = source.problem(0), source.problem(1)
    assert (first.kind, first.question, first.reference) == (TaskKind.open, "Write a verse.", "")
    assert first.rubrics == (Rubric(name="rhymes", text="It rhymes.", weight=2.0, mandatory=True),)
    assert second.rubrics == ()


def test_rubrics_survive_a_task_file(tmp_path: Path) -> None:
    own = Rubric(name="praise", text="None.", mandatory=True, rule=Rule.opening_praise)
    task = Task(
        id="t/0",
        kind=TaskKind.open,
        messages=(Message(role="user", content="Write."),),
        reference="",
        token_budget=9,
        rubrics=(own,),
    )
    source = RowFile(_file(tmp_path, [asdict(task)], Source.tasks))
    assert source.problem(0).rubrics == (own,)


@pytest.mark.parametrize(
    ("rubrics", "said"),
    [
        ("short", "must be a list"),
        ([{"name": "a"}], "rubric 1 (a): the key text is missing"),
        ([{"name": "a", "txt": "b"}], "unknown key 'txt'; did you mean 'text'?"),
        ([{"name": "a", "text": "b"}, {"name": "a", "text": "c"}], "is given twice"),
    ],
)
def test_bad_rubrics_of_a_row_are_named(tmp_path: Path, rubrics: object, said: str) -> None:
    with pytest.raises(DataError, match=re.escape(said)) as raised:
        RowFile(_file(tmp_path, [{"prompt": "Write.", "rubrics": rubrics}], Source.open))
    assert "line 1: key 'rubrics'" in str(raised.value)


def test_rows_with_unreadable_golds_are_left_out_and_counted(tmp_path: Path) -> None:
    golds = ["1/2", r"(\ker g)^*", "Yes", r"\frac{\pi}{4}", r"I \otimes I"]
    rows: list[object] = [{"prompt": f"q{n}", "ground_truth": g} for n, g in enumerate(golds)]
    family = _file(tmp_path, rows, Source.deepmath)
    source = RowFile(family)
    assert source.size == 3
    assert [source.problem(n).question for n in range(3)] == ["q0", "q2", "q3"]
    stream = TaskStream(TasksConfig(families=[family], held_out_percent=0), Split.train)
    assert stream.notes == [
        "families[words]: 2 of 5 rows are left out, as their gold answers cannot be read: "
        f"{tmp_path}/rows.jsonl, lines 2, 5"
    ]
    with pytest.raises(DataError, match=r"holds no rows: .* \(families\[words\]: 1 of 1 rows"):
        RowFile(_file(tmp_path, rows[1:2], Source.deepmath))


def test_bad_rows_are_left_out_where_that_is_asked_for(tmp_path: Path) -> None:
    rows: list[object] = [GSM8K, "{", {"question": "q"}, {**GSM8K, "question": "2+2?"}]
    family = replace(_file(tmp_path, rows), skip_bad_rows=True)
    source = RowFile(family)
    assert [source.problem(n).question for n in range(2)] == [GSM8K["question"], "2+2?"]
    assert source.size == 2
    assert source.note.startswith(
        f"families[words]: 2 of 4 rows are left out, such as {tmp_path}/rows.jsonl, line 2: the row"
    )
    with pytest.raises(DataError, match=r"holds no rows: .* 1 of 1 rows are left out, such as"):
        RowFile(replace(_file(tmp_path, ["{"]), skip_bad_rows=True))
    assert not first_faults(TasksConfig(families=[family]))
    (fault,) = first_faults(TasksConfig(families=[replace(_file(tmp_path, rows))] * 2))
    assert "line 2: the row is not valid JSON" in fault


def test_an_unset_data_folder_is_told_of(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    family = FamilyConfig(source=Source.gsm8k, name="words", path="$TEMPER_DATA/no.jsonl")
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("TEMPER_DATA", raising=False)
    with pytest.raises(DataError, match=r"TEMPER_DATA is not set and stands for \.\./shared/data"):
        RowFile(family)
    monkeypatch.setenv("TEMPER_DATA", str(tmp_path))
    with pytest.raises(DataError, match=r"no\.jsonl") as raised:
        RowFile(family)
    assert "not set" not in str(raised.value)


def test_generators_are_checked_without_their_files() -> None:
    file = FamilyConfig(source=Source.gsm8k, name="words", path="no.jsonl")
    check_generators(TasksConfig(families=[file, FamilyConfig(name="gcd")]))
    with pytest.raises(DataError, match="'chain_sum'"):
        check_generators(
            TasksConfig(families=[file], test_families=[FamilyConfig(name="chainsum")])
        )


def test_rows_in_parquet_are_those_in_json(tmp_path: Path) -> None:
    verl = {
        "data_source": "sums",
        "prompt": [{"role": "user", "content": "1+1?"}],
        "reward_model": {"style": "rule", "ground_truth": "2"},
        "answer": math.nan,  # as a table has it where other rows have a number
    }
    plain = {"prompt": [{"role": "user", "content": "2+1?"}], "answer": 3.0}
    path = tmp_path / "rows.parquet"
    parquet.write_table(pyarrow.Table.from_pylist([verl, plain]), path)
    family = FamilyConfig(source=Source.deepmath, name="sums", path=str(path), instruction="Box.")
    source = RowFile(family)
    first, second = source.problem(0), source.problem(1)
    assert (first.messages[0].content, first.reference) == ("1+1?\nBox.", "2")
    assert (second.question, second.reference) == ("2+1?", "3.0")


def test_rows_of_parquet_may_lack_what_others_have(tmp_path: Path) -> None:
    path = tmp_path / "rows.parquet"
    parquet.write_table(pyarrow.Table.from_pylist([IFBENCH]), path)
    family = FamilyConfig(source=Source.instructions, name="rules", path=str(path))
    assert json.loads(RowFile(family).problem(0).reference)["kwargs"] == [{"N": 3}]
    parquet.write_table(pyarrow.table({"prompt": [b"raw"], "ground_truth": ["2"]}), path)
    with pytest.raises(DataError, match=r"rows\.parquet, line 1: key 'prompt' is bytes"):
        RowFile(replace(family, source=Source.deepmath))


def test_a_relative_path_is_told_of_with_its_folder(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.chdir(tmp_path)
    family = FamilyConfig(source=Source.gsm8k, name="words", path="data/no.jsonl")
    with pytest.raises(DataError) as raised:
        RowFile(family)
    assert str(raised.value) == (
        f"families[words].path=data/no.jsonl: cannot read {tmp_path}/data/no.jsonl: No such file "
        "or directory; give JSON lines in UTF-8, plain or .gz, or Parquet"
    )


def test_a_bad_file_is_named(tmp_path: Path) -> None:
    family = FamilyConfig(source=Source.gsm8k, name="words", path=str(tmp_path / "no.jsonl"))
    with pytest.raises(DataError, match=r"families\[words\]\.path=\S+: cannot read .*no\.jsonl"):
        RowFile(family)
    with pytest.raises(DataError, match="holds no rows"):
        RowFile(_file(tmp_path, []))


@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        ("chain_sums", {}, "no generator 'chain_sums'.*did you mean 'chain_sum'"),
        ("sudoku", {}, "no generator 'sudoku'.*known: chain_sum"),
        ("gcd", {"max_valu": 3}, r"options has no 'max_valu' \(did you mean 'max_value'\?\)"),
        ("gcd", {"seed": 3}, "options has no 'seed'"),
        ("gcd", {"min_value": 0}, "min_value must be positive"),
        ("gcd", {"min_value": "1"}, r"families\[gcd\]\.options"),
    ],
)
def test_a_bad_generator_is_named(name: str, options: dict[str, object], message: str) -> None:
    with pytest.raises(DataError, match=message):
        open_source(FamilyConfig(name=name, options=options), seed=0)


def test_an_epoch_visits_every_training_row_once(tmp_path: Path) -> None:
    rows: list[object] = [{"question": f"q{i}", "answer": "#### 1"} for i in range(50)]
    config = TasksConfig(families=[_file(tmp_path, rows)], held_out_percent=30)
    train, held_out = TaskStream(config, Split.train), TaskStream(config, Split.held_out)
    tested = []
    with pytest.raises(DataError, match="no more distinct held-out"):
        for position in range(50):
            tested.append(held_out.at(position).messages[0].content)
    size = 50 - len(tested)
    epochs = [
        [train.at(size * epoch + i).messages[0].content for i in range(size)] for epoch in range(2)
    ]
    assert sorted(epochs[0] + tested) == sorted(f"q{i}" for i in range(50))
    assert sorted(epochs[0]) == sorted(epochs[1]) and epochs[0] != epochs[1]
