from fractions import Fraction

import pytest

from rewards.mathematics.text import boxes, choice, clean, final_answers, normal, number, words


@pytest.mark.parametrize(
    ("response", "expected"),
    [
        (r"so \boxed{5}", ["5"]),
        (r"\boxed{ \frac{1}{2} }", [r"\frac{1}{2}"]),
        (r"\boxed{a} or \boxed {b}", ["a", "b"]),
        (r"\boxed{\boxed{7}} \boxed{8}", ["7", "8"]),
        (r"\boxed{1 \boxed{7}}", ["7", ""]),
        (r"\boxed{\boxed{7} 1}", ["7", ""]),
        (r"\fbox{5}", ["5"]),
        (r"\boxed{\{1, 2\}}", [r"\{1, 2\}"]),
        (r"\boxed{1} then \boxed{2", ["1"]),
        (r"{ \boxed{3}", ["3"]),
        (r"} \boxed{3} }", ["3"]),
        (r"\boxed{}", [""]),
        ("5", []),
        (r"\boxed 5", []),
    ],
)
def test_boxes(response: str, expected: list[str]) -> None:
    assert boxes(response) == expected


def test_boxes_of_a_hostile_response_take_linear_time() -> None:
    assert boxes(r"\boxed{" * 50_000) == []
    assert boxes(r"\boxed{" * 20_000 + "}" * 20_000) == [""]
    assert len(boxes(r"\boxed{1" * 20_000 + "}" * 20_000)) == 20_000


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("-30", Fraction(-30)),
        ("+7", Fraction(7)),
        ("007", Fraction(7)),
        (r"\frac 1 2", Fraction(1, 2)),
        (r"1\,234", Fraction(1234)),
        (".5", Fraction(1, 2)),
        ("1,234,567", Fraction(1234567)),
        ("1{,}234", Fraction(1234)),
        (r"-\frac{3}{4}", Fraction(-3, 4)),
        (r"\dfrac34", Fraction(3, 4)),
        (r"2\frac{1}{2}", Fraction(5, 2)),
        (r"3 \times 10^{-2}", Fraction(3, 100)),
        ("1 1/2", Fraction(3, 2)),
        ("1 234", Fraction(1234)),
        (r"1,\!234", Fraction(1234)),
        ("2.5e-4", Fraction(1, 4000)),
        (r"0.1\overline{6}", Fraction(1, 6)),
        ("0.(3)", Fraction(1, 3)),
        (r"\mathbf{12}", Fraction(12)),
    ],
)
def test_number(text: str, value: Fraction) -> None:
    found = number(text)
    assert found is not None and found.value == value


@pytest.mark.parametrize(
    "text",
    [
        "",
        "57+87",
        "5*9",
        "(3)(5)",
        "2 4",
        "1,2",
        "1/0",
        "5x",
        "5 million",
        "5 or 6",
        "--5",
        "5-",
        "1, 234",
        "12,34",
        "2 27/3",
        "1.2.3",
        "5 apples",
        "x=5",
        "1e9999",
        "\uff15",
    ],
)
def test_no_number(text: str) -> None:
    assert number(text) is None


@pytest.mark.parametrize(
    "text", [r"\gcd(4,6)", r"9^{9^{9}}", "1,23", "(5)!", "\u0665", "2^{999}", "9" * 5000]
)
def test_no_plain_number(text: str) -> None:
    assert number(text) is None


def test_words_are_not_products() -> None:
    assert words(r"\text{No}") == "no"
    assert words("sub-exponential") == "sub exponential"
    for text in ("x", "ab", "a - b", "pq - p - q", "x+1", "3 cats"):
        assert words(text) is None


def test_normal_keeps_what_matters() -> None:
    assert normal(r"$\left( 1 ,\, 2 \right)$.") == "(1,2)"


def test_a_final_line_is_read_only_without_a_box() -> None:
    assert final_answers("so\n#### 72") == ["72"]
    assert final_answers("#### 72\nmore") == []
    assert final_answers("\\boxed{5}\n#### 72") == ["5"]
    assert final_answers("72") == []


def test_what_was_thought_is_not_the_answer() -> None:
    assert final_answers(r"<think>\boxed{4}</think> \boxed{5}") == ["5"]
    assert final_answers(r"<think>\boxed{4}</think> done") == []
    assert final_answers(r"<think>\boxed{4}</think>") == ["4"]


def test_choice() -> None:
    for text in ("B", "(B)", r"\text{B}", r"\textbf{(B)}", "B.", "Option B"):
        assert choice(text) == "B"
    for text in ("b", "BC", "B or C", "B)C", "5", ""):
        assert choice(text) is None


def test_one_spelling() -> None:
    assert clean(r"\dfrac{1}{2}  \cdot\,x \leq 3") == r"\frac{1}{2} * x \le 3"
