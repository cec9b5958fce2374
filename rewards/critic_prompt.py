"""What the critic reads: a request, the rubrics, and two answers that cannot speak to it."""

import json
import re
from collections.abc import Sequence

from rewards.rubric import Rubric
from rewards.task import Message

MARKS = ("request", "answer_A", "answer_B", "rubrics")
_FORGED = re.compile(r"<(?=\s*(?:/\s*)?(?:" + "|".join(MARKS) + r")|\|)|(?<=\|)>", re.IGNORECASE)
_FORGED_TOKEN = re.compile(r"\[(?=(?:BOS|EOS|PAD|EOT|UNK|INST|/INST)\])")


def critic_messages(
    instruction: str,
    prompt: Sequence[Message],
    answers: tuple[str, str],
    rubrics: Sequence[Rubric],
) -> tuple[Message, ...]:
    """The critic's conversation: `answers[0]` is shown as A.

    Args:
        instruction: system prompt.
        prompt: what was asked of the policy.
        answers: what it said, twice.
        rubrics: the recipe's and the task's; those that a rule decides are not shown.
    """
    shown = asked(rubrics)
    parts = [
        _marked("rubrics", "\n".join(_line(rubric) for rubric in shown)),
        _marked("request", escape(_text(prompt))),
        _marked("answer_A", escape(answers[0])),
        _marked("answer_B", escape(answers[1])),
        verdict_form(shown),
    ]
    return (
        Message(role="system", content=instruction),
        Message(role="user", content="\n".join(parts)),
    )


def asked(rubrics: Sequence[Rubric]) -> tuple[Rubric, ...]:
    """The rubrics that the critic decides: those without a rule."""
    return tuple(rubric for rubric in rubrics if rubric.rule is None)


def verdict_form(rubrics: Sequence[Rubric]) -> str:
    """The JSON that ends a judgement, with a ? in place of each verdict."""
    form: dict[str, object] = {"rubrics": {rubric.name: "?" for rubric in rubrics}}
    if any(rubric.mandatory for rubric in rubrics):
        form["violations"] = {"A": [], "B": []}
    return json.dumps(form | {"better": "?"}, ensure_ascii=False)


def escape(text: str) -> str:
    """The text without our marks and without special tokens: a space keeps each apart.

    A tokenizer turns the characters of a special token into that token, wherever they stand.
    """
    return _FORGED_TOKEN.sub("[ ", _FORGED.sub(lambda m: f"{m[0]} " if m[0] == "<" else " >", text))


def _marked(name: str, text: str) -> str:
    return f"<{name}>\n{text}\n</{name}>"


def _line(rubric: Rubric) -> str:
    weight = "" if rubric.weight == 1.0 else f" (weight {rubric.weight:g})"
    must = " (mandatory: name it under violations where it is broken)" if rubric.mandatory else ""
    return f"{rubric.name}{weight}{must}: {escape(rubric.text)}"


def _text(prompt: Sequence[Message]) -> str:
    if len(prompt) == 1 and prompt[0].role == "user":
        return prompt[0].content
    return "\n\n".join(f"{message.role}: {message.content}" for message in prompt)
