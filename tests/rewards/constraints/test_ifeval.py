"""The 25 constraints of IFEval: for each a response that follows it and one that does not."""

import json

import pytest

from rewards.instructions import parse_reference

LESS, LEAST = "less than", "at least"
FRENCH = "Le chat dort sur la table et le chien mange dans la cuisine avec sa famille."
ENGLISH = "The cat sleeps on the table and the dog eats in the kitchen with the family."
HINDI = "यह एक अच्छा दिन है और हम सब बहुत खुश हैं।"

CASES = [
    ("keywords:existence", {"keywords": ["cat", "C++"]}, "Cats like c++.", "Dogs like C++."),
    ("keywords:existence", {"keywords": ["a.c"]}, "the a.c", "abc"),
    (
        "keywords:frequency",
        {"keyword": "sea", "frequency": 2, "relation": LEAST},
        "Sea, sea",
        "sea",
    ),
    ("keywords:frequency", {"keyword": "sea", "frequency": 2, "relation": LESS}, "sea", "sea sea"),
    ("keywords:forbidden_words", {"forbidden_words": ["cat"]}, "The catalogue", "The Cat!"),
    ("keywords:forbidden_words", {"forbidden_words": ["c++", "b"]}, "c abc", "in C++."),
    (
        "keywords:letter_frequency",
        {"letter": "e", "let_frequency": 2, "let_relation": LEAST},
        "E e",
        "e",
    ),
    (
        "keywords:letter_frequency",
        {"letter": "#", "let_frequency": 1, "let_relation": LESS},
        "none",
        "# one",
    ),
    ("language:response_language", {"language": "fr"}, FRENCH, ENGLISH),
    ("language:response_language", {"language": "en"}, ENGLISH, FRENCH),
    ("language:response_language", {"language": "hi"}, HINDI, ENGLISH),
    ("language:response_language", {"language": "en"}, ENGLISH * 90, ENGLISH * 90 + FRENCH * 60),
    (
        "length_constraints:number_sentences",
        {"num_sentences": 3, "relation": LEAST},
        "One. Two! Three?",
        "1. One.\n2. Two",
    ),
    (
        "length_constraints:number_sentences",
        {"num_sentences": 2, "relation": LESS},
        "Dr. Who is 3.5 m",
        "One. two.",
    ),
    (
        "length_constraints:number_paragraphs",
        {"num_paragraphs": 2},
        "One\n***\nTwo\n***\n",
        "One\n***\n***\nTwo",
    ),
    (
        "length_constraints:number_words",
        {"num_words": 3, "relation": LEAST},
        "one two three",
        "one, two",
    ),
    ("length_constraints:number_words", {"num_words": 3, "relation": LESS}, "a b", "a b c"),
    (
        "length_constraints:nth_paragraph_first_word",
        {"num_paragraphs": 2, "nth_paragraph": 2, "first_word": "Second"},
        "\n\nOne.\n \n**second**, then",
        "One.\n\nTwo second",
    ),
    (
        "length_constraints:nth_paragraph_first_word",
        {"num_paragraphs": 1, "nth_paragraph": 1, "first_word": "don't"},
        "Don't go",
        "Do not go",
    ),
    (
        "detectable_content:number_placeholders",
        {"num_placeholders": 2},
        "[name] at [address]",
        "[name] at [] [ ]",
    ),
    ("detectable_content:postscript", {"postscript_marker": "P.S."}, "Bye.\nP.S. Hi", "Bye. P.S."),
    (
        "detectable_content:postscript",
        {"postscript_marker": "P.P.S"},
        "Bye.\n\np. p. s. more",
        "Bye.\n\nP.S. more",
    ),
    (
        "detectable_format:number_bullet_lists",
        {"num_bullets": 2},
        "List\n* **one**\n- two\n---",
        "* one\n* two\n* three",
    ),
    ("detectable_format:constrained_response", {}, "My answer is no.", "No"),
    (
        "detectable_format:constrained_response",
        {},
        "My answer is no.",
        "My answer is no. My answer is yes.",
    ),
    (
        "detectable_format:number_highlighted_sections",
        {"num_highlights": 2},
        "*one* and **two**",
        "*one* ** ** 2 * 3 * 4",
    ),
    (
        "detectable_format:multiple_sections",
        {"section_spliter": "SECTION", "num_sections": 2},
        "SECTION 1\na\n**SECTION 2**: b",
        "SECTION 1, see SECTION 1",
    ),
    ("detectable_format:json_format", {}, '```json\n{"a": [1, "b"]}\n```', "{'a': 1}"),
    ("detectable_format:json_format", {}, '{"a": "[["}', "[" * 100_000),
    ("detectable_format:title", {}, "<<The sea>>\nText", "<< >> <The sea>"),
    ("combination:two_responses", {}, "One\n******\nTwo", "One\n******\n one "),
    ("combination:two_responses", {}, "One\n******\nTwo", "One******Two******Three"),
    (
        "combination:repeat_prompt",
        {"prompt_to_repeat": "Name a sea."},
        "name a sea. The North Sea",
        "The North Sea. Name a sea.",
    ),
    ("combination:repeat_prompt", {"prompt_to_repeat": "Go"}, "Go. Yes", "Go."),
    ("startend:end_checker", {"end_phrase": "Any other?"}, 'Yes. "any other?"', "Any other? No"),
    ("startend:quotation", {}, ' "Yes it is." ', '"Yes" it is.'),
    (
        "change_case:capital_word_frequency",
        {"capital_frequency": 3, "capital_relation": LEAST},
        "I'm in the U.S. with YES-NO",
        "I'm in the U.s. with Yes",
    ),
    (
        "change_case:capital_word_frequency",
        {"capital_frequency": 1, "capital_relation": LESS},
        "None here",
        "NASA here",
    ),
    ("change_case:english_capital", {}, ENGLISH.upper(), ENGLISH),
    ("change_case:english_capital", {}, ENGLISH.upper(), FRENCH.upper()),
    ("change_case:english_lowercase", {}, ENGLISH.lower(), ENGLISH),
    ("change_case:english_lowercase", {}, ENGLISH.lower(), FRENCH.lower()),
    ("punctuation:no_comma", {}, "None; here", "One, here"),
    ("punctuation:no_comma", {}, "没有", "一\uff0c二"),
]


def violation(name, kwargs, response):
    reference = json.dumps({"instruction_id_list": [name], "kwargs": [kwargs]})
    return parse_reference(reference)[0].violation(response, "")


@pytest.mark.parametrize(("name", "kwargs", "followed", "violated"), CASES)
def test_one_follows_and_one_does_not(name, kwargs, followed, violated):
    assert violation(name, kwargs, followed) is None
    assert violation(name, kwargs, violated)
    assert violation(name, kwargs, "") == "an empty response"


def test_every_id_is_tested():
    assert len({case[0] for case in CASES}) == 25


def test_text_without_letters_has_no_language():
    assert violation("language:response_language", {"language": "fr"}, "14, 21") is None
