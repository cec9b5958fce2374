"""Plain data between a program in the sandbox and those who judge it, as one line of ASCII JSON.

Lists are tagged by their first item, so that tuples, sets and dicts keep their type; instances of
subclasses travel as the data of their base, so a redefined `==` stays behind. What is no plain data
is the callers' to encode. This module runs on both sides, so it imports nearly nothing.
"""

from __future__ import annotations

import sys
from _json import encode_basestring_ascii, make_scanner
from collections.abc import Callable
from typing import Any

MUTABLE = (list, dict, set, bytearray)
MOST_BITS = 1 << 24  # of an integer
MOST_RATIO_BITS = 1 << 14  # of the parts of a fraction, which are reduced
MOST_EQUAL_HASHES = 500
MOST_EXPONENT = 10_000  # of a decimal: int() would write it out
_ATOMS: tuple[Any, ...] = (str, bytes, bytearray, int, float, complex)
_CONTAINERS: dict[Any, str] = {dict: "d", list: "l", tuple: "t", set: "s", frozenset: "f"}
_WORDS: dict[Any, str] = {None: "null", True: "true", False: "false"}


class _Context:
    """What the scanner of the standard library wants to know; `json` itself is slow to import."""

    strict = True
    object_hook = object_pairs_hook = None
    parse_float, parse_int, parse_constant = float, int, float


_scan: Callable[[str, int], tuple[Any, int]] = make_scanner(_Context())  # type: ignore[arg-type]


def parse(line: bytes) -> Any:
    """One line as JSON: for both sandboxes. Raises ValueError, StopIteration or RecursionError."""
    return _scan(line.decode("ascii"), 0)[0]


def encode(value: Any, other: Callable[[Any], str]) -> str:
    """One value as JSON. `other` encodes what is no plain data. RecursionError: nested too deep."""
    kind = type(value)
    if value is None or kind is bool:
        return _WORDS[value]
    if kind in _CONTAINERS:
        return _container(value, kind, other)
    for base in _ATOMS:
        if issubclass(kind, base):
            return _atom(value, base)
    for base in _CONTAINERS:
        if issubclass(kind, base):
            return _container(value, base, other)
    return _library(value, kind, other)


def _atom(value: Any, base: Any) -> str:
    if base is str:
        return encode_basestring_ascii(str.__str__(value))
    if base is int:
        number = int.__index__(value)
        return repr(number) if -(1 << 63) < number < 1 << 63 else f'["i","{number:x}"]'
    if base is float:
        text = float.__repr__(value)
        return text if text[-1].isdigit() else f'["n","{text}"]'
    if base is complex:
        parts = (complex.real.__get__(value), complex.imag.__get__(value))
        return f'["c",{_atom(parts[0], float)},{_atom(parts[1], float)}]'
    tag = "b" if base is bytes else "B"
    return f'["{tag}",{encode_basestring_ascii(base.decode(value, "latin-1"))}]'


def _container(value: Any, base: Any, other: Callable[[Any], str]) -> str:
    parts = [f'"{_CONTAINERS[base]}"']
    if base is dict:
        items: Any = dict.items(value)
        parts += [encode(part, other) for pair in items for part in pair]
    else:
        parts += [encode(item, other) for item in base.__iter__(value)]
    return f"[{','.join(parts)}]"


def _library(value: Any, kind: type, other: Callable[[Any], str]) -> str:
    if kind is range:
        return f'["r",{value.start},{value.stop},{value.step}]'
    name, module = kind.__name__, kind.__module__
    if kind is not getattr(sys.modules.get(module), name, None):
        return other(value)
    match (module, name):
        case ("collections", "deque"):
            return '["q"' + "".join("," + encode(item, other) for item in value) + "]"
        case ("decimal", "Decimal"):
            return f'["D","{value}"]'
        case ("fractions", "Fraction"):
            return f'["F","{value.numerator:x}","{value.denominator:x}"]'
        case ("datetime", "date" | "datetime" | "time"):
            return f'["T","{name}","{value.isoformat()}"]'
        case ("datetime", "timedelta"):
            return f'["T","{name}",{value.days},{value.seconds},{value.microseconds}]'
    return other(value)


def decode(node: Any, other: Callable[[list[Any]], Any]) -> Any:
    """The value of one parsed JSON node. `other` decodes unknown tags.

    Raises ValueError, TypeError, LookupError, ArithmeticError, AttributeError or RecursionError
    for garbage.
    """
    if type(node) is not list:
        if type(node) is dict:
            raise ValueError("an object is no value")
        return node
    tag, items = node[0], node[1:]
    if tag == "l":
        return [decode(item, other) for item in items]
    if tag == "t":
        return tuple([decode(item, other) for item in items])
    if tag == "d":
        values = [decode(item, other) for item in items]
        return dict(zip(spread(values[::2]), values[1::2], strict=True))
    if tag in ("s", "f"):
        values = spread([decode(item, other) for item in items])
        return set(values) if tag == "s" else frozenset(values)
    if tag in _DECODERS:
        return _DECODERS[tag](*items)
    if tag == "q":
        return _import("collections").deque([decode(item, other) for item in items])
    return other(node)


def spread(keys: list[Any]) -> list[Any]:
    """The keys; raises ValueError if so many share one hash that a table of them takes for ever."""
    if len(keys) > MOST_EQUAL_HASHES:
        hashes = sorted(map(hash, keys))
        for low, high in zip(hashes, hashes[MOST_EQUAL_HASHES:], strict=False):
            if low == high:
                raise ValueError("too many keys of one hash")
    return keys


def update(old: Any, new: Any) -> None:
    """Make one mutable value equal to another, in place; what is nested keeps its identity."""
    if type(old) is not type(new):
        raise TypeError("the type of an argument cannot change")
    if isinstance(old, list):
        old[:] = [_merged(*pair) for pair in zip(old, new, strict=False)] + new[len(old) :]
    elif isinstance(old, dict):
        merged = {key: _merged(old.get(key), item) for key, item in new.items()}
        old.clear()
        old.update(merged)
    elif isinstance(old, set):
        old.clear()
        old.update(new)
    else:
        old[:] = new


def _merged(old: Any, new: Any) -> Any:
    if isinstance(old, MUTABLE) and type(old) is type(new):
        update(old, new)
        return old
    return new


def _integer(text: str, most_bits: int = MOST_BITS) -> int:
    if len(text) * 4 > most_bits + 8:
        raise ValueError("the integer is too long")
    return int(text, 16)


def _complex(real: Any, imaginary: Any) -> complex:
    parts = [decode(part, _none) for part in (real, imaginary)]
    if not all(type(part) is float for part in parts):
        raise ValueError("a complex number is two floats")
    return complex(*parts)


def _decimal(text: str) -> Any:
    value = _import("decimal").Decimal(text)
    if value.is_finite() and abs(value.adjusted()) > MOST_EXPONENT:
        raise ValueError("the exponent is too large")
    return value


def _fraction(top: str, bottom: str) -> Any:
    parts = [_integer(part, MOST_RATIO_BITS) for part in (top, bottom)]
    return _import("fractions").Fraction(*parts)


def _time(name: str, *parts: Any) -> Any:
    if name not in ("date", "datetime", "time", "timedelta"):
        raise ValueError("no such kind of time")
    kind = getattr(_import("datetime"), name)
    return kind(*parts) if name == "timedelta" else kind.fromisoformat(*parts)


def _none(node: list[Any]) -> Any:
    raise ValueError("no such tag")


def _import(name: str) -> Any:
    return __import__(name)


_DECODERS: dict[Any, Callable[..., Any]] = {
    "i": _integer,
    "n": lambda text: {"nan": float("nan"), "inf": float("inf"), "-inf": float("-inf")}[text],
    "c": _complex,
    "b": lambda text: text.encode("latin-1"),
    "B": lambda text: bytearray(text.encode("latin-1")),
    "r": lambda start, stop, step: range(start, stop, step),
    "D": _decimal,
    "F": _fraction,
    "T": _time,
}
