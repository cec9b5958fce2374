"""One row of a file to one problem, by source. `DataError` names the key and the fix.

The shapes of all sources, with examples: docs/data.md.
"""

import json
import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from rewards import instructions
from rewards.mathematics.text import boxes
from rewards.programs import reference as code_reference
from rewards.rubric import Rubric
from rewards.rubric_files import parse_rubrics
from rewards.task import Message, TaskKind
from rollout.config import Source
from rollout.problem import DataError, Problem, user_turn
from rollout.worked import boxed

Row = Mapping[str, Any]

# Of several keys the first one that holds something counts.
QUESTIONS = ("messages", "conversations", "prompt", "problem", "question", "input", "content")
GOLDS = ("ground_truth", "reward_model.ground_truth", "answer", "label", "reference", "solution")
SOLUTIONS = ("canonical_solution", "solution")
TESTS = ("tests", "test_list", "test", "cases", "calls")


def gsm8k_problem(row: Row, instruction: str) -> Problem:
    """Row `{"question", "answer"}`; its rationale, without calculator marks, is the solution."""
    question, answer = _text(row, "question"), _text(row, "answer")
    rationale, mark, gold = answer.rpartition("####")
    gold = gold.strip().replace(",", "")
    if not mark or not gold:
        raise DataError(
            "key 'answer' has no gold: end it with '#### ' and the final answer, or choose source "
            "deepmath, where the key holds nothing else"
        )
    rationale = re.sub(r"<<[^<>]*>>", "", rationale).strip()
    return Problem(
        kind=TaskKind.math,
        messages=user_turn(question, instruction),
        question=question,
        reference=gold,
        worked=f"{rationale}\n{boxed(gold)}".strip(),
    )


def deepmath_problem(row: Row, instruction: str) -> Problem:
    """Row with a question (`QUESTIONS`) and its final answer (`GOLDS`).

    What is imitated is the last turn of an assistant, else a `solution` that has a box.
    """
    messages, question, answered = _asked(row, instruction)
    gold, solution = _gold(row)
    return Problem(
        kind=TaskKind.math,
        messages=messages,
        question=question,
        reference=gold,
        worked=answered or solution,
        tags=(f"difficulty={row['difficulty']}",) if row.get("difficulty") else (),
    )


def code_problem(row: Row, instruction: str) -> Problem:
    """Row with a question (`QUESTIONS`), tests and perhaps a solution.

    The solution is the last turn of an assistant, else `canonical_solution` or `solution`. The
    tests are one of: `tests` or `test_list` (assert statements), `test` (a script that asserts, or
    code_contests' `[{"input": {"stdin"}, "output": {"stdout"}}]`, perhaps as JSON text), `cases`
    (`[{"stdin", "stdout"}]`), `calls` (`[{"function", "args", "expected"}]`). `setup` (or
    `labels.test_setup_code`) runs before them; `language` is python unless named.
    """
    messages, question, answered = _asked(row, instruction)
    key = _first(row, TESTS, "tests")
    reference = _tests(key, row[key])
    labels = _maybe_json(row.get("labels"))
    labelled = labels.get("test_setup_code") if isinstance(labels, dict) else None
    setup, language = row.get("setup") or labelled, row.get("language")
    reference |= {"setup": setup} if setup else {}
    reference |= {"language": language} if language else {}
    solution = next((row[key] for key in SOLUTIONS if isinstance(row.get(key), str)), None)
    return Problem(
        kind=TaskKind.code,
        messages=messages,
        question=question,
        reference=_checked(TaskKind.code, json.dumps(reference), key),
        worked=answered or (_fenced(solution, language or "python") if solution else None),
    )


def instructions_problem(row: Row, instruction: str) -> Problem:
    """Row with a question (`QUESTIONS`), `instruction_id_list` and `kwargs`, less its nulls."""
    messages, question, answered = _asked(row, instruction)
    arguments = row.get("kwargs")
    if isinstance(arguments, list):
        arguments = [_without_nulls(each) for each in arguments]
    reference = {"instruction_id_list": row.get("instruction_id_list"), "kwargs": arguments}
    return Problem(
        kind=TaskKind.instructions,
        messages=messages,
        question=question,
        reference=_checked(TaskKind.instructions, json.dumps(reference), "instruction_id_list"),
        worked=answered,
    )


def open_problem(row: Row, instruction: str) -> Problem:
    """Row with a question (`QUESTIONS`), perhaps with `rubrics` of its own: `[{"name", "text"}]`.

    A rubric has the keys of a rubric file (rewards.rubric_files).
    """
    messages, question, answered = _asked(row, instruction)
    return Problem(
        kind=TaskKind.open,
        messages=messages,
        question=question,
        reference="",
        worked=answered,
        rubrics=_rubrics(row),
    )


def task_problem(row: Row, instruction: str) -> Problem:
    """A whole task: `kind`, `messages`, `reference`, perhaps `solution`, `token_budget`, `tags`.

    `question` keeps a task in the split that it came from; it is the last turn if there is none.
    """
    try:
        kind = TaskKind(_text(row, "kind"))
    except ValueError as error:
        raise DataError(f"key 'kind' must be one of {', '.join(TaskKind)}") from error
    messages, answered = _turns(row, "messages")
    verifiable = kind not in (TaskKind.open, TaskKind.agent)
    reference = _text(row, "reference") if verifiable else str(row.get("reference") or "")
    budget, tags, solution = row.get("token_budget"), row.get("tags") or [], row.get("solution")
    if budget is not None and (type(budget) is not int or budget < 1):
        raise DataError("key 'token_budget' must be a positive whole number")
    if not isinstance(tags, list) or not isinstance(solution, str | None):
        raise DataError("key 'tags' must be a list, and 'solution' a text")
    question = str(row.get("question") or messages[-1].content)  # the same for any instruction
    return Problem(
        kind=kind,
        messages=_instructed(messages, instruction),
        question=question,
        reference=_checked(kind, reference, "reference"),
        worked=answered or solution,
        token_budget=budget,
        tags=tuple(map(str, tags)),
        rubrics=_rubrics(row),
    )


READERS: dict[Source, Callable[[Row, str], Problem]] = {
    Source.gsm8k: gsm8k_problem,
    Source.deepmath: deepmath_problem,
    Source.code: code_problem,
    Source.instructions: instructions_problem,
    Source.open: open_problem,
    Source.tasks: task_problem,
}


_CONVERSATIONS = ("messages", "conversations")  # never plain text
_SHAREGPT = {"human": "user", "gpt": "assistant"}
_KINDS = {
    type(None): "null",
    bool: "true or false",
    int: "a number",
    float: "a number",
    str: "a text",
    list: "a list",
    dict: "an object",
}
_PARSERS: dict[TaskKind, Callable[[str], object]] = {
    TaskKind.code: code_reference.parse_reference,
    TaskKind.instructions: instructions.parse_reference,
}


def _rubrics(row: Row) -> tuple[Rubric, ...]:
    """The row's own rubrics."""
    if not row.get("rubrics"):
        return ()
    try:
        return parse_rubrics("key 'rubrics'", row["rubrics"])
    except ValueError as error:
        raise DataError(str(error)) from error


def _asked(row: Row, instruction: str) -> tuple[tuple[Message, ...], str, str | None]:
    """The prompt with the family's instruction, the question, and the answer that follows, if any.

    The question decides what is held out: the text under `prompt`, else the last turn of the user.
    """
    key = _first(row, QUESTIONS, "question")
    if key in _CONVERSATIONS or isinstance(row[key], list):
        messages, answered = _turns(row, key)
    else:
        text = _text(row, key, "a text or a list of {'role', 'content'}")
        messages, answered = user_turn(text, ""), None
    prompt = row.get("prompt")
    question = prompt.strip() if isinstance(prompt, str) else ""
    question = question or messages[-1].content.strip()
    return _instructed(messages, instruction), question, answered


def _instructed(messages: tuple[Message, ...], instruction: str) -> tuple[Message, ...]:
    *earlier, last = messages
    return (*earlier, *user_turn(last.content, instruction))


def _turns(row: Row, key: str) -> tuple[tuple[Message, ...], str | None]:
    """The conversation under `key`, a list or its JSON text, up to the last turn of the user.

    Then the turn of the assistant that it ends with, if it does.
    """
    turns, wanted = _maybe_json(row.get(key)), "a list of {'role', 'content'}"
    if not isinstance(turns, list):
        raise _wrong(row, key, wanted)
    messages = []
    for number, turn in enumerate(turns, start=1):
        turn = turn if isinstance(turn, dict) else {}
        role, content = turn.get("role"), turn.get("content")
        if "from" in turn:  # ShareGPT's
            role, content = _SHAREGPT.get(turn["from"], turn["from"]), turn.get("value")
        if not isinstance(role, str) or not isinstance(content, str):
            raise DataError(f"key {key!r}, turn {number}: write {{'role', 'content'}}, both texts")
        messages.append(Message(role=role, content=content))
    answered = messages.pop().content if messages and messages[-1].role == "assistant" else None
    if not messages or messages[-1].role != "user" or not messages[-1].content.strip():
        last = f"{messages[-1].role!r}" if messages else "nothing"
        raise DataError(
            f"key {key!r} must end with a turn of the 'user' that is not empty, and perhaps one "
            f"of the 'assistant' that answers it: found {last} in its place"
        )
    return tuple(messages), answered if answered and answered.strip() else None


def _gold(row: Row) -> tuple[str, str | None]:
    """The final answer, and the `solution` if that has more than a box with the final answer."""
    verl = _maybe_json(row.get("reward_model"))
    if isinstance(verl, dict) and "ground_truth" in verl:
        row = {**row, "reward_model.ground_truth": verl["ground_truth"]}
    solution = row.get("solution")
    found = boxes(solution) if isinstance(solution, str) else []
    key = _first(row, GOLDS, "gold answer")
    gold = _text(row, key)
    if key == "solution" and found:
        gold = found[-1]
    long = key == "solution" and not found and "\n" in gold
    if long or not gold or "####" in gold:
        raise DataError(
            f"key {key!r} is more than a final answer: write that alone under 'ground_truth', or "
            "in the last \\boxed{} of 'solution'; rows that end with '#### ' are for source gsm8k"
        )
    worked = str(solution).strip() if found else None
    return gold, worked if worked != boxed(gold) else None


def _first(row: Row, keys: Sequence[str], what: str) -> str:
    """The first of the keys that holds something: not null, and no blank text or empty list."""
    for key in keys:
        value = row.get(key)
        blank = isinstance(value, str) and not value.strip()
        if not blank and value not in (None, [], {}) and value == value:  # no NaN of a table's
            return key
    raise DataError(f"the row has no {what}: give it one of the keys {', '.join(keys)}{_has(row)}")


def _text(row: Row, key: str, wanted: str = "a text") -> str:
    value = row.get(key)
    if isinstance(value, int | float) and not isinstance(value, bool):
        value = str(value)
    if not isinstance(value, str) or not value.strip():
        raise _wrong(row, key, wanted)
    return value.strip()


def _wrong(row: Row, key: str, wanted: str) -> DataError:
    """What is wrong with the value under `key`."""
    value = row.get(key)
    blank = isinstance(value, str) and not value.strip()
    kind = _KINDS.get(type(value), type(value).__name__)  # Parquet has more than JSON
    wrong = "empty" if blank else kind if key in row else "missing"
    return DataError(f"key {key!r} is {wrong}, expected {wanted}{_has(row)}")


def _has(row: Row, most: int = 12) -> str:
    """The keys of the row, for a person."""
    keys = ", ".join(list(row)[:most]) + (", ..." if len(row) > most else "")
    return f" (it has the keys {keys})" if keys else " (it has no keys)"


def _maybe_json(value: object) -> object:
    """The object that a JSON text holds; anything else as it is."""
    if not isinstance(value, str):
        return value
    try:
        return json.loads(value)
    except json.JSONDecodeError:
        return value


def _without_nulls(value: object) -> object:
    return {k: v for k, v in value.items() if v is not None} if isinstance(value, dict) else value


def _checked(kind: TaskKind, reference: str, key: str) -> str:
    """The reference, if the verifier of `kind` can read it; `key` is where it comes from."""
    if parse := _PARSERS.get(kind):
        try:
            parse(reference)
        except ValueError as error:
            raise DataError(f"key {key!r}: {error}") from error
    return reference


def _tests(key: str, value: object) -> dict[str, Any]:
    """The tests in the one shape that the reference has for them."""
    value = _maybe_json(value)
    if key == "test" and isinstance(value, str):
        return {"tests": [value]}
    if not isinstance(value, list):
        raise DataError(f"key {key!r} must be a list")
    if key in ("cases", "calls"):
        return {key: value}
    if key == "test":
        try:
            cases = [{"stdin": c["input"]["stdin"], "stdout": c["output"]["stdout"]} for c in value]
        except (KeyError, TypeError) as error:
            raise DataError("key 'test' must list {'input': {'stdin'}, 'output': ...}") from error
        return {"cases": cases}
    return {"tests": value}


def _fenced(program: str, language: str) -> str:
    lines = "\n".join(program.strip().splitlines())
    return f"```{language}\n{lines}\n```"
