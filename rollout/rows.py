"""One row of a JSONL file to one problem, by source. `DataError` names the key and the fix."""

import json
import re
from collections.abc import Callable, Mapping
from typing import Any

from rewards import instructions
from rewards.programs import reference as code_reference
from rewards.rubric import Rubric
from rewards.rubric_files import parse_rubrics
from rewards.task import Message, TaskKind
from rollout.config import Source
from rollout.problem import DataError, Problem, user_turn
from rollout.worked import boxed

Row = Mapping[str, Any]

QUESTIONS = ("prompt", "question", "content")
SOLUTIONS = ("canonical_solution", "solution")
TESTS = ("tests", "test_list", "test", "cases", "calls")


def gsm8k_problem(row: Row, instruction: str) -> Problem:
    """Row `{"question", "answer"}`; its rationale, without calculator marks, is the solution."""
    question, answer = _text(row, "question"), _text(row, "answer")
    rationale, mark, gold = answer.rpartition("####")
    gold = gold.strip().replace(",", "")
    if not mark or not gold:
        raise DataError("key 'answer' has no gold: end it with '#### ' and the final answer")
    rationale = re.sub(r"<<[^<>]*>>", "", rationale).strip()
    return Problem(
        kind=TaskKind.math,
        messages=user_turn(question, instruction),
        question=question,
        reference=gold,
        worked=f"{rationale}\n{boxed(gold)}".strip(),
    )


def deepmath_problem(row: Row, instruction: str) -> Problem:
    """Row `{"prompt" or "messages", "ground_truth"}`; `messages` may be a list or its JSON text."""
    if row.get("messages"):
        messages = _messages(row["messages"])
    else:
        messages = user_turn(_text(row, "prompt"), instruction)
    return Problem(
        kind=TaskKind.math,
        messages=messages,
        question=str(row.get("prompt") or messages[-1].content),
        reference=_text(row, "ground_truth"),
        tags=(f"difficulty={row['difficulty']}",) if row.get("difficulty") else (),
    )


def code_problem(row: Row, instruction: str) -> Problem:
    """Row with a question, tests and perhaps a solution.

    The question is `prompt`, `question` or `content`; the solution `canonical_solution` or
    `solution`. The tests are one of: `tests` or `test_list` (assert statements), `test` (a script
    that asserts, or code_contests' `[{"input": {"stdin"}, "output": {"stdout"}}]`, perhaps as JSON
    text), `cases` (`[{"stdin", "stdout"}]`), `calls` (`[{"function", "args", "expected"}]`).
    `setup` (or `labels.test_setup_code`) runs before them; `language` is python unless named.
    """
    question = _text(row, next((key for key in QUESTIONS if key in row), QUESTIONS[0]))
    key = next((key for key in TESTS if row.get(key)), None)
    if key is None:
        raise DataError(f"the row has no tests: give it one of the keys {', '.join(TESTS)}")
    reference = _tests(key, row[key])
    labels = _maybe_json(row.get("labels"))
    labelled = labels.get("test_setup_code") if isinstance(labels, dict) else None
    setup, language = row.get("setup") or labelled, row.get("language")
    reference |= {"setup": setup} if setup else {}
    reference |= {"language": language} if language else {}
    solution = next((row[key] for key in SOLUTIONS if isinstance(row.get(key), str)), None)
    return Problem(
        kind=TaskKind.code,
        messages=user_turn(question, instruction),
        question=question,
        reference=_checked(TaskKind.code, json.dumps(reference), key),
        worked=_fenced(solution, language or "python") if solution else None,
    )


def instructions_problem(row: Row, instruction: str) -> Problem:
    """Row `{"prompt", "instruction_id_list", "kwargs"}`; arguments that are null are left out."""
    question, arguments = _text(row, "prompt"), row.get("kwargs")
    if isinstance(arguments, list):
        arguments = [_without_nulls(each) for each in arguments]
    reference = {"instruction_id_list": row.get("instruction_id_list"), "kwargs": arguments}
    return Problem(
        kind=TaskKind.instructions,
        messages=user_turn(question, instruction),
        question=question,
        reference=_checked(TaskKind.instructions, json.dumps(reference), "instruction_id_list"),
    )


def open_problem(row: Row, instruction: str) -> Problem:
    """Row `{"prompt"}` or `{"messages"}`, perhaps with `rubrics` of its own: `[{"name", "text"}]`.

    A rubric has the keys of a rubric file (rewards.rubric_files).
    """
    if row.get("messages"):
        messages = _messages(row["messages"])
    else:
        messages = user_turn(_text(row, "prompt"), instruction)
    return Problem(
        kind=TaskKind.open,
        messages=messages,
        question=messages[-1].content,
        reference="",
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
    messages = _messages(row.get("messages"))
    verifiable = kind not in (TaskKind.open, TaskKind.agent)
    reference = _text(row, "reference") if verifiable else str(row.get("reference") or "")
    budget, tags, solution = row.get("token_budget"), row.get("tags") or [], row.get("solution")
    if budget is not None and (type(budget) is not int or budget < 1):
        raise DataError("key 'token_budget' must be a positive whole number")
    if not isinstance(tags, list) or not isinstance(solution, str | None):
        raise DataError("key 'tags' must be a list, and 'solution' a text")
    question = str(row.get("question") or messages[-1].content)  # the same for any instruction
    if instruction:
        *earlier, last = messages
        messages = (*earlier, *user_turn(last.content, instruction))
    return Problem(
        kind=kind,
        messages=messages,
        question=question,
        reference=_checked(kind, reference, "reference"),
        worked=solution,
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


def _text(row: Row, key: str) -> str:
    value = row.get(key)
    if isinstance(value, int | float) and not isinstance(value, bool):
        value = str(value)
    if not isinstance(value, str) or not value.strip():
        raise DataError(f"key {key!r} is missing or empty: give it a text, or delete the row")
    return value.strip()


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


def _messages(value: object) -> tuple[Message, ...]:
    turns: Any = json.loads(value) if isinstance(value, str) else value
    try:
        messages = tuple(Message(role=str(t["role"]), content=str(t["content"])) for t in turns)
    except (KeyError, TypeError) as error:
        raise DataError("key 'messages' must list objects with 'role' and 'content'") from error
    if not messages or messages[-1].role != "user":
        raise DataError("key 'messages' must end with a turn of the user")
    return messages


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
