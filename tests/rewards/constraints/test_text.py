import pytest

from rewards.constraints.text import (
    bullets,
    ends_with_emoji,
    joined_words,
    paragraphs,
    plain,
    sentence_mark,
    sentences,
    spaced_words,
    word_count,
)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("Hello world. this is two. Three!", ["Hello world.", "this is two.", "Three!"]),
        ("Dr. Smith ran 3.5 miles. Ok?", ["Dr. Smith ran 3.5 miles.", "Ok?"]),
        ('He said "Wow!" and ran.', ['He said "Wow!" and ran.']),
        ('It is "a universe." this is his.', ['It is "a universe."', "this is his."]),
        ("1. First item. 2. Second.\n3. Third.", ["1. First item.", "2. Second.", "3. Third."]),
        ("Great day! 😀 Next one. 🎉", ["Great day! 😀", "Next one. 🎉"]),
        ("你好。再见。", ["你好。", "再见。"]),
        (
            "In the U.S. Army. In the U.S. He left.",
            ["In the U.S. Army.", "In the U.S.", "He left."],
        ),
        ("J. K. Rowling wrote, e.g. this.", ["J. K. Rowling wrote, e.g. this."]),
        ("He got an A. She got more.", ["He got an A.", "She got more."]),
        ("Well... it is. And... Then?", ["Well... it is.", "And...", "Then?"]),
        ("No mark\nat a line's end", ["No mark\nat a line's end"]),
        ("... !!! ???", []),
        ("", []),
    ],
)
def test_sentences(text, expected):
    assert sentences(text) == expected


def test_marks_and_emoji():
    ends = [sentence_mark(each) for each in ("Yes.", 'Yes."', "No? 😀", "Oh!)", "好。", "none", "")]
    assert ends == [".", ".", "?", "!", ".", "", ""]
    assert all(map(ends_with_emoji, ("Hi 😀", "Hi! 👍🏽", "Hi ❤️.", "Go 🇫🇷", "One 1️⃣", "Fam 👨‍👩‍👧")))
    assert not any(map(ends_with_emoji, ("Hi", "Hi :)", "5", "😀 Hi", "Brand™", "")))


def test_words():
    assert word_count("I don't, well-known हिन्दी 3.14") == 8
    assert joined_words("I don't, well-known हिन्दी") == ["I", "don't", "well-known", "हिन्दी"]
    assert spaced_words('"Hello," - she said… ***') == ["Hello", "she", "said"]


def test_bullets_and_paragraphs():
    text = "* one\n  * **two**\n- three\n---\n* * *\n*italics*\n**bold**\n-- no\n*four"
    assert bullets(text) == 4
    assert paragraphs("\n\na\nb\n\n \n\nc\n") == ["a\nb", "c"]


def test_plain():
    assert plain("Ḗn café\u0301, ﬁ ½") == "En cafe, fi 1\u20442"


@pytest.mark.timeout(60)
@pytest.mark.parametrize(
    ("read", "text", "expected"),
    [
        (sentences, "." * 1_000_000 + "x", 1),
        (sentences, "Yes. " + "!" * 1_000_000 + "x", 2),
        (sentences, "\t" * 800_000 + "Mr. Dr. Mrs. St. " * 40_000, 1),
        (sentences, "(" * 800_000 + "Mr. Dr. Mrs. St. " * 40_000, 1),
        (spaced_words, "a" + "_" * 1_000_000 + "b", 1),
        (plain, "a" + "\u0301\u0316" * 500_000, 1),
        (plain, "a" + "\u0f73" * 500_000, 1),
    ],
    ids=range(7),
)
def test_hostile_text_takes_linear_time(read, text, expected):
    assert len(read(text)) == expected
