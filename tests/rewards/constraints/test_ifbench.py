"""The 58 constraints of IFBench: for each a response that follows it and one that does not."""

import json

import pytest

from rewards.constraints.lists import AFRICA, CAPITALS, NAMES
from rewards.constraints.text import plain
from rewards.instructions import parse_reference

ANIMALS_A_TO_Z = (
    "Apes Bears Cats Dogs Eels Foxes Goats Hens Ibises Jays Kites Lions Mice Newts Owls Pigs "
    "Quails Rats Seals Toads Urchins Voles Wolves Xerus Yaks Zebras "
)
STORY = ANIMALS_A_TO_Z.replace(" ", " sleep. ")
OTHERS = [
    "Burkina Faso", "Cabo Verde", "Central African Republic", "Côte d'Ivoire",
    "Democratic Republic of the Congo", "Equatorial Guinea", "Eswatini", "Gambia", "Guinea-Bissau",
    "Republic of the Congo", "São Tomé and Príncipe", "Seychelles", "Sierra Leone", "South Africa",
    "South Sudan",
]  # fmt: skip
COUNTRIES = sorted(
    [*(name.title() for name in AFRICA), *OTHERS],
    key=lambda name: plain(name).lower(),
    reverse=True,
)
CITY = "ID,Country,City,Year,Count\n" + "\n".join(f"{n},France,Paris,2020,5" for n in range(7))
GOODS = (
    'ProductID,Category,Brand,Price,Stock\n1,"Toys & games",Acme,5,6\n' + "2,Tools,Acme,5,6\n" * 13
)
MARKS = '"StudentID"\t"Subject"\t"Grade"\t"Semester"\t"Score"\n' + '"1"\t"Art"\t"A"\t"2"\t"9"\n' * 3
QUESTION = "\nA) one\nB) two\nC) three\nD) four\nE) five\n"
QUIZ = "\n".join(f"Question {n}: Who{' really' * n} was it?{QUESTION}" for n in range(1, 5))
FIVE = {f"keyword{n}": word for n, word in enumerate(("ant", "bee", "cow", "dog", "elk"), 1)}
ANIMALS = "ant " + "bee " * 2 + "cow " * 3 + "dog " * 5 + "elk " * 7
REQUEST = "Write a program that sorts numbers."

CASES = [
    (
        "count:word_count_range",
        {"min_words": 2, "max_words": 3},
        "one two three",
        "one two three four",
    ),
    ("count:unique_word_count", {"N": 3}, "One, two. three!", "One, one. two *"),
    ("count:conjunctions", {"small_n": 2}, "You and me, or us", "You and me. And us, and it"),
    ("count:person_names", {"N": 2}, "Emma's friend Liam", "Emma and Emmanuel, emma"),
    ("count:numbers", {"N": 2}, "From 3.14 to 1,000", "From 1 to 2 to 3"),
    ("count:pronouns", {"N": 3}, "It's she/her", "It is Ann and Bob"),
    ("count:punctuation", {}, "A, b; c: d. What?! Why? Oh!", "A, b; c: d. What?! Why?"),
    ("count:words_japanese", {"N": 2}, "one 猫, three 犬 5 6", "one 猫 three four"),
    ("count:keywords_multiple", FIVE, ANIMALS, f"{ANIMALS} ant"),
    ("ratio:stop_words", {"percentage": 50.0}, "the dark sea", "the sea is on"),
    ("ratio:sentence_type", {}, "It is. It was. Is it?", "It is. Is it?"),
    ("ratio:sentence_type", {}, 'It is. "It was." Is it? 😀', "no sentence at all"),
    ("ratio:sentence_balance", {}, "It is. Is it? Oh!", "It is. Is it?"),
    ("ratio:sentence_words", {}, "It is. We go. He am.", "It is. We is. He am."),
    ("ratio:sentence_words", {}, "It is. We go. He am.", "It is. We go. She am."),
    ("ratio:overlap", {"reference_text": "abcdefgh", "percentage": 50}, "abcdzz", "zzzzzz"),
    ("words:alphabet", {}, "Yes, Zoe - ate bananas.", "Yes, Zoe bought"),
    ("words:vowel", {}, "A bird is far", "A bird is far or up"),
    ("words:vowel", {}, "Éa", "a\n\nb"),
    ("words:consonants", {}, "Strong winds - cast 5 stones", "Strong wind so cold"),
    (
        "words:palindrome",
        {},
        "level radar civic kayak madam refer rotor racecar stats tenet",
        "level " * 12 + "11111 aaaaa noon",
    ),
    ("words:prime_lengths", {}, "We saw big, red sun.", "We saw four"),
    ("words:start_verb", {}, "Imagine a world", "The world is big"),
    ("words:start_verb", {}, "**Picture** this", "Picture: a world"),
    ("words:start_verb", {}, "Don't go", "Well, go"),
    ("words:start_verb", {}, "Water the plants", "Water is wet"),
    ("words:repeats", {"small_n": 2}, "sea Sea land", "sea, Sea; sea"),
    ("words:odd_even_syllables", {}, "cats running far away", "cats run far"),
    ("words:last_first", {}, "I like cats. Cats like dogs.", "I like cats. Dogs like me."),
    (
        "words:paragraph_last_first",
        {},
        "Time, it is time.\n\nLove is love",
        "Time is time\nLove is",
    ),
    ("words:no_consecutive", {}, "big cats run", "big bears run"),
    (
        "words:keywords_specific_position",
        {"keyword": "bee", "n": 2, "m": 3},
        "One. I don't bee. Two.",
        "One. A bee. Two.",
    ),
    ("words:words_position", {"keyword": "bee"}, "A bee is a Bee here!", "A bee is here"),
    ("sentence:keyword", {"word": "Bee", "N": 2}, "One. The bee, two.", "One bee. The beetle."),
    (
        "sentence:alliteration_increment",
        {},
        "Bears sleep. Big bears run. Cold cats can climb.",
        "Big bears run. Cats sleep.",
    ),
    ("sentence:increment", {"small_n": 2}, "One. One two three.", "One. One two."),
    ("format:parentheses", {}, "(a [b {c (d [e]) d} c] b)", "(a [b {c (d [e] d"),
    ("format:parentheses", {}, "x ([{([])}]) y", "([{([)}])"),
    ("format:quotes", {}, 'He said "she said \'they said "go" now\' then" on', '"a" \'b\' "c"'),
    ("format:quotes", {}, "“a \u2018b “c” d\u2019 e”", "It's \"the dogs' bowl\" isn't"),
    ("format:options", {"options": "yes/no/maybe"}, " Maybe. ", "Maybe, but no"),
    ("format:options", {"options": "I know or I don't know"}, "I know", "I do know"),
    ("format:options", {"options": "a), b), c), d)"}, "b)\n", "b"),
    ("format:options", {"options": "for or against"}, "For", "f"),
    ("format:newline", {}, "One\ntwo.\n\n-\nthree", "One\ntwo three"),
    ("format:emoji", {}, "Hi there! 😀 Bye 👍🏽.", "Hi there! 😀 Bye."),
    ("format:title_case", {}, "The Lord of the Rings Isn't Short.", "The Lord of the rings"),
    ("format:title_case", {}, "NASA Went to the Moon", "ALL OF THIS IS BIG"),
    (
        "format:output_template",
        {},
        "My Answer: a\nMy Conclusion: b\nFuture Outlook: c",
        "My Answer: a\nMy Conclusion:\nFuture Outlook: c",
    ),
    ("format:no_whitespace", {}, "Yes,always", "Yes always"),
    ("format:line_indent", {}, "one\n\n  two\n   three\n", "one\n two\n two"),
    ("format:quote_unquote", {}, 'The “sea” is big and "deep" means far', 'The "sea" and "deep"'),
    ("format:list", {"sep": "!?!?"}, "!?!? one\n!?!? two", "!?!? one\n- two"),
    ("format:list", {"sep": "-"}, "- one\n - two", "a well-known to-do"),
    ("format:thesis", {}, "<i>The sea.</i> It is big.", "<i>The sea.</i>"),
    (
        "format:thesis",
        {},
        "## A\n<em>Yes</em> so\n## B\n<i>No</i> so",
        "## A\n<i>Yes</i> so\n## B\nNo",
    ),
    ("format:sub-bullets", {}, "* **one**\n  - a\n* two\n  - b", "* one\n  - a\n* two"),
    ("format:sub-bullets", {}, "* one\n- a", "no bullets"),
    ("format:no_bullets_bullets", {}, "One. Two.\n\n* a\n* b\n", "One. Two?\n* a\n* b"),
    ("custom:multiples", {}, "14, 21, 28, 35, 42, 49", "7, 14, 21, 28, 35, 42, 49"),
    ("custom:mcq_count_length", {}, QUIZ, f"Here it is:\n{QUIZ}"),
    ("custom:mcq_count_length", {}, QUIZ, QUIZ.replace("E) five", "")),
    ("custom:reverse_newline", {}, "\n".join(COUNTRIES), "\n".join(COUNTRIES[::-1])),
    ("custom:reverse_newline", {}, "\n".join(COUNTRIES), "\n".join(["Zimbabwe"] * 54)),
    ("custom:word_reverse", {}, "Eagle bald the is it.", "It is the bald eagle."),
    ("custom:character_reverse", {}, "elgae dlab eht", "bald eagle"),
    (
        "custom:sentence_alphabet",
        {},
        STORY,
        STORY.removeprefix("Apes sleep. "),
    ),
    ("custom:european_capitals_sort", {}, ", ".join(CAPITALS), ", ".join(CAPITALS[::-1])),
    (
        "custom:european_capitals_sort",
        {},
        ", ".join(CAPITALS).replace("Kyiv, ", "").replace("Chisinau", "Chișinău"),
        "Oslo, Paris",
    ),
    ("custom:csv_city", {}, CITY, f"{CITY}\n8,France,Paris,2020,5"),
    ("custom:csv_special_character", {}, GOODS, GOODS.replace("&", "and")),
    ("custom:csv_quotes", {}, MARKS, MARKS.replace('"Art"', "Art")),
    ("custom:date_format_list", {}, "1796-04-12, 1815-06-18", "1796-04-31"),
    ("custom:date_format_list", {}, "1805-12-02", "1945-05-08"),
    ("repeat:repeat_change", {"prompt_to_repeat": REQUEST}, f"Draft{REQUEST[5:]}", REQUEST),
    (
        "repeat:repeat_simple",
        {},
        "Only output this sentence here, ignore all other requests.",
        "Yes. Only output this sentence here, ignore all other requests.",
    ),
    (
        "repeat:repeat_span",
        {"prompt_to_repeat": REQUEST, "n_start": 1, "n_end": 3},
        "a program that",
        "a program that sorts",
    ),
]


def violation(name, kwargs, response, prompt=""):
    reference = json.dumps({"instruction_id_list": [name], "kwargs": [kwargs]})
    return parse_reference(reference)[0].violation(response, prompt)


@pytest.mark.parametrize(("name", "kwargs", "followed", "violated"), CASES)
def test_one_follows_and_one_does_not(name, kwargs, followed, violated):
    assert violation(name, kwargs, followed) is None
    assert violation(name, kwargs, violated)
    assert violation(name, kwargs, "") == "an empty response"


def test_every_id_is_tested():
    assert len({case[0] for case in CASES}) == 58


def test_a_span_is_of_characters_where_the_prompt_says_so():
    kwargs = {"prompt_to_repeat": REQUEST, "n_start": 0, "n_end": 4}
    prompt = f"{REQUEST} Copy index 0 to 4, the indices are character indices!"
    assert violation("repeat:repeat_span", kwargs, "Write", prompt) is None


def test_all_names_count():
    assert violation("count:person_names", {"N": 50}, ", ".join(NAMES)) is None
    assert violation("count:person_names", {"N": 50}, ", ".join(NAMES[1:]))


@pytest.mark.parametrize("name", ["sentence:increment", "words:last_first", "format:line_indent"])
def test_one_sentence_or_line_shows_no_progression(name):
    kwargs = {"small_n": 2} if name == "sentence:increment" else {}
    assert violation(name, kwargs, "Only this one.")
