"""Objects that stay in the candidate's sandbox, as the tests see them. Runs on both sides.

A handle never equals plain data, and two handles are equal if the data in them is: the program's
own `==` is never asked. Operators reach the program only if all operands are its own, for the other
operand may be the expected value.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

MOST_ITEMS = 1_000_000


class Handle:
    """One object of the program: everything done to it is asked of the sandbox."""

    __slots__ = ("_temper_ask", "_temper_id", "_temper_type")

    def __init__(self, ask: Callable[..., Any], number: int, type_name: str) -> None:
        """`number` is the object's place in the sandbox's table."""
        object.__setattr__(self, "_temper_ask", ask)
        object.__setattr__(self, "_temper_id", number)
        object.__setattr__(self, "_temper_type", type_name)

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        return self._temper_ask("call", self, list(args), kwargs)

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__") and name.endswith("__"):
            raise AttributeError(name)
        return self._temper_ask("get", self, name)

    def __setattr__(self, name: str, value: Any) -> None:
        self._temper_ask("set", self, name, value)

    def __delattr__(self, name: str) -> None:
        self._temper_ask("del", self, name)

    def __getitem__(self, key: Any) -> Any:
        return self._temper_ask("item", self, key)

    def __setitem__(self, key: Any, value: Any) -> None:
        self._temper_ask("setitem", self, key, value)

    def __delitem__(self, key: Any) -> None:
        self._temper_ask("delitem", self, key)

    def __iter__(self) -> Iterator[Any]:
        items = self._temper_ask("iter", self)
        if not isinstance(items, Handle):
            raise TypeError("no iterator")
        for _ in range(MOST_ITEMS):
            try:
                yield next(items)
            except StopIteration:
                return
        raise OverflowError(f"more than {MOST_ITEMS} items")

    def __next__(self) -> Any:
        return self._temper_ask("next", self)

    def __contains__(self, value: Any) -> bool:
        return any(item == value for item in self)

    def __len__(self) -> int:
        return _exactly(int, self._temper_ask("len", self))

    def __bool__(self) -> bool:
        return _exactly(bool, self._temper_ask("bool", self))

    def __str__(self) -> str:
        return _exactly(str, self._temper_ask("str", self))

    def __repr__(self) -> str:
        return _exactly(str, self._temper_ask("repr", self))

    def __hash__(self) -> int:
        return hash(self._temper_type)

    def __eq__(self, other: Any) -> bool:
        if not isinstance(other, Handle):
            return False
        if self._temper_id == other._temper_id:
            return True
        state = self._temper_ask("state", self)
        return state is not None and state == other._temper_ask("state", other)

    def __enter__(self) -> Any:
        return self._temper_ask("call", self._temper_ask("get", self, "__enter__"), [], {})

    def __exit__(self, *_: Any) -> bool:
        leave = self._temper_ask("get", self, "__exit__")
        return bool(self._temper_ask("call", leave, [None, None, None], {}))

    def __instancecheck__(self, value: Any) -> bool:
        return isinstance(value, Handle) and bool(self._temper_ask("isinstance", value, self))

    def __subclasscheck__(self, kind: Any) -> bool:
        return isinstance(kind, Handle) and bool(self._temper_ask("issubclass", kind, self))

    def __lt__(self, other: Any) -> bool:
        return bool(_operate("lt", self, other))

    def __le__(self, other: Any) -> bool:
        return bool(_operate("le", self, other))

    def __gt__(self, other: Any) -> bool:
        return bool(_operate("gt", self, other))

    def __ge__(self, other: Any) -> bool:
        return bool(_operate("ge", self, other))

    def __add__(self, other: Any) -> Any:
        return _operate("add", self, other)

    def __sub__(self, other: Any) -> Any:
        return _operate("sub", self, other)

    def __mul__(self, other: Any) -> Any:
        return _operate("mul", self, other)

    def __matmul__(self, other: Any) -> Any:
        return _operate("matmul", self, other)

    def __truediv__(self, other: Any) -> Any:
        return _operate("truediv", self, other)

    def __and__(self, other: Any) -> Any:
        return _operate("and_", self, other)

    def __or__(self, other: Any) -> Any:
        return _operate("or_", self, other)

    def __neg__(self) -> Any:
        return self._temper_ask("operate", "neg", self)

    def __abs__(self) -> Any:
        return self._temper_ask("operate", "abs", self)


def _operate(name: str, left: Handle, right: Any) -> Any:
    if not isinstance(right, Handle):
        raise TypeError(f"{name} of an object of the program and plain data is not asked of it")
    return left._temper_ask("operate", name, left, right)


def _exactly(kind: type, value: Any) -> Any:
    if type(value) is not kind:
        raise TypeError(f"no {kind.__name__}")
    return value
