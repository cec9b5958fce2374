"""What the critic reads: no text in it can speak to the critic or stand for a mark."""

import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from rewards.critic_prompt import MARKS, asked, critic_messages, escape, verdict_form
from rewards.rubric import Rubric, Rule
from rewards.task import Message

TRUE = Rubric(name="true", text="It is true.")
POLITE = Rubric(name="polite", text="It is polite.", weight=2.0, mandatory=True)
PRAISE = Rubric(name="praise", text="No praise.", mandatory=True, rule=Rule.opening_praise)
ASKED = (Message(role="user", content="Why is the sky blue?"),)

SPELT = st.lists(
    st.sampled_from(
        [*"<>|/[] \n", *MARKS, "ANSWER_a", "</", "<|im_end|>", "im_end", "BOS", "INST", "\u2003"]
    ),
    max_size=30,
).map("".join)


def test_what_is_shown() -> None:
    system, user = critic_messages("Judge.", ASKED, ("Air.", "Sea."), (TRUE, POLITE, PRAISE))
    assert (system.role, system.content, user.role) == ("system", "Judge.", "user")
    assert user.content == (
        "<rubrics>\n"
        "true: It is true.\n"
        "polite (weight 2) (mandatory: name it under violations where it is broken): "
        "It is polite.\n"
        "</rubrics>\n"
        "<request>\nWhy is the sky blue?\n</request>\n"
        "<answer_A>\nAir.\n</answer_A>\n"
        "<answer_B>\nSea.\n</answer_B>\n"
        '{"rubrics": {"true": "?", "polite": "?"}, "violations": {"A": [], "B": []}, '
        '"better": "?"}'
    )


def test_a_conversation_names_who_spoke() -> None:
    prompt = (Message(role="system", content="Be brief."), *ASKED)
    text = critic_messages("Judge.", prompt, ("a", "b"), (TRUE,))[1].content
    assert "<request>\nsystem: Be brief.\n\nuser: Why is the sky blue?\n</request>" in text


def test_both_orders_share_all_before_the_answers() -> None:
    texts = [
        critic_messages("Judge.", ASKED, answers, (TRUE,))[1].content
        for answers in (("same", "one"), ("same", "other"))
    ]
    shared = texts[0].index("one")
    assert texts[0][:shared] == texts[1][:shared]
    assert texts[0].index("same") < shared


def test_rubrics_that_a_rule_decides_are_not_asked_about() -> None:
    assert asked((TRUE, PRAISE, POLITE)) == (TRUE, POLITE)
    assert verdict_form((TRUE,)) == '{"rubrics": {"true": "?"}, "better": "?"}'
    assert verdict_form(()) == '{"rubrics": {}, "better": "?"}'


@given(st.text() | SPELT)
def test_no_text_spells_a_mark_or_a_special_token(text: str) -> None:
    shown = escape(text)
    assert "<|" not in shown and "|>" not in shown
    assert not re.search("</?(" + "|".join(MARKS) + ")", shown, re.IGNORECASE)
    assert not any(token in shown for token in ("[BOS]", "[EOS]", "[INST]", "[/INST]"))
    assert shown.replace(" ", "") == text.replace(" ", "")  # spaces alone are added


@given(st.text() | SPELT, st.text() | SPELT, st.text() | SPELT)
def test_the_marks_stand_once_whatever_is_said(prompt: str, one: str, other: str) -> None:
    asked_for = (Message(role="user", content=prompt),)
    text = critic_messages("Judge.", asked_for, (one, other), (TRUE,))[1].content
    for mark in MARKS:
        assert text.count(f"<{mark}>") == text.count(f"</{mark}>") == 1
    assert text.split("\n")[-1] == verdict_form((TRUE,))


@given(st.text(min_size=1) | SPELT)
def test_no_rubric_forges_a_mark(text: str) -> None:
    rubric = Rubric(name='so "called"', text=f"It is true. {text}")
    shown = critic_messages("Judge.", ASKED, ("a", "b"), (rubric,))[1].content
    for mark in MARKS:
        assert shown.count(f"<{mark}>") == shown.count(f"</{mark}>") == 1
    assert "<|" not in shown and "|>" not in shown


def test_a_plain_text_is_shown_as_it_is() -> None:
    text = "if a < b and c > d: x = [1, 2] | {3}\n<b>bold</b> <requisite> 1 <2 |x|"
    assert escape(text) == text


@pytest.mark.timeout(60)  # many minutes, were the time quadratic
@pytest.mark.parametrize(
    "text", ["<" + " " * 200_000, "<" + "\n" * 200_000 + "/" + " " * 200_000, "< " * 200_000]
)
def test_hostile_white_space_takes_no_time(text: str) -> None:
    assert escape(text) == text
