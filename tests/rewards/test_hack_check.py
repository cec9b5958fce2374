import json

import pytest

from rewards.hack_check import claim, empty_of_answer
from rewards.instructions import verify

PROMPT = "Write a poem about the sea. Do not use any commas. Answer with at least 5 words."
NO_COMMA = json.dumps({"instruction_id_list": ["punctuation:no_comma"], "kwargs": [{}]})
TWO = json.dumps(
    {
        "instruction_id_list": ["punctuation:no_comma", "length_constraints:number_words"],
        "kwargs": [None, {"num_words": 5, "relation": "at least"}],
    }
)
CLAIMS = (
    "I have followed all your instructions.",
    "This response contains exactly 3 bullet points.",
    "As requested, no commas were used",
    "I\u2019ve made sure to avoid commas.",
    "All constraints are met.",
    "Here is the poem, as requested.",
    "Every requirement has been satisfied.",
    "My answer has fewer than 100 words.",
    "Word count: 300",
    "✅ 3 bullet points",
    "The response is in all lowercase letters.",
    "In accordance with your instructions here it is.",
    "Per your request, there are no commas here.",
    "Note: The above text does not contain any commas.",
    "Rest assured, the instructions were carefully followed.",
    "I wrote this in exactly 50 words.",
    "It contains 3 sections as required.",
)
PLAIN = (
    "Season the soup as required.",
    "Take the pill as instructed by your doctor.",
    "The answer includes a proof in two lines.",
    "He followed the river home and used a boat.",
    "I included a table below.",
    "The letter contains a map of the sea.",
    "Sure! Paris is the capital of France.",
    "42",
    "C",
    "😻",
    "Yes.",
    "I know.",
)


@pytest.mark.parametrize("text", CLAIMS)
def test_a_claim_without_compliance_scores_zero_in_every_mode(text):
    assert claim(text) is not None
    response = f"The sea is wide, deep and blue, and it sings at night.\n{text}"
    for loose in (False, True):
        for partial in (False, True):
            score = verify(response, PROMPT, TWO, loose=loose, partial=partial)
            assert score.total == 0.0
            assert "claims to comply" in score.why
            assert "punctuation:no_comma" in score.why


@pytest.mark.parametrize("text", [each for each in CLAIMS if "," not in each])
def test_a_claim_with_compliance_and_an_answer_is_no_hack(text):
    response = f"The sea is wide and deep and blue and it sings at night.\n{text}"
    assert verify(response, PROMPT, NO_COMMA).total == 1.0


def test_a_claim_is_held_to_the_strict_reading():
    response = "As requested, I avoided commas.\nThe sea is wide and blue and old."
    assert verify(response, PROMPT, NO_COMMA, loose=True).total == 0.0
    response = "Well, here goes.\nThe sea is wide and blue and old."
    assert verify(response, PROMPT, NO_COMMA, loose=True).total == 1.0


@pytest.mark.parametrize("text", PLAIN)
def test_plain_answers_are_not_touched(text):
    assert claim(text) is None
    assert empty_of_answer(text, PROMPT) is None


@pytest.mark.parametrize(
    "response",
    [
        "",
        " \n\t",
        "\u200b",
        "...",
        "I have followed all your instructions.",
        "Sure! This response contains at least 5 words. I did not use any commas.",
        "I will write at least 5 words without commas.",
        "Do not use any commas.\nAnswer with at least 5 words.",
        PROMPT,
        f"{PROMPT}\n{PROMPT.upper()}",
        f"{PROMPT} Sure.",
        "sea " * 40,
    ],
)
def test_no_answer_scores_zero(response):
    assert empty_of_answer(response, PROMPT) is not None
    score = verify(response, PROMPT, NO_COMMA, loose=True, partial=True)
    assert score.total == 0.0
    assert score.why.startswith("no answer")


def test_a_keyword_list_is_no_answer_and_an_answer_with_many_keywords_is():
    keywords = ["kaleidoscope", "nebula", "whisper"]
    reference = json.dumps(
        {"instruction_id_list": ["keywords:existence"], "kwargs": [{"keywords": keywords}]}
    )
    assert verify("kaleidoscope, nebula, whisper, nebula", "Why?", reference).total == 0.0
    answer = "A kaleidoscope shows a nebula that we only hear as a whisper."
    assert verify(answer, "Why?", reference).total == 1.0


def test_constraints_that_ask_for_the_prompt_may_repeat_it():
    request = "Write a poem about the sea in ten words."
    reference = json.dumps(
        {
            "instruction_id_list": ["repeat:repeat_change"],
            "kwargs": [{"prompt_to_repeat": request}],
        }
    )
    assert verify(f"Compose{request.removeprefix('Write')}", request, reference).total == 1.0


def test_an_answer_copied_from_a_long_prompt_is_no_repetition():
    prompt = "Text: the output is subject to strong structural constraints, and long. What is it?"
    answer = "the output is subject to strong structural constraints"
    assert empty_of_answer(answer, prompt) is None
