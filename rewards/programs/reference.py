"""What a program is tested by: the reference of a code task, read and checked once."""

import ast
import builtins
import json
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

from rewards.programs.languages import LANGUAGES, Language

SETUP = -1  # the entry of its steps
TRUSTED_MODULES = frozenset({
    "bisect", "cmath", "collections", "copy", "datetime", "decimal", "fractions", "functools",
    "heapq", "io", "itertools", "json", "math", "operator", "os", "random", "re", "statistics",
    "string", "sys", "time", "types", "typing", "unittest",
})  # fmt: skip
"""Modules that tests may use without importing them."""
TRUSTED_NAMES = {
    "Counter": "collections", "OrderedDict": "collections", "defaultdict": "collections",
    "deque": "collections", "namedtuple": "collections", "Decimal": "decimal",
    "Fraction": "fractions", "isclose": "math", "sqrt": "math", "inf": "math", "pi": "math",
    "timedelta": "datetime", "date": "datetime",
}  # fmt: skip
"""Well-known names that tests may use without importing them: never the program's own."""


@dataclass(frozen=True, slots=True)
class Case:
    """One stdin/stdout test."""

    stdin: str
    stdout: str


@dataclass(frozen=True, slots=True)
class Step:
    """One top-level statement of the tests."""

    node: ast.stmt
    source: str  # for `why`
    entry: int  # index of the text that it is from; SETUP
    is_test: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class CodeReference:
    """The tests of one task: either `cases`, or `steps` (statements, in order)."""

    language: Language
    cases: tuple[Case, ...] = ()
    steps: tuple[Step, ...] = ()
    targets: tuple[str, ...] = ()  # names that the program must define
    trusted: tuple[tuple[str, str], ...] = ()  # (name, module) that the tests use unimported
    helpers: str = ""  # classes of the setup, which live with the program

    @property
    def tests(self) -> int:
        """How many tests there are."""
        return len(self.cases) or sum(step.is_test for step in self.steps)


@lru_cache(maxsize=64)
def parse_reference(reference: str) -> CodeReference:
    """Read the reference of a code task. Raises ValueError, saying what is wrong.

    A JSON object with one of `tests` (texts of Python; every top-level assert is a test, and so is
    a text without one), `cases` (`{"stdin", "stdout"}`) or `calls` (`{"function", "args",
    "expected"}`); optionally `language` and `setup` (statements before the tests).
    """
    try:
        row = json.loads(reference)
    except (ValueError, RecursionError) as error:
        raise ValueError(f"the reference of a code task is a JSON object: {error}") from error
    if not isinstance(row, dict):
        raise ValueError("the reference of a code task is a JSON object")
    unknown = sorted(row.keys() - {"tests", "cases", "calls", "language", "setup"})
    if unknown:
        raise ValueError(f"unknown key {unknown[0]!r}; known: tests, cases, calls, language, setup")
    language = _language(row.get("language", "python"))
    given = [key for key in ("tests", "cases", "calls") if row.get(key)]
    if len(given) != 1:
        raise ValueError(f"give tests, cases or calls, and at least one; got {given or 'none'}")
    if given == ["cases"]:
        return CodeReference(language=language, cases=_cases(row["cases"]))
    if language is not LANGUAGES["python"]:
        raise ValueError(f"{given[0]} are for Python; programs in {language.name} need cases")
    texts = row["tests"] if given == ["tests"] else _calls(row["calls"])
    return _python(language, texts, row.get("setup") or "")


def _language(name: object) -> Language:
    for language in LANGUAGES.values():
        if isinstance(name, str) and name.lower() in (language.name, *language.labels):
            return language
    raise ValueError(f"unknown language {name!r}; known: {', '.join(LANGUAGES)}")


def _cases(rows: Any) -> tuple[Case, ...]:
    if not isinstance(rows, list) or not all(
        isinstance(row, dict)
        and isinstance(row.get("stdin", ""), str)
        and isinstance(row.get("stdout"), str)
        for row in rows
    ):
        raise ValueError('cases are a list of {"stdin": str, "stdout": str}')
    return tuple(Case(row.get("stdin", ""), row["stdout"]) for row in rows)


def _calls(rows: Any) -> list[str]:
    texts = []
    for row in rows if isinstance(rows, list) else [None]:
        if not (
            isinstance(row, dict)
            and isinstance(row.get("function"), str)
            and row["function"].isidentifier()
            and isinstance(row.get("args", []), list)
            and "expected" in row
        ):
            raise ValueError('calls are a list of {"function": str, "args": list, "expected": ...}')
        arguments = ", ".join(repr(argument) for argument in row.get("args", []))
        texts.append(f"assert {row['function']}({arguments}) == {row['expected']!r}")
    return texts


def _python(language: Language, texts: Any, setup: Any) -> CodeReference:
    if not isinstance(texts, list) or not all(isinstance(text, str) for text in texts):
        raise ValueError("tests are a list of strings")
    if not isinstance(setup, str):
        raise ValueError("setup is a string")
    preparation = _parse(setup, "setup").body
    classes = [node for node in preparation if isinstance(node, ast.ClassDef)]
    imports = [node for node in preparation if isinstance(node, ast.Import | ast.ImportFrom)]
    steps = [_step(node, setup, SETUP, False) for node in preparation if node not in classes]
    for entry, text in enumerate(texts):
        steps += _entry(_parse(text, f"test {entry + 1}").body, text, entry)
    if not any(step.is_test for step in steps):
        raise ValueError("the tests hold no assert and call nothing")
    targets, trusted = _names(steps)
    return CodeReference(
        language=language,
        steps=tuple(steps),
        targets=targets,
        trusted=trusted,
        helpers="\n".join(ast.unparse(node) for node in (*imports, *classes)) if classes else "",
    )


def _parse(text: str, what: str) -> ast.Module:
    try:
        return ast.parse(text.strip("\n\r "))
    except (SyntaxError, ValueError, RecursionError, MemoryError) as error:
        raise ValueError(f"{what} is no Python: {error}") from error


def _entry(body: list[ast.stmt], text: str, entry: int) -> list[Step]:
    """The steps of one text. Its tests are its asserts and what works after the last of them, or
    without an assert its last working statement; then test functions that nothing calls, and the
    methods of test cases."""
    body = [node for node in body if not (_starts_unittest(node) or _imports_program(node))]
    working = [place for place, node in enumerate(body) if isinstance(node, _WORKING)]
    asserts = [place for place, node in enumerate(body) if isinstance(node, ast.Assert)]
    tests = set(asserts) or set(working[-1:])
    last = max(tests, default=len(body))
    tests |= {place for place in range(last + 1, len(body)) if _works(body[place])}
    steps = [_step(node, text, entry, place in tests) for place, node in enumerate(body)]
    for is_test, call in _uncalled(body):
        steps.append(_step(ast.parse(call).body[0], call, entry, is_test))
    return steps


_WORKING = (ast.Expr, ast.For, ast.While, ast.If, ast.Try, ast.With, ast.Match)


def _starts_unittest(node: ast.stmt) -> bool:
    """`unittest.main()`, guarded or not: it would look for tests where ours are not."""
    if isinstance(node, ast.If) and len(node.body) == 1:
        node = node.body[0]
    return isinstance(node, ast.Expr) and ast.unparse(node).startswith("unittest.main(")


def _imports_program(node: ast.stmt) -> bool:
    """`from solution import f`: its names are the program's anyway."""
    if not isinstance(node, ast.ImportFrom) or node.module != "solution":
        return False
    return not any(alias.asname for alias in node.names)


def _works(node: ast.stmt) -> bool:
    """Whether a statement may fail because of the program."""
    if isinstance(node, ast.Assign):
        return any(isinstance(part, ast.Call) for part in ast.walk(node))
    prints = isinstance(node, ast.Expr) and ast.unparse(node).startswith("print(")
    return isinstance(node, _WORKING) and not prints


def _uncalled(body: list[ast.stmt]) -> Iterable[tuple[bool, str]]:
    """(whether it is a test, call) for functions and test cases that a test runner would find."""
    used = {node.id for part in body for node in ast.walk(part) if isinstance(node, ast.Name)}
    for node in body:
        if isinstance(node, ast.FunctionDef) and node.name not in used:
            needs = node.args.args or node.args.posonlyargs or node.args.kwonlyargs
            if node.name.startswith("test") and not needs:
                yield True, f"{node.name}()"
        if isinstance(node, ast.ClassDef) and any(
            ast.unparse(base).endswith("TestCase") for base in node.bases
        ):
            yield False, f"{node.name}.setUpClass()"
            for part in node.body:
                if isinstance(part, ast.FunctionDef) and part.name.startswith("test"):
                    yield True, f"{node.name}({part.name!r}).debug()"  # raises what fails


def _step(node: ast.stmt, text: str, entry: int, is_test: bool) -> Step:
    source = " ".join((ast.get_source_segment(text.strip("\n\r "), node) or text).split())
    return Step(node, source if len(source) <= 100 else f"{source[:97]}...", entry, is_test)


def _names(steps: list[Step]) -> tuple[tuple[str, ...], tuple[tuple[str, str], ...]]:
    """Names that the tests use and do not bind: the program's, and those of trusted modules.

    Builtins and well-known names stay what they are, whatever the program defines, unless the
    tests use nothing else: `assert sum(2, 3) == 6` tests a function of the name `sum`. A name that
    is only compared with would be an expected value of the program's making: it stays unknown.
    """
    loaded: Counter[str] = Counter()
    compared: Counter[str] = Counter()
    modules: set[str] = set()
    nodes = [node for step in steps for node in ast.walk(step.node)]
    for node in nodes:
        if isinstance(node, ast.Name):
            loaded[node.id] += 1
        elif isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name):
            modules.add(node.value.id)
        elif isinstance(node, ast.Compare):
            operands = [node.left, *node.comparators]
            compared.update(part.id for part in operands if isinstance(part, ast.Name))
    bound = {name for node in nodes for name in _bound_by(node)}
    known = dict(TRUSTED_NAMES) | {name: name for name in modules if name in TRUSTED_MODULES}
    free = [name for name in loaded if name not in bound and loaded[name] > compared[name]]
    targets = [name for name in free if name not in known and not hasattr(builtins, name)]
    if not targets:
        targets = list(dict.fromkeys(filter(None, map(_outermost, steps))))
    trusted = [(name, known[name]) for name in free if name in known and name not in targets]
    return tuple(targets), tuple(trusted)


def _bound_by(node: ast.AST) -> tuple[str, ...]:
    """The names that one node gives a value."""
    match node:
        case ast.Name(id=name, ctx=ast.Store() | ast.Del()) | ast.arg(arg=name):
            return (name,)
        case ast.FunctionDef(name=name) | ast.AsyncFunctionDef(name=name) | ast.ClassDef(name=name):
            return (name,)
        case ast.alias(name=name, asname=other):
            return ((other or name).split(".")[0],)
        case ast.ExceptHandler(name=str(name)):
            return (name,)
    return ()


def _outermost(step: Step) -> str:
    """The function whose result an assert judges."""
    node: ast.AST = step.node
    if not isinstance(node, ast.Assert):
        return ""
    node = node.test.left if isinstance(node.test, ast.Compare) else node.test
    if isinstance(node, ast.Call) and isinstance(node.func, ast.Name):
        return node.func.id
    return ""
