import concurrent.futures
import gzip
import json
import math
import re
import string
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from rewards.constraints.check import Relation
from rewards.errors import RewardError
from rewards.instructions import CHECKS, Constraint, parse_reference, variants, verify

# The constraints of the 300 rows of IFBench (Allen Institute for AI, ODC-BY 1.0), nulls included.
IFBENCH = Path(__file__).parents[1] / "data" / "ifbench_references.jsonl.gz"
PROMPT = "Describe the sea."
ANSWER = "The sea is deep and blue and it never rests at all."
ARGUMENTS = {
    "N": 2, "n": 1, "m": 2, "small_n": 2, "min_words": 1, "max_words": 9, "percentage": 20.0,
    "num_words": 5, "num_sentences": 2, "num_paragraphs": 1, "nth_paragraph": 1, "num_bullets": 1,
    "num_highlights": 1, "num_sections": 1, "num_placeholders": 1, "frequency": 1,
    "let_frequency": 2, "capital_frequency": 1, "n_start": 0, "n_end": 2, "keywords": ["sea"],
    "forbidden_words": ["land"], "relation": "at least", "let_relation": "less than",
    "capital_relation": "at least", "letter": "e", "language": "en", "options": "yes/no",
    "postscript_marker": "P.S.", "section_spliter": "Section", "sep": "-", "first_word": "the",
    "end_phrase": "the end", "prompt_to_repeat": "Say it.", "reference_text": ANSWER,
    "keyword": "sea", "word": "sea", "keyword1": "a", "keyword2": "b", "keyword3": "c",
    "keyword4": "d", "keyword5": "e",
}  # fmt: skip


def constraint_of(name):
    arguments = {key: ARGUMENTS[key] for key in CHECKS[name].__annotations__ if key in ARGUMENTS}
    return parse_reference(json.dumps({"instruction_id_list": [name], "kwargs": [arguments]}))[0]


CONSTRAINTS = {name: constraint_of(name) for name in CHECKS}
TEXT = st.one_of(
    st.text(max_size=200),
    st.text(alphabet=string.printable, max_size=200),
    st.text(
        alphabet=" \n\t.,;:!?*-_#\"'()[]{}<>/`|1aA\u2019“”。\uff01é😀\u200d\ufe0f\u0301",
        max_size=200,
    ),
    st.lists(
        st.sampled_from(
            ["sea", "Section 1", "P.S.", "* a", "- b", "\n", "***", "<i>", "one.", "?!"]
        )
    ).map(" ".join),
)


def reference(*constraints):
    names, kwargs = zip(*constraints, strict=True)
    return json.dumps({"instruction_id_list": names, "kwargs": kwargs})


def kwargs_of(constraint):
    return {key: ARGUMENTS[key] for key in constraint.arguments}


NO_COMMA = ("punctuation:no_comma", {})
SEA = ("keywords:existence", {"keywords": ["sea"]})
TITLE = ("detectable_format:title", None)


def test_all_must_be_followed_unless_partial():
    assert verify(ANSWER, PROMPT, reference(NO_COMMA, SEA)).total == 1.0
    assert verify(ANSWER, PROMPT, reference(NO_COMMA, SEA)).why == "follows 2 of 2"
    score = verify(ANSWER, PROMPT, reference(NO_COMMA, TITLE))
    assert (score.total, score.parts) == (0.0, {"instructions": 0.0})
    assert score.why == "violates detectable_format:title (no <<title>>)"
    score = verify(ANSWER, PROMPT, reference(NO_COMMA, TITLE, SEA, SEA), partial=True)
    assert (score.total, score.parts) == (0.75, {"instructions": 0.75})


@pytest.mark.parametrize(
    ("response", "strict", "loose"),
    [
        (ANSWER, 1.0, 1.0),
        (f"Well, then:\n{ANSWER}", 0.0, 1.0),
        (f"{ANSWER}\nSo, bye!", 0.0, 1.0),
        (f"Well, then:\n{ANSWER}\nSo, bye!", 0.0, 1.0),
        (f"One, two\nthree, four\n{ANSWER}", 0.0, 0.0),
    ],
)
def test_loose_forgives_the_first_and_the_last_line(response, strict, loose):
    assert verify(response, PROMPT, reference(NO_COMMA)).total == strict
    assert verify(response, PROMPT, reference(NO_COMMA), loose=True).total == loose


def test_loose_forgives_asterisks():
    repeat = ("combination:repeat_prompt", {"prompt_to_repeat": PROMPT})
    response = f"**{PROMPT}** {ANSWER}"
    assert verify(response, PROMPT, reference(repeat)).total == 0.0
    assert verify(response, PROMPT, reference(repeat), loose=True).total == 1.0


def test_variants():
    assert variants("a\n*b*\nc") == [
        "a\n*b*\nc", "*b*\nc", "a\n*b*", "*b*", "a\nb\nc", "b\nc", "a\nb", "b",
    ]  # fmt: skip


def test_a_very_long_response_is_not_read():
    score = verify("word " * 200_000, PROMPT, reference(NO_COMMA))
    assert score.total == 0.0
    assert "characters" in score.why


def test_all_of_ifbench_is_read():
    with gzip.open(IFBENCH, "rt", encoding="utf-8") as rows:
        parsed = [parse_reference(row) for row in rows]
    assert len(parsed) == 300
    assert len({constraint.id for row in parsed for constraint in row}) == 58


def test_arguments_are_read_by_type():
    kwargs = {"num_words": 5.0, "relation": "less than", "language": None, "unknown": None}
    parsed = parse_reference(reference(("length_constraints:number_words", kwargs)))
    arguments = {"num_words": 5, "relation": Relation.less_than}
    assert parsed == (Constraint("length_constraints:number_words", arguments),)
    without = json.dumps({"instruction_id_list": ["detectable_format:title"]})
    assert parse_reference(without)[0].arguments == {}


WORDS = "length_constraints:number_words"


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "no JSON"),
        ("[" * 100_000, "no JSON"),
        ("[]", "must be an object"),
        ('{"instruction_id_list": []}', "at least one id"),
        ('{"instruction_id_list": ["punctuation:no_comma"], "kwargs": []}', "list of 1 objects"),
        (reference(("punctuation:no_coma", {})), "'punctuation:no_coma'; the nearest is "
         "'punctuation:no_comma'"),
        (reference((3, {})), "unknown instruction id 3"),
        (reference((WORDS, {"num_word": 3})), "'num_word'; the nearest is 'num_words'"),
        (reference((WORDS, {"num_words": 3})), "the argument 'relation' is missing"),
        (reference((WORDS, {"num_words": 3, "relation": None})), "'relation' is missing"),
        (reference((WORDS, {"num_words": "3", "relation": "at least"})), "must be a whole number"),
        (reference((WORDS, {"num_words": True, "relation": "at least"})), "num_words must be"),
        (reference((WORDS, {"num_words": -1, "relation": "at least"})), "num_words must be"),
        (reference((WORDS, {"num_words": 1.5, "relation": "at least"})), "num_words must be"),
        (reference((WORDS, {"num_words": math.nan, "relation": "at least"})), "num_words must be"),
        (reference((WORDS, {"num_words": math.inf, "relation": "at least"})), "num_words must be"),
        (reference(("ratio:stop_words", {"percentage": math.inf})), "percentage must be"),
        (reference((WORDS, {"num_words": 3, "relation": "at most"})), "'less than' or 'at least'"),
        (reference(("keywords:existence", {"keywords": "sea"})), "keywords must be a list"),
        (reference(("keywords:existence", {"keywords": ["sea", 3]})), "keywords must be a list"),
        (reference(("keywords:existence", {"keywords": []})), "keywords must be a list"),
        (reference(("format:list", {"sep": " "})), "sep must be a text"),
        (reference(("punctuation:no_comma", [1])), "must be an object"),
        (reference(("punctuation:no_comma", {"x": 1})), "it takes none"),
    ],
)  # fmt: skip
def test_bad_references_are_the_users_mistake(text, message):
    with pytest.raises(ValueError, match=re.escape(message)):
        parse_reference(text)
    with pytest.raises(RewardError):
        verify(ANSWER, PROMPT, text)


@pytest.mark.parametrize("name", sorted(CHECKS))
@settings(max_examples=25, deadline=None, derandomize=True)
@given(text=TEXT)
def test_no_text_makes_a_check_raise_or_waver(name, text):
    constraint = CONSTRAINTS[name]
    found = constraint.violation(text, PROMPT)
    assert found is None or (found and "\n" not in found)
    assert constraint.violation(text, PROMPT) == found
    score = verify(text, PROMPT, reference((name, kwargs_of(constraint))), loose=True)
    assert score.total in (0.0, 1.0)
    assert score.why


HOSTILE = (
    "a", " ", "\n", "[", "(", "<", "*", "* ", '"', "'", ". ", "a. ", "1. ", "1", "\u0301", "\x00",
    "this response ", "as requested ", "I included ", "all of the ", "P.", "Section ", '{"a":',
    '"a,', "Question 1\n", "<i></i", "## \n", "x-", "word ", "\U0001f600",
)  # fmt: skip


@pytest.mark.timeout(60)
def test_hostile_responses_do_not_hang():
    everything = reference(*((each.id, kwargs_of(each)) for each in CONSTRAINTS.values()))
    for piece in HOSTILE:
        response = piece * (20_000 // len(piece))
        assert verify(response, PROMPT, everything).total == 0.0


def test_threads_agree():
    texts = [ANSWER, "Le chat dort sur la table et le chien mange.", "Hola amigo que tal estas hoy"]
    english = reference(("language:response_language", {"language": "en"}))
    calls = texts * 20
    with concurrent.futures.ThreadPoolExecutor(8) as pool:
        totals = list(pool.map(lambda text: verify(text, PROMPT, english).total, calls))
    assert totals == [1.0, 0.0, 0.0] * 20
