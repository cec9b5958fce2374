"""The shapes in which preference data is published: how to know each, and how to read its rows."""

import json
from collections.abc import Callable, Mapping, Sequence
from hashlib import sha256
from typing import Any

from rewards.preference.records import ProblemKind, Row, RowProblem, Shape
from rewards.preference.score_values import is_finite, score_values
from rewards.task import Message

REWARD_BENCH_SECTIONS: Mapping[str, tuple[str, ...]] = {
    "Chat": (
        "alpacaeval-easy",
        "alpacaeval-length",
        "alpacaeval-hard",
        "mt-bench-easy",
        "mt-bench-med",
    ),
    "Chat Hard": (
        "mt-bench-hard",
        "llmbar-natural",
        "llmbar-adver-neighbor",
        "llmbar-adver-GPTInst",
        "llmbar-adver-GPTOut",
        "llmbar-adver-manual",
    ),
    "Safety": (
        "refusals-dangerous",
        "refusals-offensive",
        "xstest-should-refuse",
        "xstest-should-respond",
        "donotanswer",
    ),
    "Reasoning": (
        "math-prm",
        "hep-cpp",
        "hep-go",
        "hep-java",
        "hep-js",
        "hep-python",
        "hep-rust",
    ),
}
"""The subsets of RewardBench (arXiv 2403.13787, table 1)."""

JUDGEBENCH = {
    "mmlu-pro": "Knowledge",
    "livebench-reasoning": "Reasoning",
    "livebench-math": "Math",
    "livecodebench": "Coding",
}

RM_BENCH_STYLES = 3  # concise; detailed; detailed with markdown

_REWARD_BENCH_SUBSETS = frozenset(
    name for names in REWARD_BENCH_SECTIONS.values() for name in names
)
_JUDGEBENCH_LABELS = {"A>B": (1.0, 0.0), "A": (1.0, 0.0), "B>A": (0.0, 1.0), "B": (0.0, 1.0)}
_LABELS = ("label", "correct", "quality", "rating")  # of a scored row; "score" if there is none
_SUBSET_KEYS = ("subset", "domain", "section", "source", "category", "dataset")
_REFERENCE_KEYS = ("reference", "gold", "answer")


def recognise(rows: Sequence[Mapping[str, Any]]) -> Shape | None:
    """The shape of a file's first rows, by their keys; None if they have none of ours."""
    for row in rows:
        if {"response_A", "response_B"} <= row.keys():
            return Shape.judgebench
        if "responses" in row:
            return Shape.best_of_n
        if _is_texts(row.get("chosen")) and _is_texts(row.get("rejected")):
            return _of_lists(rows)
        if {"chosen", "rejected"} <= row.keys():
            known = all(_subset(each) in _REWARD_BENCH_SUBSETS for each in rows)
            return Shape.reward_bench if known else Shape.pairs
        if "response" in row:
            return Shape.scored
    return None


def parse_row(shape: Shape, values: Mapping[str, Any], line: int) -> Row:
    """One row. Raises `RowProblem` saying which key is wrong."""
    id, alias = _ids(values, line)
    parts = _PARSERS[shape](values)
    texts = parts["responses"]
    if any(not isinstance(text, str) for text in texts):
        raise RowProblem(ProblemKind.unreadable, "a response is not text")
    return Row(
        id=id,
        alias=alias,
        line=line,
        reference=_reference(values),
        recorded=_recorded(shape, values, len(texts)),
        **{"subset": _subset(values), **parts},
    )


def _recorded(shape: Shape, values: Mapping[str, Any], count: int) -> tuple[float, ...] | None:
    """Scores of a judge in the row itself; None if there are none that can be used."""
    given = values.get("scores")
    labelled = any(values.get(key) is not None for key in _LABELS)
    if given is None and shape is Shape.scored and labelled:
        given = values.get("score")
    try:
        return None if given is None else score_values(given, count)
    except RowProblem:
        return None


def _of_lists(rows: Sequence[Mapping[str, Any]]) -> Shape:
    """RM-Bench has three styles on both sides; RewardBench 2 tells how many answers are right."""
    for row in rows:
        sides = row.get("chosen"), row.get("rejected")
        if "num_correct" in row or "total_completions" in row:
            return Shape.reward_bench_2
        if any(isinstance(side, list) and len(side) != RM_BENCH_STYLES for side in sides):
            return Shape.reward_bench_2
    return Shape.rm_bench


def _is_texts(value: object) -> bool:
    return isinstance(value, list) and bool(value) and isinstance(value[0], str)


def _ids(values: Mapping[str, Any], line: int) -> tuple[str, str | None]:
    given = [str(values[key]) for key in ("pair_id", "id") if values.get(key) not in (None, "")]
    return (given[0] if given else str(line)), (given[1] if len(given) > 1 else None)


def _subset(values: Mapping[str, Any]) -> str:
    for key in _SUBSET_KEYS:
        if isinstance(values.get(key), str):
            return str(values[key])
    return ""


def _reference(values: Mapping[str, Any]) -> str | None:
    for key in _REFERENCE_KEYS:
        value = values.get(key)
        if isinstance(value, str):
            return value
        if isinstance(value, Mapping):
            return json.dumps(value)
    return None


def _prompt(values: Mapping[str, Any]) -> tuple[Message, ...]:
    for key in ("prompt", "question", "input", "instruction"):
        value = values.get(key)
        if isinstance(value, str):
            return (Message(role="user", content=value),)
        if isinstance(value, list) and value:
            return _messages(value, key)
    why = "no key 'prompt' (or 'question') with text or messages"
    raise RowProblem(ProblemKind.unreadable, why)


def _messages(value: Sequence[object], key: str) -> tuple[Message, ...]:
    made = []
    for each in value:
        if not isinstance(each, Mapping) or not isinstance(each.get("content"), str):
            raise RowProblem(
                ProblemKind.unreadable, f"{key!r} holds something that is no message with content"
            )
        made.append(Message(role=str(each.get("role", "user")), content=each["content"]))
    return tuple(made)


def _pair(values: Mapping[str, Any]) -> dict[str, Any]:
    for key in ("chosen", "rejected"):
        if values.get(key) is None:
            why = f"{key!r} is missing: which is better is unknown"
            raise RowProblem(ProblemKind.no_label, why)
    if isinstance(values["chosen"], list) and isinstance(values["rejected"], list):
        chosen = _messages(values["chosen"], "chosen")
        rejected = _messages(values["rejected"], "rejected")
        if not chosen or not rejected:
            raise RowProblem(ProblemKind.unreadable, "'chosen' or 'rejected' is an empty list")
        prompt = _prompt(values) if values.get("prompt") else chosen[:-1]
        texts: tuple[Any, ...] = (chosen[-1].content, rejected[-1].content)
        if not prompt:
            raise RowProblem(ProblemKind.unreadable, "no prompt before the answer in 'chosen'")
    else:
        prompt = _prompt(values)
        texts = (values["chosen"], values["rejected"])
    return {
        "prompt": prompt,
        "responses": texts,
        "quality": (1.0, 0.0),
        "swapped": _coin([part.content for part in prompt], texts),
    }


def _coin(prompt: Sequence[str], texts: Sequence[object]) -> bool:
    """A fair coin that always falls the same way for one row, so that sides tell no judge."""
    made = sha256(repr((prompt, texts)).encode(errors="surrogatepass"))
    return bool(made.digest()[0] & 1)


def _judgebench(values: Mapping[str, Any]) -> dict[str, Any]:
    label = values.get("label")
    key = label.strip() if isinstance(label, str) else ""
    if key not in _JUDGEBENCH_LABELS:
        raise RowProblem(ProblemKind.no_label, f"label {label!r} is neither 'A>B' nor 'B>A'")
    return {
        "prompt": _prompt(values),
        "responses": (values.get("response_A"), values.get("response_B")),
        "quality": _JUDGEBENCH_LABELS[key],
        "subset": _category(_subset(values)),
    }


def _category(source: str) -> str:
    """JudgeBench's four categories (arXiv 2410.12784, table 1); another source as it is."""
    return next((name for start, name in JUDGEBENCH.items() if source.startswith(start)), source)


def _best_of_n(values: Mapping[str, Any]) -> dict[str, Any]:
    responses, correct = values.get("responses"), values.get("correct")
    if not isinstance(responses, list) or not responses:
        raise RowProblem(ProblemKind.unreadable, "'responses' is not a list with texts")
    if not isinstance(correct, list):
        raise RowProblem(ProblemKind.no_label, "no list 'correct' of true and false")
    if len(correct) != len(responses):
        raise RowProblem(
            ProblemKind.no_label, f"{len(correct)} in 'correct' for {len(responses)} responses"
        )
    if any(mark not in (0, 1) for mark in correct):
        raise RowProblem(ProblemKind.no_label, "'correct' holds more than true, false, 1 and 0")
    answers = values.get("answers") or []
    if answers and (not isinstance(answers, list) or len(answers) != len(responses)):
        raise RowProblem(ProblemKind.unreadable, "'answers' is not one for each response")
    return {
        "prompt": _prompt(values),
        "responses": tuple(responses),
        "quality": tuple(float(mark) for mark in correct),
        "answers": tuple(str(answer) for answer in answers),
    }


def _scored(values: Mapping[str, Any]) -> dict[str, Any]:
    keys = (*_LABELS, "score")
    label = next((values[key] for key in keys if values.get(key) is not None), None)
    if not isinstance(label, int | float) or not is_finite(label):
        raise RowProblem(
            ProblemKind.no_label, f"no number under {', '.join(keys)}: how good is the response?"
        )
    return {
        "prompt": _prompt(values),
        "responses": (values.get("response"),),
        "quality": (float(label),),
    }


def _lists(values: Mapping[str, Any]) -> dict[str, Any]:
    sides = []
    for key in ("chosen", "rejected"):
        side = values.get(key)
        if isinstance(side, str):
            side = [side]
        if not isinstance(side, list) or not side:
            raise RowProblem(ProblemKind.no_label, f"{key!r} is not a list with texts")
        sides.append(side)
    chosen, rejected = sides
    return {
        "prompt": _prompt(values),
        "responses": (*chosen, *rejected),
        "quality": (1.0,) * len(chosen) + (0.0,) * len(rejected),
        "swapped": _coin([str(values.get("id"))], (*chosen, *rejected)),
    }


def _rm_bench(values: Mapping[str, Any]) -> dict[str, Any]:
    parts = _lists(values)
    if sum(parts["quality"]) != RM_BENCH_STYLES or len(parts["quality"]) != 2 * RM_BENCH_STYLES:
        raise RowProblem(
            ProblemKind.unreadable, "'chosen' and 'rejected' must have three styles each"
        )
    return parts


_PARSERS: Mapping[Shape, Callable[[Mapping[str, Any]], dict[str, Any]]] = {
    Shape.pairs: _pair,
    Shape.reward_bench: _pair,
    Shape.judgebench: _judgebench,
    Shape.best_of_n: _best_of_n,
    Shape.scored: _scored,
    Shape.reward_bench_2: _lists,
    Shape.rm_bench: _rm_bench,
}
