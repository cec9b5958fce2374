import pytest

from rewards.mathematics.names import is_name


@pytest.mark.parametrize(
    "side",
    ["x", "x_1", "f(x)", "P(X > 1)", "P(A|B)", "|S|", "m+n", r"\angle A", r"\nu", r"\nabla f",
     r"\text{Total}", r"\text{Number of wrong answers}", "(x, y)", r"(r, \theta)", "f'(x)",
     r"\frac{dy}{dx}", r"\det A", "A^{-1}", r"\overline{AB}"],
)  # fmt: skip
def test_names(side: str) -> None:
    assert is_name(side)


@pytest.mark.parametrize(
    "side",
    ["-x", "2x", "x^2", "5", r"\not x", r"x \not", r"\neg x", r"\lnot x", r"\pm x", r"x \nless",
     r"\text{not}", r"\text{not } x", r"\text{wrong}", r"\text{if } x", r"\text{never}", "e", "i"],
)  # fmt: skip
def test_what_denies_or_computes_is_no_name(side: str) -> None:
    assert not is_name(side)
