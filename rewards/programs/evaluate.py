"""Evaluates the plain tests here, outside the sandbox: a small whitelist of Python.

`assert CALL == LITERAL` and its kin need no second sandbox: constants, displays, comparisons,
arithmetic with bounded operands, a few builtins, variables, and calls of the program, which are
asked of its sandbox and answer with plain data. Whatever else a test holds makes it not plain.
"""

import ast
import math
import operator
from collections.abc import Callable
from typing import Any, Protocol

from rewards.errors import RewardError
from rewards.programs.bounds import bound, countable, hashed, lazy, rounded, total
from rewards.programs.handles import Handle
from rewards.programs.reference import Step


class Program(Protocol):
    """What can be asked of the program."""

    def call(self, name: str, args: list[object], kwargs: dict[str, object]) -> object:
        """Call one of its functions."""


def is_plain(steps: tuple[Step, ...], targets: tuple[str, ...]) -> bool:
    """Whether all statements of the tests can be evaluated here."""
    return all(_plain_statement(step.node, targets) for step in steps)


class Evaluator:
    """Runs plain statements, with variables, against one program."""

    def __init__(self, program: Program, targets: tuple[str, ...]) -> None:
        """`targets` are the names that the program answers to."""
        self._program = program
        self._targets = targets
        self._variables: dict[str, object] = {}
        self._came: object = None

    def problem(self, statement: ast.stmt) -> str:
        """Run one statement: empty if it holds, else what is wrong. Raises `RewardError`."""
        try:
            return self._run(statement)
        except RewardError:
            raise
        except Exception as error:  # values of the program meet any operator here
            return _said(error)

    def _run(self, statement: ast.stmt) -> str:
        if isinstance(statement, ast.Assert):
            return "" if self._value(statement.test) else f"got {short(self._came)}"
        if isinstance(statement, ast.Assign):
            value = self._value(statement.value)
            for target in statement.targets:
                self._assign(target, value)
        elif isinstance(statement, ast.Expr):
            self._value(statement.value)
        return ""

    def _assign(self, target: ast.expr, value: object) -> None:
        if isinstance(target, ast.Tuple | ast.List):
            values = self._listed(value)
            for part, item in zip(target.elts, values, strict=True):
                self._assign(part, item)
        else:
            assert isinstance(target, ast.Name)
            self._variables[target.id] = value

    def _value(self, node: ast.expr) -> Any:
        return _EVALUATE[type(node)](self, node)

    def _name(self, node: ast.Name) -> Any:
        if node.id in self._variables:
            return self._variables[node.id]
        raise NameError(f"name '{node.id}' is not defined")

    def _display(self, node: ast.List | ast.Tuple | ast.Set) -> Any:
        return _DISPLAYS[type(node)](self._value(item) for item in node.elts)

    def _dict(self, node: ast.Dict) -> Any:
        pairs = zip(node.keys, node.values, strict=True)
        return {self._value(key): self._value(value) for key, value in pairs if key is not None}

    def _unary(self, node: ast.UnaryOp) -> Any:
        return _UNARY[type(node.op)](self._value(node.operand))

    def _binary(self, node: ast.BinOp) -> Any:
        left, right = self._value(node.left), self._value(node.right)
        bound(node.op, left, right)
        return _BINARY[type(node.op)](left, right)

    def _logic(self, node: ast.BoolOp) -> Any:
        value: object = None
        for operand in node.values:
            value = self._value(operand)
            if bool(value) is isinstance(node.op, ast.Or):
                break
        return value

    def _compare(self, node: ast.Compare) -> Any:
        left = self._value(node.left)
        for operation, comparator in zip(node.ops, node.comparators, strict=True):
            right = self._value(comparator)
            if isinstance(right, range) and not isinstance(left, int):
                countable(right)  # `in` would look at each
            if not _COMPARE[type(operation)](left, right):
                return False
            left = right
        return True

    def _subscript(self, node: ast.Subscript) -> Any:
        value = self._value(node.value)
        if isinstance(node.slice, ast.Slice):
            parts = (node.slice.lower, node.slice.upper, node.slice.step)
            return value[slice(*(None if part is None else self._value(part) for part in parts))]
        return value[self._value(node.slice)]

    def _attribute(self, node: ast.Attribute) -> Any:
        return getattr(math, node.attr)

    def _call(self, node: ast.Call) -> Any:
        if isinstance(node.func, ast.Name) and node.func.id == "isinstance":
            kind = node.args[1]
            assert isinstance(kind, ast.Name)
            return isinstance(self._value(node.args[0]), _BUILTINS[kind.id])
        args = [item for argument in node.args for item in self._argument(argument)]
        kwargs = {str(word.arg): self._value(word.value) for word in node.keywords}
        if isinstance(node.func, ast.Attribute):
            return getattr(math, node.func.attr)(*args, **kwargs)
        assert isinstance(node.func, ast.Name)
        if node.func.id in self._targets:
            self._came = self._program.call(node.func.id, args, kwargs)
            return self._came
        if node.func.id not in ("len", "bool", "str"):
            args = [self._listed(value) if lazy(value) else value for value in args]
        if node.func.id in ("set", "frozenset", "dict"):
            args = [hashed(node.func.id, value) for value in args]
        return _BUILTINS[node.func.id](*args, **kwargs)

    def _argument(self, node: ast.expr) -> list[Any]:
        if isinstance(node, ast.Starred):
            return self._listed(self._value(node.value))
        return [self._value(node)]

    def _listed(self, value: Any) -> list[Any]:
        countable(value)
        return list(value)


def _said(error: Exception) -> str:
    """An exception in words; its text may ask an object of the program, which raises again."""
    try:
        return f"{type(error).__name__}: {error}".removeprefix("ProgramError: ")
    except RewardError:
        raise
    except Exception:
        return type(error).__name__


def _plain_statement(node: ast.stmt, targets: tuple[str, ...]) -> bool:
    if isinstance(node, ast.Assert):
        return _plain(node.test, targets)
    if isinstance(node, ast.Assign):
        return _plain(node.value, targets) and all(map(_plain_target, node.targets))
    if isinstance(node, ast.Expr):
        return _plain(node.value, targets)
    return isinstance(node, ast.Import) and all(
        alias.name == "math" and alias.asname is None for alias in node.names
    )


def _plain_target(node: ast.expr) -> bool:
    if isinstance(node, ast.Tuple | ast.List):
        return all(map(_plain_target, node.elts))
    return isinstance(node, ast.Name)


def _plain(node: ast.AST, targets: tuple[str, ...]) -> bool:
    if isinstance(node, ast.Call):
        return _plain_call(node, targets)
    if isinstance(node, ast.Attribute):
        return _plain_attribute(node)
    if isinstance(node, ast.Name):
        return node.id not in _BUILTINS and node.id not in targets
    if isinstance(node, ast.Dict) and None in node.keys:
        return False
    if isinstance(node, ast.expr) and not isinstance(node, ast.Slice):
        if type(node) not in _EVALUATE:
            return False
    elif isinstance(node, ast.operator | ast.cmpop | ast.unaryop) and not (
        type(node) in _BINARY or type(node) in _COMPARE or type(node) in _UNARY
    ):
        return False
    return all(_plain(child, targets) for child in ast.iter_child_nodes(node))


def _plain_call(node: ast.Call, targets: tuple[str, ...]) -> bool:
    values: list[ast.expr] = [
        value.value if isinstance(value, ast.Starred) else value
        for value in (*node.args, *(word.value for word in node.keywords))
    ]
    if any(word.arg is None for word in node.keywords):
        return False
    if isinstance(node.func, ast.Attribute):
        known = _plain_attribute(node.func)
    elif not isinstance(node.func, ast.Name):
        known = False
    elif node.func.id == "isinstance" and len(values) == 2:
        kind = values.pop()
        known = isinstance(kind, ast.Name) and isinstance(_BUILTINS.get(kind.id), type)
    else:
        known = node.func.id in targets or node.func.id in _BUILTINS
    return known and all(_plain(value, targets) for value in values)


def _plain_attribute(node: ast.Attribute) -> bool:
    return isinstance(node.value, ast.Name) and node.value.id == "math" and node.attr in _MATH


def short(value: object) -> str:
    """A value as a person would like to see it, on one line."""
    if isinstance(value, Handle):
        return f"an object of type {value._temper_type}"
    try:
        text = repr(value) if not isinstance(value, str) else repr(value[:200])
    except (ValueError, RecursionError):  # an integer of too many digits, a nest too deep
        text = f"a huge {type(value).__name__}"
    return text if len(text) <= 80 else f"{text[:77]}..."


_MATH = ("ceil", "e", "fabs", "floor", "inf", "isclose", "isinf", "isnan", "nan", "pi", "sqrt")
_BUILTINS: dict[str, Any] = {
    "abs": abs, "all": all, "any": any, "bool": bool, "dict": dict, "float": float,
    "frozenset": frozenset, "int": int, "len": len, "list": list, "max": max, "min": min,
    "round": rounded, "set": set, "sorted": sorted, "str": str, "sum": total, "tuple": tuple,
}  # fmt: skip
_UNARY: dict[type, Any] = {
    ast.Not: operator.not_, ast.USub: operator.neg, ast.UAdd: operator.pos,
    ast.Invert: operator.invert,
}  # fmt: skip
_BINARY: dict[type, Any] = {
    ast.Add: operator.add, ast.Sub: operator.sub, ast.Mult: operator.mul,
    ast.Div: operator.truediv, ast.FloorDiv: operator.floordiv, ast.Mod: operator.mod,
    ast.Pow: operator.pow, ast.BitAnd: operator.and_, ast.BitOr: operator.or_,
    ast.BitXor: operator.xor,
}  # fmt: skip
_COMPARE: dict[type, Any] = {
    ast.Eq: operator.eq, ast.NotEq: operator.ne, ast.Lt: operator.lt, ast.LtE: operator.le,
    ast.Gt: operator.gt, ast.GtE: operator.ge, ast.Is: operator.is_, ast.IsNot: operator.is_not,
    ast.In: lambda item, items: item in items, ast.NotIn: lambda item, items: item not in items,
}  # fmt: skip
_DISPLAYS: dict[type, Any] = {ast.List: list, ast.Tuple: tuple, ast.Set: set}
_EVALUATE: dict[type, Callable[[Evaluator, Any], Any]] = {
    ast.Constant: lambda _, node: node.value,
    ast.Name: Evaluator._name,
    ast.List: Evaluator._display,
    ast.Tuple: Evaluator._display,
    ast.Set: Evaluator._display,
    ast.Dict: Evaluator._dict,
    ast.UnaryOp: Evaluator._unary,
    ast.BinOp: Evaluator._binary,
    ast.BoolOp: Evaluator._logic,
    ast.Compare: Evaluator._compare,
    ast.Subscript: Evaluator._subscript,
    ast.Attribute: Evaluator._attribute,
    ast.Call: Evaluator._call,
}
