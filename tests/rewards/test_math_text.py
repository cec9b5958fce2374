from fractions import Fraction

import pytest

from rewards.math_text import boxes, normal, number, words


@pytest.mark.parametrize(
    ("response", "expected"),
    [
        (r"so \boxed{5}", ["5"]),
        (r"\boxed{ \frac{1}{2} }", [r"\frac{1}{2}"]),
        (r"\boxed{a} or \boxed {b}", ["a", "b"]),
        (r"\boxed{\boxed{7}} \boxed{8}", ["7", "8"]),
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
        (r"5 \text{ cm}^2", Fraction(5)),
        ("5 apples", Fraction(5)),
        ("x = 5", Fraction(5)),
        (r"90^\circ", Fraction(90)),
        (r"\$12.50", Fraction(25, 2)),
    ],
)
def test_number(text: str, value: Fraction) -> None:
    found = number(text)
    assert found is not None and found.value == value


@pytest.mark.parametrize(
    "text",
    ["", "57+87", "5*9", "(3)(5)", "2 4", "1,2", "1/0", "5x", "5 million", "5 or 6", "--5", "5-"],
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
    assert words("sub-exponential") == "sub-exponential"
    for text in ("x", "ab", "a - b", "pq - p - q", "x+1", "3 cats"):
        assert words(text) is None


def test_normal_keeps_what_matters() -> None:
    assert normal(r"$\left( 1 ,\, 2 \right)$.") == "(1,2)"
