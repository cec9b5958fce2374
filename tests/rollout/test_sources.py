import gzip
import json
from pathlib import Path

import pytest

from rollout.config import FamilyConfig, Source, TasksConfig
from rollout.sources import DataError, JsonLines, expand, open_source
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


def _file(folder: Path, rows: list[object], source: Source = Source.gsm8k) -> FamilyConfig:
    path = folder / "rows.jsonl"
    lines = [row if isinstance(row, str) else json.dumps(row) for row in rows]
    path.write_text("\n".join(lines))
    return FamilyConfig(source=source, name="words", path=str(path))


def test_gsm8k(tmp_path: Path) -> None:
    problem = JsonLines(_file(tmp_path, [GSM8K])).problem(0)
    assert problem.messages[0].content == "2 pens cost $3 each?"
    assert problem.reference == "1006"
    assert problem.worked == "2*3=$6.\nIn all.\n\\boxed{1006}"


def test_deepmath(tmp_path: Path) -> None:
    rows: list[object] = [DEEPMATH, {"prompt": "1+1?", "ground_truth": 2}]
    source = JsonLines(_file(tmp_path, rows, Source.deepmath))
    first, second = source.problem(0), source.problem(1)
    assert [message.role for message in first.messages] == ["system", "user"]
    assert (first.question, first.reference, first.worked) == ("Find x.", "1/2", None)
    assert first.tags == ("difficulty=4.5",)
    assert (second.messages[0].content, second.reference) == ("1+1?", "2")


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
    assert JsonLines(family).problem(0).messages[0].content == "2 pens cost $3 each?\nBox it."
    monkeypatch.delenv("TEMPER_DATA")
    assert expand("${TEMPER_DATA}/x") == Path("../shared/data/x")


@pytest.mark.parametrize(
    ("source", "row", "message"),
    [
        (Source.gsm8k, "{", "line 2: Expecting"),
        (Source.gsm8k, "[]", "line 2: the row is no JSON object"),
        (Source.gsm8k, "", "line 2: Expecting"),
        (Source.gsm8k, {"answer": "#### 1"}, "line 2: key 'question' is missing"),
        (Source.gsm8k, {"question": "q", "answer": "1"}, "line 2: key 'answer' has no gold"),
        (Source.gsm8k, {"question": "q", "answer": "####"}, "line 2: key 'answer' has no gold"),
        (Source.deepmath, {"prompt": "q"}, "line 2: key 'ground_truth' is missing"),
        (Source.deepmath, {"ground_truth": "1"}, "line 2: key 'prompt' is missing"),
        (Source.deepmath, {"messages": [{}], "ground_truth": "1"}, "line 2: key 'messages'"),
        (Source.deepmath, {"messages": 3, "ground_truth": "1"}, "line 2: key 'messages'"),
    ],
)
def test_a_bad_row_is_named(tmp_path: Path, source: Source, row: object, message: str) -> None:
    good = GSM8K if source is Source.gsm8k else DEEPMATH
    with pytest.raises(DataError, match=rf"rows\.jsonl, {message}"):
        JsonLines(_file(tmp_path, [good, row, good], source))


def test_a_bad_file_is_named(tmp_path: Path) -> None:
    family = FamilyConfig(source=Source.gsm8k, name="words", path=str(tmp_path / "no.jsonl"))
    with pytest.raises(DataError, match=r"cannot read .*no\.jsonl"):
        JsonLines(family)
    with pytest.raises(DataError, match="holds no rows"):
        JsonLines(_file(tmp_path, []))


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
