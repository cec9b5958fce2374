import pytest
from hypothesis import given
from hypothesis import strategies as st

from rewards.explanations import quality, verify


@pytest.mark.parametrize(
    ("answer", "value"),
    [
        ("5*9=45 45*3: 5*3=15 4*3=12 12+1=13 It is 135.", 1.0),
        ("It is 135.", 0.5),
        ("7*9=63 63*9: 5*9=45 It is 135. Numbers are fun.", 0.75),
        ("It is 135. Numbers are fun.", 0.25),
        ("9*5=45 It is 135. Numbers are fun. So it goes. ...", 0.5),
        ("It is 135. 5=5", 0.25),  # steps come before the result
        ("It is 135. a. b. c. d. e. f.", 0.0),
        ("It is 136.", 0.0),
        ("It is 136. It is 135.", 0.0),  # it must decide
        ("135", 0.0),
        ("", 0.0),
    ],
)
def test_a_right_result_less_the_padding_after_it(answer: str, value: float) -> None:
    assert quality(answer, 135) == pytest.approx(value)
    assert verify(answer, '{"result": 135}').total == pytest.approx(value)


@given(st.text(alphabet="It is 135.\n ab", max_size=60))
def test_any_text_has_a_quality(text: str) -> None:
    assert 0.0 <= quality(text, 135) <= 1.0


@pytest.mark.parametrize("reference", ["", "{}", "[]", '{"result": "x"}', "null"])
def test_a_reference_that_is_none_is_an_error(reference: str) -> None:
    with pytest.raises(ValueError, match="result"):
        verify("It is 135.", reference)


def test_long_answers_neither_raise_nor_hang() -> None:
    assert quality(f"It is {'1' * 5000}.", 135) == 0.0
    assert quality("It is 135." + "-" * 1_000_000, 135) == 0.5
