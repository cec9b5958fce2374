"""Verdicts: what passes, what fails, and what is said of it."""

import json
import threading
import time

import pytest

from rewards.code_tests import CodeVerifier, parse_reference
from rewards.programs.cases import difference
from rewards.sandbox_config import CodeConfig

VERIFIER = CodeVerifier(CodeConfig(timeout_s=2.0))
SQUARE = "def f(n):\n    return n * n\n"


def _verify(program: str, verifier: CodeVerifier = VERIFIER, **reference: object) -> float:
    return verifier.verify(program, json.dumps(reference)).total


def _why(program: str, **reference: object) -> str:
    return VERIFIER.verify(program, json.dumps(reference)).why


@pytest.mark.parametrize(
    "test",
    [
        "assert f(3) == 9",
        "assert 9 == f(3)",
        "assert f(3) == 9 and f(2) == 4",
        "assert f(3) != 8",
        "assert f(3)",
        "assert not f(0)",
        "assert f(3) is not None",
        "assert f(3) in (8, 9)",
        "assert f(3) not in [1, 2]",
        "assert 8 < f(3) <= 9",
        "assert abs(f(1.5) - 2.25) < 1e-9",
        "assert math.isclose(f(1.5), 2.25)",
        "assert [f(1), f(2)] == [1, 4]",
        "assert sorted([f(2), f(1)]) == [1, 4]",
        "assert {f(2), f(-2)} == {4}",
        "assert isinstance(f(2), int)",
        "assert f(*[3]) == 9",
        "assert f(n=3) == 9",
        "assert round(f(1.1), 2) == 1.21",
        "x = 3\ny = x + 1\nassert f(x) == 9\nassert f(y) == 16",
        "assert f(f(2)) == 16",
        "assert str(f(3)) == '9'",
        "assert all([f(1) == 1, f(2) == 4])",
        "assert [f(n) for n in range(4)] == [0, 1, 4, 9]",
        "for n in range(5):\n    assert f(n) == n ** 2",
        "import random\nn = random.randrange(100)\nassert f(n) == n * n",
        "def check(candidate):\n    assert candidate(5) == 25\ncheck(f)",
        "def test_f():\n    assert f(3) == 9",
        "try:\n    f('a')\n    raise SystemExit\nexcept TypeError:\n    pass",
        "assert list(map(f, [1, 2])) == [1, 4]",
        "assert f'{f(3)}' == '9'",
    ],
)
def test_forms_of_tests(test: str) -> None:
    assert _verify(SQUARE, tests=[test]) == 1.0, _why(SQUARE, tests=[test])
    assert _verify("def f(n): return 7.5", tests=[test, "assert f(3) == 9"]) == 0.0


@pytest.mark.parametrize(
    ("returned", "expected"),
    [
        ("(1, 2)", "(1, 2)"),
        ("{1, 2}", "{2, 1}"),
        ("frozenset([1])", "{1}"),
        ("{'a': [1, (2, 3)], 2: None}", "{2: None, 'a': [1, (2, 3)]}"),
        ("b'ab'", "b'ab'"),
        ("'\\u00e9\\n\"'", "'\\u00e9\\n\"'"),
        ("2 ** 200", "2 ** 200"),
        ("-(2 ** 200)", "-(2 ** 200)"),
        ("1 + 2j", "1 + 2j"),
        ("float('inf')", "float('inf')"),
        ("range(3)", "range(3)"),
        ("__import__('collections').Counter('aab')", "{'a': 2, 'b': 1}"),
        ("__import__('collections').OrderedDict(a=1)", "{'a': 1}"),
        ("__import__('collections').defaultdict(int, {1: 2})", "{1: 2}"),
        ("__import__('fractions').Fraction(1, 3)", "Fraction(1, 3)"),
        ("__import__('decimal').Decimal('1.10')", "Decimal('1.1')"),
        ("__import__('datetime').date(2024, 2, 29)", "datetime.date(2024, 2, 29)"),
        ("__import__('enum').IntEnum('E', 'a b').b", "2"),
        ("True", "1"),
    ],
)
def test_values_that_come_back(returned: str, expected: str) -> None:
    program = f"def g():\n    return {returned}\n"
    assert _verify(program, tests=[f"assert g() == {expected}"]) == 1.0
    assert _verify(program, tests=[f"assert g() != {expected}"]) == 0.0


@pytest.mark.parametrize(
    ("returned", "expected"),
    [("[1, 2]", "(1, 2)"), ("'9'", "9"), ("9", "'9'"), ("object()", "None")],
)
def test_values_of_other_types_are_not_equal(returned: str, expected: str) -> None:
    assert _verify(f"def g(): return {returned}", tests=[f"assert g() == {expected}"]) == 0.0


def test_arguments_changed_in_place() -> None:
    program = "def g(rows):\n    rows[0].append(3)\n    rows.pop()\n"
    plain = "rows = [[1], [2]]\ninner = rows[0]\ng(rows)\nassert rows == [[1, 3]]"
    plain += "\nassert inner == [1, 3]"
    assert _verify(program, tests=[plain]) == 1.0
    assert _verify(program, tests=[f"if True:\n    rows = [[1], [2]]\n    g(rows)\n{plain}"]) == 1.0


def test_classes_are_compared_by_their_data() -> None:
    program = (
        "class P:\n    def __init__(self, x): self.x = x\n"
        "    def __eq__(self, other): return True\n    def __hash__(self): return 0\n"
        "    def move(self): self.x += 1\n    def __lt__(self, other): return self.x < other.x\n"
    )
    tests = ["p = P(1)\np.move()\nassert p.x == 2\nassert p == P(2)", "assert P(1) < P(2)"]
    assert _verify(program, tests=tests) == 1.0
    assert _verify(program, tests=["assert P(1) == P(2)"]) == 0.0
    assert _verify(program, tests=["assert P(1) == 1"]) == 0.0


def test_methods_of_plain_data_are_not_asked_of_objects() -> None:
    program = (
        "class Yes:\n    def __getattr__(self, name): return lambda *a: True\n"
        "def f(n): return Yes()\n"
        "class Trie:\n    def startswith(self, text): return text == 'a'\n"
    )
    assert _verify(program, tests=["assert f(3).startswith('a')"]) == 0.0
    assert _verify(program, tests=["assert f(3).issubset({1})"]) == 0.0
    assert _verify(program, tests=["assert Trie().startswith('a')"]) == 1.0
    assert _verify("def f(n): return 'abc'", tests=["assert f(3).startswith('a')"]) == 1.0


def test_functions_of_the_tests_can_be_called_back() -> None:
    program = "def each(function, items): return [function(item) for item in items]"
    assert _verify(program, tests=["assert each(lambda x: x + 1, [1, 2]) == [2, 3]"]) == 1.0
    assert _verify(program, tests=["assert each(str, [1]) == ['1']"]) == 1.0


def test_builtins_of_the_tests_are_not_the_programs() -> None:
    program = "def abs(x): return 0\ndef f(n): return 5\ndef sorted(x): return [9]\n"
    assert _verify(program, tests=["assert abs(f(3) - 9) < 1e-6"]) == 0.0
    assert _verify(program, tests=["assert sorted([f(3)]) == [9]"]) == 0.0
    program = "class Counter:\n    pass\ndef f(n): return 'b'\n"
    assert _verify(program, tests=["assert Counter(f(3)) == Counter('a')"]) == 0.0


def test_a_function_may_have_the_name_of_a_builtin() -> None:
    assert _verify("def sum(a, b): return a + b", tests=["assert sum(2, 3) == 5"]) == 1.0
    assert _verify("def sum(a, b): return a - b", tests=["assert sum(2, 3) == 5"]) == 0.0


def test_expected_values_are_never_the_programs() -> None:
    program = "YES = NO = 1\ndef f(n): return 1\n"
    assert _verify(program, tests=["assert f(3) == YES", "assert f(4) == NO"]) == 0.0


def test_programs_that_read_print_or_leave_when_they_load() -> None:
    assert _verify(f"print('hello')\n{SQUARE}input()", tests=["assert f(3) == 9"]) == 1.0
    assert _verify(f"{SQUARE}raise SystemExit", tests=["assert f(3) == 9"]) == 1.0
    assert (
        _verify(f"{SQUARE}if __name__ == '__main__':\n    1 / 0", tests=["assert f(3) == 9"]) == 1.0
    )
    assert _verify(f"{SQUARE}1 / 0", tests=["assert f(3) == 9"]) == 0.0


def test_partial_credit() -> None:
    verifier = CodeVerifier(CodeConfig(partial_credit=True))
    tests = ["assert f(2) == 4", "assert f(3) == 6\nassert f(0) == 0", "assert f(5) == 25"]
    assert _verify("def f(n): return 2 * n", verifier, tests=tests) == 0.75
    assert _verify(SQUARE, verifier, tests=tests) == 0.75
    program = "import os\ndef f(n): return 4 if n == 2 else os._exit(0)"
    assert _verify(program, verifier, tests=tests) == 0.25  # tests that never ran have failed
    cases = [{"stdin": "1", "stdout": "1"}, {"stdin": "2", "stdout": "4"}]
    assert _verify("print(input())", verifier, cases=cases) == 0.5
    loops = ["for n in [2, 3]:\n    assert f(n) == 4", "for n in [2]:\n    assert f(n) == 4"]
    assert _verify("def f(n): return 2 * n", verifier, tests=loops) == 0.5


def test_says_which_test_failed_and_what_came_back() -> None:
    why = _why("def f(n): return [n]", tests=["assert f(0) == [0]", "assert f(3) == 9"])
    assert why == "1 of 2 tests passed; assert f(3) == 9: got [3]"
    assert "ZeroDivisionError" in _why("def f(n): return n / 0", tests=["assert f(3) == 9"])
    assert "SyntaxError" in _why("def f(n", tests=["assert f(3) == 9"])
    assert "line 2 is '3'" in _why("print(1)\nprint(3)", cases=[{"stdin": "", "stdout": "1\n2\n"}])
    assert "boom" in _why("raise ValueError('boom')", cases=[{"stdin": "", "stdout": ""}])


def test_cases_each_have_a_process_and_files_of_their_own() -> None:
    program = "import os\nprint(os.path.exists('/tmp/mark'))\nopen('/tmp/mark', 'w').write(input())"
    case = {"stdin": "1\n", "stdout": "False\n"}
    assert _verify(program, cases=[case, case]) == 1.0


@pytest.mark.parametrize(
    ("language", "program"),
    [
        ("bash", "read n\necho $((n * n))"),
        ("javascript", "const n = +require('fs').readFileSync(0, 'utf8'); console.log(n * n)"),
        ("c", '#include <stdio.h>\nint main() { int n; scanf("%d", &n); printf("%d\\n", n * n); }'),
        ("cpp", "#include <iostream>\nint main() { int n; std::cin >> n; std::cout << n * n; }"),
    ],
)
def test_other_languages(language: str, program: str) -> None:
    cases = [{"stdin": "3\n", "stdout": "9\n"}, {"stdin": "-4\n", "stdout": "16\n"}]
    response = f"```{language}\n{program}\n```"
    try:
        assert _verify(response, language=language, cases=cases) == 1.0
    except ValueError as error:  # the tool is missing on this machine, and the error says so
        assert "install" in str(error)
        return
    wrong = program.replace("n * n", "n + n")
    assert _verify(f"```{language}\n{wrong}\n```", language=language, cases=cases) == 0.0
    assert _verify(f"```{language}\n((( {program}\n```", language=language, cases=cases) == 0.0


def test_a_missing_tool_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("rewards.programs.languages.SYSTEM_PATH", "/nowhere")
    with pytest.raises(ValueError, match="apt-get install nodejs"):
        _verify("1", language="javascript", cases=[{"stdin": "", "stdout": ""}])


@pytest.mark.parametrize(
    ("printed", "expected", "tolerance", "same"),
    [
        ("1 \n2\n\n", "1\n2", 0.0, True),
        ("1\r\n2", "1\n2\n", 0.0, True),
        ("  7", "7", 0.0, True),
        ("1 2", "1\n2", 0.0, False),
        ("1\n\n2", "1\n2", 0.0, False),
        ("", "", 0.0, True),
        ("", "1", 0.0, False),
        ("1\n2\n3", "1\n2", 0.0, False),
        ("0.3333", "0.33333", 0.0, False),
        ("0.3333", "0.33333", 1e-3, True),
        ("x 0.3333", "y 0.33333", 1e-3, False),
        ("9999", "10000", 1e-6, False),
        ("nan", "1", 1e-3, False),
    ],
)
def test_stdout_is_compared_by_lines(
    printed: str, expected: str, tolerance: float, same: bool
) -> None:
    assert (difference(printed, expected, tolerance) == "") is same


@pytest.mark.parametrize(
    ("reference", "message"),
    [
        ("", "JSON object"),
        ("[1]", "JSON object"),
        ("{}", "at least one"),
        ('{"tests": []}', "at least one"),
        ('{"tests": ["x = 1"]}', "no assert"),
        ('{"tests": ["def check(f):\\n    assert f(1) == 1"]}', "no assert"),
        ('{"tests": ["assert f(1 == 1"]}', "test 1 is no Python"),
        ('{"tests": [1]}', "list of strings"),
        ('{"tests": ["assert f()"], "cases": [{"stdin": "", "stdout": ""}]}', "give tests, cases"),
        ('{"cases": [{"stdin": ""}]}', "cases are"),
        ('{"calls": [{"function": "f()", "expected": 1}]}', "calls are"),
        ('{"tests": ["assert f()"], "langauge": "python"}', "unknown key 'langauge'"),
        ('{"tests": ["assert f()"], "language": "cobol"}', "unknown language"),
        ('{"tests": ["assert f()"], "language": "cpp"}', "need cases"),
        ('{"tests": ["assert f()"], "setup": 3}', "setup is a string"),
    ],
)
def test_references_that_cannot_be_read(reference: str, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        parse_reference(reference)


def test_setup_runs_before_the_tests_and_its_classes_are_shared() -> None:
    setup = "class Node:\n    def __init__(self, value): self.value = value\nnode = Node(4)"
    program = "def value(node): return node.value\ndef make(x): return Node(x)\n"
    tests = ["assert value(node) == 4", "assert make(3).value == 3"]
    assert _verify(program, tests=tests, setup=setup) == 1.0


def test_many_threads_share_a_bounded_pool() -> None:
    verifier = CodeVerifier(CodeConfig(max_concurrent=2))
    totals: list[float] = []

    def work(number: int) -> None:
        program = f"def f(n):\n    return n * n + {number % 2}\n# {number}"
        totals.append(_verify(program, verifier, tests=["assert f(3) == 9"]))

    threads = [threading.Thread(target=work, args=(number,)) for number in range(24)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(totals) == [0.0] * 12 + [1.0] * 12


def test_equal_programs_run_once() -> None:
    program = "import time\ndef f(n):\n    time.sleep(0.5)\n    return n * n\n"
    _verify(program, tests=["assert f(3) == 9"])
    start = time.monotonic()
    assert [_verify(program, tests=["assert f(3) == 9"]) for _ in range(20)] == [1.0] * 20
    assert time.monotonic() - start < 5.0  # twenty runs would sleep for ten seconds


def test_equal_programs_that_come_together_run_once() -> None:
    """Each run sees a clock of its own, so two runs would differ."""
    program = "import time\nT = time.time_ns()\ndef f():\n    time.sleep(0.3)\n    return T\n"
    said: list[str] = []
    threads = [
        threading.Thread(target=lambda: said.append(_why(program, tests=["assert f() == 0"])))
        for _ in range(4)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(said) == 4 and len(set(said)) == 1 and "0 of 1" in said[0]


def test_a_response_without_a_program_scores_0() -> None:
    assert _verify("", tests=["assert f(3) == 9"]) == 0.0
    assert _verify("```python\n```", tests=["assert f(3) == 9"]) == 0.0
    assert _verify("I do not know.", tests=["assert f(3) == 9"]) == 0.0
    assert _verify("x" * 2_000_000, tests=["assert f(3) == 9"]) == 0.0
