"""The line format between a program and its judge."""

import json
import math
import time

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from rewards.programs.values import MOST_EQUAL_HASHES, decode, encode, parse, update

ATOMS = (
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text()
    | st.binary() | st.complex_numbers(allow_nan=False) | st.fractions() | st.dates()
    | st.decimals(allow_nan=False, allow_infinity=False, places=3) | st.timedeltas()
)  # fmt: skip
VALUES = st.recursive(
    ATOMS,
    lambda inner: (
        st.lists(inner) | st.tuples(inner, inner) | st.sets(ATOMS) | st.dictionaries(ATOMS, inner)
    ),
    max_leaves=20,
)


def _refuse(value: object) -> str:
    raise AssertionError(f"{value!r} is plain data")


def _back(line: str) -> object:
    return decode(json.loads(line), _refuse)  # type: ignore[arg-type]


@settings(max_examples=100, deadline=None)
@given(VALUES)
def test_plain_data_comes_back_as_it_was(value: object) -> None:
    line = encode(value, _refuse)
    assert line.isascii() and "\n" not in line
    assert _back(line) == value
    assert type(_back(line)) is type(value)
    assert decode(parse(line.encode()), _refuse) == value  # type: ignore[arg-type]


@settings(max_examples=150, deadline=None)
@given(st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=3)
    | st.sampled_from("ltdsfincbBrDFTqo"),
    lambda inner: st.lists(inner) | st.dictionaries(st.text(max_size=2), inner),
    max_leaves=15,
))  # fmt: skip
def test_garbage_raises_what_is_caught_or_is_plain_data(node: object) -> None:
    def refuse(_: object) -> object:
        raise ValueError("unknown")

    try:
        value = decode(node, refuse)
    except (ValueError, TypeError, LookupError, ArithmeticError, AttributeError):
        return
    hash(repr(value))


@pytest.mark.parametrize(
    "line",
    [
        '["i","' + "f" * (1 << 23) + '"]',
        '["D","1e999999999"]',
        '["F","' + "1" * 10_000 + '","3"]',
        '["F","1","0"]',
        '["T","object"]',
        '["T","__class__","x"]',
        '["d",1]',
        '["c","1","2"]',
        "{}",
        '["s",["l"]]',
    ],
)
def test_dangerous_lines_are_refused(line: str) -> None:
    with pytest.raises((ValueError, TypeError, ArithmeticError)):
        _back(line)


def test_keys_of_one_hash_are_refused_at_once() -> None:
    prime = (1 << 61) - 1
    line = encode([k * prime for k in range(50_000)], _refuse).replace('"l"', '"s"', 1)
    start = time.monotonic()
    with pytest.raises(ValueError, match="hash"):
        _back(line)
    assert time.monotonic() - start < 10.0
    few = encode([k * prime for k in range(MOST_EQUAL_HASHES)], _refuse).replace('"l"', '"s"', 1)
    assert len(_back(few)) == MOST_EQUAL_HASHES  # type: ignore[arg-type]


def test_subclasses_travel_as_the_data_of_their_base() -> None:
    class Liar(int):
        def __eq__(self, other: object) -> bool:
            return True

        __hash__ = int.__hash__

        def __repr__(self) -> str:
            return "9"

    assert encode(Liar(5), _refuse) == "5"
    assert math.isnan(_back(encode(float("nan"), _refuse)))  # type: ignore[arg-type]


def test_update_keeps_identity() -> None:
    inner = [1]
    outer = [inner, {"a": 1}]
    update(outer, [[1, 2], {"b": 2}, 3])
    assert outer == [[1, 2], {"b": 2}, 3]
    assert inner == [1, 2] and outer[0] is inner
    with pytest.raises(TypeError):
        update(outer, {})
