import json
import re
from collections.abc import Callable
from pathlib import Path

import pytest

from rollout.config import FamilyConfig, Source
from rollout.problem import DataError, Problem
from rollout.rows import READERS, Row, deepmath_problem, gsm8k_problem, open_problem
from rollout.sources import RowFile

SYSTEM = {"role": "system", "content": "Be brief."}
ASKED = {"role": "user", "content": "1+1?"}
ANSWERED = {"role": "assistant", "content": "It is \\boxed{2}."}
TESTS: dict[str, object] = {"tests": ["assert f() == 1"]}
RULES: dict[str, object] = {"instruction_id_list": ["count:numbers"], "kwargs": [{"N": 3}]}

CHATS: list[tuple[Source, dict[str, object]]] = [
    (Source.deepmath, {"ground_truth": "2"}),
    (Source.code, TESTS),
    (Source.instructions, RULES),
    (Source.open, {}),
    (Source.tasks, {"kind": "math", "reference": "2"}),
]


def _said(problem: Problem) -> list[tuple[str, str]]:
    return [(message.role, message.content) for message in problem.messages]


@pytest.mark.parametrize(("source", "rest"), CHATS)
@pytest.mark.parametrize("pack", [list, json.dumps], ids=["list", "json"])
def test_a_conversation_is_the_prompt_and_perhaps_its_answer(
    source: Source, rest: dict[str, object], pack: Callable[[object], object]
) -> None:
    row = {"messages": pack([SYSTEM, ASKED, ANSWERED]), **rest}
    problem = READERS[source](row, "Box it.")
    assert _said(problem) == [("system", "Be brief."), ("user", "1+1?\nBox it.")]
    assert (problem.question, problem.worked) == ("1+1?", ANSWERED["content"])
    unanswered = READERS[source]({"messages": pack([ASKED]), **rest}, "")
    assert (_said(unanswered), unanswered.worked) == ([("user", "1+1?")], None)


@pytest.mark.parametrize(("source", "rest"), CHATS[:-1])
@pytest.mark.parametrize("key", ["prompt", "messages", "problem", "question", "input"])
def test_the_question_has_many_names(source: Source, rest: dict[str, object], key: str) -> None:
    problem = READERS[source]({key: [ASKED], **rest}, "Box it.")
    assert _said(problem) == [("user", "1+1?\nBox it.")]
    if key != "messages":
        problem = READERS[source]({"messages": None, key: " 1+1?", **rest}, "Box it.")
        assert (_said(problem), problem.question) == ([("user", "1+1?\nBox it.")], "1+1?")


@pytest.mark.parametrize(
    ("row", "gold", "worked"),
    [
        ({"ground_truth": 0}, "0", None),
        ({"reward_model": {"style": "rule", "ground_truth": "2"}}, "2", None),
        ({"reward_model": '{"ground_truth": 2}'}, "2", None),
        ({"answer": "2"}, "2", None),
        ({"label": 2}, "2", None),
        ({"reference": "2"}, "2", None),
        ({"solution": "$2$"}, "$2$", None),
        ({"solution": r"\boxed{2}"}, "2", None),
        ({"solution": "Add.\n" r"\boxed{1}+1=\boxed{2}"}, "2", "Add.\n" r"\boxed{1}+1=\boxed{2}"),
        ({"answer": "3", "solution": r"It is \boxed{2}"}, "3", r"It is \boxed{2}"),
        ({"label": 4, "answer": "3", "reward_model": {"ground_truth": "2"}}, "2", None),
        ({"label": 4, "answer": "3", "ground_truth": ""}, "3", None),
    ],
)
def test_the_gold_has_many_names(row: Row, gold: str, worked: str | None) -> None:
    problem = deepmath_problem({"prompt": [ASKED], **row}, "")
    assert (problem.reference, problem.worked) == (gold, worked)


def test_of_several_questions_the_conversation_is_asked_and_the_prompt_decides_the_split() -> None:
    problem = open_problem({"input": "c", "prompt": " a ", "messages": [SYSTEM, ASKED]}, "")
    assert _said(problem) == [("system", "Be brief."), ("user", "1+1?")]
    assert problem.question == "a"


@pytest.mark.parametrize(
    ("row", "said"),
    [
        ({"prompt": {"a": 1}}, "key 'prompt' is an object, expected a text or a list of"),
        ({"prompt": True}, "key 'prompt' is true or false, expected a text or a list of"),
        ({"messages": "hello"}, "key 'messages' is a text, expected a list of"),
        ({"prompt": ["1+1?"]}, "key 'prompt', turn 1: write {'role', 'content'}, both texts"),
        ({"prompt": [ASKED, {"role": "user", "content": None}]}, "key 'prompt', turn 2: write"),
        ({"prompt": [SYSTEM]}, "key 'prompt' must end with a turn of the 'user'"),
        ({"prompt": [ANSWERED]}, "found nothing in its place"),
        ({"prompt": [ASKED, ANSWERED, ANSWERED]}, "found 'assistant' in its place"),
        ({"text": "1+1?", "id": 3}, "the row has no question: give it one of the keys messages, "),
        ({"text": "1+1?", "id": 3}, "(it has the keys ground_truth, text, id)"),
        ({"prompt": "q", "ground_truth": ["2"]}, "key 'ground_truth' is a list, expected a text"),
        ({"prompt": "q", "ground_truth": None}, "the row has no gold answer: give it one of the"),
        (
            {"prompt": "q", "ground_truth": None, "reward_model": {"ground_truth": [2]}},
            "key 'reward_model.ground_truth' is a list",
        ),
        (
            {"prompt": "q", "ground_truth": None, "solution": "Add.\nIt is 2."},
            "key 'solution' is more than a final answer: write that alone under 'ground_truth'",
        ),
        ({"prompt": "q", "ground_truth": "1+1\n#### 2"}, "are for source gsm8k"),
    ],
)
def test_a_row_that_cannot_be_read_says_what_is_wrong(row: Row, said: str) -> None:
    with pytest.raises(DataError, match=re.escape(said)):
        deepmath_problem({"ground_truth": "2", **row}, "")


def test_a_row_of_the_other_source_is_told_of_it() -> None:
    with pytest.raises(DataError, match=r"^key 'question' is missing, .*keys prompt, answer\)$"):
        gsm8k_problem({"prompt": "1+1?", "answer": "2"}, "")
    with pytest.raises(DataError, match="choose source deepmath"):
        gsm8k_problem({"question": "1+1?", "answer": "2"}, "")


def test_the_rows_of_the_document_are_read() -> None:
    text = (Path(__file__).parents[2] / "docs" / "data.md").read_text()
    blocks = re.findall(r"^`(\w+)`, [^\n]*:\n\n```json\n(.*?)```$", text, re.DOTALL | re.MULTILINE)
    assert {Source[name] for name, _ in blocks} == set(READERS)
    for name, block in blocks:
        problems = [READERS[Source[name]](json.loads(row), "") for row in block.splitlines()]
        if name == "deepmath":
            assert {(problem.question, problem.reference.strip("$")) for problem in problems} == {
                ("1+1?", "2")
            }


def test_blank_lines_are_no_rows_and_keep_their_numbers(tmp_path: Path) -> None:
    path = tmp_path / "rows.jsonl"
    row = json.dumps({"prompt": [ASKED], "label": "2"})
    path.write_text(f"\n{row}\n \t\r\n{row}\n\n")
    family = FamilyConfig(source=Source.deepmath, name="sums", path=str(path))
    assert RowFile(family).size == 2
    path.write_text(f"\n{row}\n\n{{'a': 1}}\n")
    with pytest.raises(DataError) as raised:
        RowFile(family)
    assert str(raised.value) == (
        f"{path}, line 4: the row is not valid JSON (Expecting property name enclosed in double "
        "quotes at column 2): write one object per line"
    )
    path.write_text("\n\n")
    with pytest.raises(DataError, match="holds no rows"):
        RowFile(family)
