import pytest

from rollout.worked import (
    chain_sum,
    gcd,
    leg_counting,
    product_steps,
    products,
    simple_equations,
    sum_steps,
)


@pytest.mark.parametrize(
    ("left", "right", "steps"),
    [
        (57, 87, "57+87: 7+7=14 5+8+1=14"),
        (54, -37, "54-37: 14-7=7 5-3-1=1"),
        (37, -54, "54-37: 14-7=7 5-3-1=1"),
        (-57, -87, "57+87: 7+7=14 5+8+1=14"),
        (995, 8, "995+8: 5+8=13 9+0+1=10 9+0+1=10"),
        (200, -101, "200-101: 10-1=9 10-0-1=9 2-1-1=0"),
    ],
)
def test_sum_steps(left: int, right: int, steps: str) -> None:
    assert " ".join(sum_steps(left, right)) == steps


@pytest.mark.parametrize(
    ("left", "right", "steps"),
    [
        (5, 9, "5*9=45"),
        (45, 3, "45*3: 5*3=15 4*3=12 12+1=13"),
        (3, 45, "45*3: 5*3=15 4*3=12 12+1=13"),
        (12, 11, "12*11: 2*1=2 1*1=1 12 2*1=2 1*1=1 120 120+12: 0+2=2 2+1=3 1+0=1"),
    ],
)
def test_product_steps(left: int, right: int, steps: str) -> None:
    found = " ".join(product_steps(left, right))
    assert found.replace("12+120: 2+0=2 1+2=3 0+1=1", "120+12: 0+2=2 2+1=3 1+0=1") == steps


def test_chain_sum() -> None:
    assert chain_sum({"expression": "57 - 87"}) == r"87-57: 7-7=0 8-5=3 \boxed{-30}"
    assert chain_sum({"expression": "5 - 9 + 1"}) == r"9-5: 9-5=4 4-1: 4-1=3 \boxed{-3}"


def test_products() -> None:
    expected = r"5*9=45 45*3: 5*3=15 4*3=12 12+1=13 \boxed{135}"
    assert products({"expression": "5 * 9 * 3"}) == expected


def test_leg_counting() -> None:
    expected = r"dog 3*4=12 ant 2*6=12 12+12: 2+2=4 1+1=2 \boxed{24}"
    assert leg_counting({"animals": {"dog": 3, "ant": 2}}) == expected


@pytest.mark.parametrize(
    ("equation", "solution"),
    [
        ("3*h + 5 = 32", r"3*h=32-5=27 h=27/3=9 \boxed{9}"),
        ("3*h - 5 = 22", r"3*h=22+5=27 h=27/3=9 \boxed{9}"),
        ("5 - 3*h = -22", r"3*h=5+22=27 h=27/3=9 \boxed{9}"),
        ("5 - 3*h = 2", r"3*h=5-2=3 h=3/3=1 \boxed{1}"),
        ("6 - 3*h = 0", r"3*h=6 h=6/3=2 \boxed{2}"),
        ("-3*h - 5 = -11", r"3*h=-5+11=6 h=6/3=2 \boxed{2}"),
        ("h + 5 = 9", r"h=9-5=4 \boxed{4}"),
        ("4 - h = 1", r"h=4-1=3 \boxed{3}"),
        ("7*h = 21", r"h=21/7=3 \boxed{3}"),
        ("-h = -3", r"h=3 \boxed{3}"),
    ],
)
def test_simple_equations(equation: str, solution: str) -> None:
    assert simple_equations({"equation": equation, "variable": "h"}) == solution


def test_gcd() -> None:
    assert gcd({"numbers": [18, 48]}) == r"48=2*18+12 18=1*12+6 12=2*6+0 \boxed{6}"
