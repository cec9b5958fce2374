r"""Reads one mathematical expression, written in LaTeX or plainly, as a tree.

A grammar of our own: text is never evaluated, what it does not know is refused, and depth and
length are bounded.
"""

import re
from dataclasses import dataclass
from fractions import Fraction

MOST_DEPTH = 40
MOST_CHARACTERS = 4000

FUNCTIONS = frozenset([
    "sin", "cos", "tan", "cot", "sec", "csc", "sinh", "cosh", "tanh", "coth", "sech", "csch",
    "arcsin", "arccos", "arctan", "arccot", "arcsec", "arccsc", "asin", "acos", "atan",
    "arcsinh", "arccosh", "arctanh", "ln", "log", "lg", "exp",
])  # fmt: skip
_TEXT_MACROS = frozenset([
    "text", "textbf", "textit", "textrm", "mathrm", "mathbf", "mathit", "mathcal", "mathbb",
    "mathsf", "boldsymbol", "bm", "mathfrak", "operatorname", "mbox",
])  # fmt: skip
_ACCENTS = frozenset([
    "vec", "hat", "bar", "tilde", "overline", "dot", "ddot", "widehat", "underline",
])  # fmt: skip
_GREEK = frozenset([
    "alpha", "beta", "gamma", "delta", "epsilon", "varepsilon", "zeta", "eta", "theta",
    "vartheta", "iota", "kappa", "lambda", "mu", "nu", "xi", "rho", "varrho", "sigma",
    "varsigma", "tau", "upsilon", "phi", "varphi", "chi", "psi", "omega", "Gamma", "Delta",
    "Theta", "Lambda", "Xi", "Pi", "Sigma", "Upsilon", "Phi", "Psi", "Omega", "ell", "hbar",
    "aleph", "imath", "jmath", "nabla", "partial",
])  # fmt: skip
_UNIT_VECTORS = frozenset(["i", "j", "k"])
_ENCLOSING = {
    "lfloor": ("floor", r"\rfloor"), "lceil": ("ceiling", r"\rceil"), "{": ("", r"\}"),
}  # fmt: skip
_PLAIN_WORDS = re.compile(
    r"(arcsin|arccos|arctan|sinh|cosh|tanh|sqrt|sin|cos|tan|log|exp|ln|pi)(?![A-Za-z])"
)
_TOKEN = re.compile(r"\s*(\\[A-Za-z]+|\\.|[0-9]+(?:\.[0-9]+)?|\.[0-9]+|[A-Za-z]|.)", re.DOTALL)
_MIXED = re.compile(
    r"\s*\\frac\s*(?:\{\s*([0-9]{1,9})\s*\}|([0-9]))\s*(?:\{\s*([0-9]{1,9})\s*\}|([0-9]))"
)
_TEXT_BEFORE = re.compile(r"\\(?:text|textbf|textrm|mathrm|mbox)\s*$")
_DIGITS = frozenset("0123456789")
_DIGIT = re.compile(r"\s*([0-9])")
_STOPS = frozenset(["+", "-", ")", "]", "}", ",", r"\rfloor", r"\rceil", r"\}", ""])
_ENDS = _STOPS | {"*", "/", "|", "(", "["}


class Unreadable(ValueError):
    """The text is no expression of our grammar."""


@dataclass(frozen=True, slots=True)
class Node:
    """A tree: `number` (value), `name` (name), or an operation on its arguments.

    Operations: add, multiply, divide, power, root (of, degree), factorial, binomial, floor,
    ceiling, absolute, max, min, log (of, base), call (an unknown function) and FUNCTIONS.
    """

    kind: str
    arguments: tuple["Node", ...] = ()
    name: str = ""
    value: Fraction = Fraction(0)


def read_expression(text: str) -> Node:
    """The tree of a text that `math_text.clean` returned. Raises `Unreadable`."""
    if len(text) > MOST_CHARACTERS:
        raise Unreadable(f"{len(text)} characters")
    parser = _Parser(text)
    node = parser.sum(0)
    if parser.peek():
        raise Unreadable(f"unexpected {parser.peek()!r}")
    return node


def constant(value: int | Fraction) -> Node:
    """A number."""
    return Node("number", value=Fraction(value))


def quotient(over: list[Node], under: list[Node]) -> Node:
    """The product of some nodes over that of others, which may be none."""
    top = over[0] if len(over) == 1 else Node("multiply", tuple(over))
    if not under:
        return top
    return Node("divide", (top, under[0] if len(under) == 1 else Node("multiply", tuple(under))))


def negative(node: Node) -> Node:
    """Minus a node."""
    return Node("multiply", (constant(-1), node))


class _Parser:
    """Recursive descent over a text, one token ahead."""

    def __init__(self, text: str) -> None:
        self._text = text
        self._place = 0
        self._bars = 0  # open absolute values

    def peek(self) -> str:
        match = _TOKEN.match(self._text, self._place)
        return match.group(1) if match else ""

    def take(self) -> str:
        match = _TOKEN.match(self._text, self._place)
        if match is None:
            raise Unreadable("the text ends too early")
        self._place = match.end()
        return match.group(1)

    def accept(self, token: str) -> bool:
        if self.peek() != token:
            return False
        self.take()
        return True

    def expect(self, token: str) -> None:
        found = self.take()
        if found != token:
            raise Unreadable(f"{found!r} where {token!r} should be")

    def digit(self) -> str | None:
        """One digit alone, as the argument of a command without braces."""
        match = _DIGIT.match(self._text, self._place)
        if match is None:
            return None
        self._place = match.end()
        return match.group(1)

    def sum(self, depth: int) -> Node:
        if depth > MOST_DEPTH:
            raise Unreadable(f"deeper than {MOST_DEPTH}")
        terms = [self.term(depth, self.sign())]
        while self.peek() in ("+", "-"):
            terms.append(self.term(depth, self.sign()))
        return terms[0] if len(terms) == 1 else Node("add", tuple(terms))

    def sign(self) -> int:
        token = self.peek()
        if token in ("+", "-"):
            self.take()
            if self.peek() in ("+", "-"):
                raise Unreadable("two signs")
        return -1 if token == "-" else 1

    def term(self, depth: int, sign: int) -> Node:
        return self.product(depth, self.factor(depth), sign)

    def product(self, depth: int, first: Node, sign: int) -> Node:
        """Factors up to the next sum sign; flat, so that no text makes a deep tree."""
        over, under = [constant(-1), first] if sign < 0 else [first], list[Node]()
        while True:
            token = self.peek()
            if token in ("*", "/"):
                self.take()
                minus = self.sign()
                (over if token == "*" else under).append(self.signed(depth, minus))
            elif token in _STOPS or (token == "|" and self._bars):
                return quotient(over, under)
            elif (token[0] in _DIGITS or token[0] == ".") and not self.after_group():
                raise Unreadable("a number after a factor")
            else:
                over.append(self.factor(depth))

    def after_group(self) -> bool:
        """Whether brackets have just closed: `(n+1)2^n` is a product, `2 4` is none."""
        before = self._text[: self._place].rstrip()
        words = before.endswith("}") and _TEXT_BEFORE.search(before[: before.rfind("{")][-12:])
        return not words and before.endswith((")", "}", "|"))

    def signed(self, depth: int, sign: int) -> Node:
        node = self.factor(depth)
        return negative(node) if sign < 0 else node

    def factor(self, depth: int) -> Node:
        """An atom with what stands behind it: powers, factorials, percent and degree signs."""
        node = self.atom(depth)
        powered = False
        while True:
            token = self.peek()
            if token == "!":
                self.take()
                if self.peek() == "!":
                    raise Unreadable("a double factorial")
                node = Node("factorial", (node,))
            elif token == "%":
                self.take()
                if self.peek() == "%":
                    raise Unreadable("two percent signs")
                node = Node("divide", (node, constant(100)))
            elif token == "^":
                if powered:
                    raise Unreadable("two exponents")
                node, powered = self.power(node, depth), True
            else:
                return node

    def power(self, base: Node, depth: int) -> Node:
        self.expect("^")
        start = self._place
        braced = self.accept("{")
        if self.accept(r"\circ") and (not braced or self.accept("}")):
            return Node(
                "multiply", (base, Node("divide", (Node("name", name="pi"), constant(180))))
            )
        self._place = start
        return Node("power", (base, self.script(depth)))

    def script(self, depth: int) -> Node:
        if self.accept("{"):
            return self.closed(depth, "}")
        sign = self.sign()
        return self.signed_atom(depth, sign)

    def signed_atom(self, depth: int, sign: int) -> Node:
        node = self.atom(depth + 1)
        return negative(node) if sign < 0 else node

    def closed(self, depth: int, closer: str) -> Node:
        node = self.sum(depth + 1)
        self.expect(closer)
        return node

    def argument(self, depth: int) -> Node:
        """What a command without parentheses takes: a group, a digit, or an atom."""
        if self.accept("{"):
            return self.closed(depth, "}")
        digit = self.digit()
        return constant(int(digit)) if digit else self.atom(depth + 1)

    def atom(self, depth: int) -> Node:
        if depth > MOST_DEPTH:
            raise Unreadable(f"deeper than {MOST_DEPTH}")
        token = self.take()
        if token[0] in _DIGITS or (token[0] == "." and len(token) > 1):
            if len(token) > 400:
                raise Unreadable("a number of too many digits")
            if self.peek() == "_":
                self.take()
                return Node("name", name=f"{token}_{self.subscript()}")  # in another base
            return self.mixed(constant(Fraction(token)))
        if token in ("(", "[", "{"):
            return self.closed(depth, {"(": ")", "[": "]", "{": "}"}[token])
        if token == "|":
            self._bars += 1
            node = self.closed(depth, "|")
            self._bars -= 1
            return Node("absolute", (node,))
        if token[0].isascii() and token[0].isalpha():
            return self.word(token, depth)
        if token[0] == "\\":
            return self.command(token[1:], depth)
        raise Unreadable(f"unexpected {token!r}")

    def mixed(self, whole: Node) -> Node:
        r"""`5\frac{1}{4}` is 5.25."""
        match = _MIXED.match(self._text, self._place)
        if match is None or whole.value.denominator != 1:
            return whole
        top, bottom = int(match.group(1) or match.group(2)), int(match.group(3) or match.group(4))
        if not 0 < top < bottom:
            raise Unreadable("a number before a fraction")
        self._place = match.end()
        return constant(whole.value + Fraction(top, bottom))

    def word(self, letter: str, depth: int) -> Node:
        match = _PLAIN_WORDS.match(self._text, self._place - 1)
        if match:
            self._place = match.end()
            return self.command(match.group(1), depth)
        return self.named(letter, depth)

    def named(self, name: str, depth: int) -> Node:
        """A variable with its primes and subscript; `f(x)` is a call, `x(y)` a product."""
        base = name
        while self.peek() in ("'", r"\prime", "_") or (
            self.peek() == "^" and self._text.startswith((r"^{\prime}", r"^\prime"), self._place)
        ):
            token = self.take()
            if token == "_":
                name += "_" + self.subscript()
            elif token == "^":
                self._place = self._text.index("prime", self._place) + 5
                self.accept("}")
                name += "'"
            else:
                name += "'"
        called = base in ("f", "g", "h", "F", "G", "H", "P", "Q") or name.endswith("'")
        if self.peek() == "(" and (called or self.listed()):
            self.take()
            return Node("call", self.several(depth, ")"), name=name)
        return Node("name", name=name)

    def listed(self) -> bool:
        """Whether the parentheses that follow hold several items, as of `U(0, 1)`."""
        level = 0
        for token in self._text[self._place :].lstrip():
            level += (token == "(") - (token == ")")
            if level == 0 or token in "[{":
                return False
            if token == "," and level == 1:
                return True
        return False

    def several(self, depth: int, closer: str) -> tuple[Node, ...]:
        nodes = [self.sum(depth + 1)]
        while self.accept(","):
            nodes.append(self.sum(depth + 1))
        self.expect(closer)
        return tuple(nodes)

    def subscript(self) -> str:
        token = self.take()
        if token != "{":
            return token
        end = self._text.find("}", self._place)
        inner = self._text[self._place : end]
        if end < 0 or "{" in inner:
            raise Unreadable("a nested subscript")
        self._place = end + 1
        return "".join(inner.split())

    def command(self, name: str, depth: int) -> Node:
        if name in ("frac", "binom"):
            kind = "divide" if name == "frac" else "binomial"
            return Node(kind, (self.argument(depth), self.argument(depth)))
        if name == "sqrt":
            degree = self.closed(depth, "]") if self.accept("[") else constant(2)
            return Node("root", (self.argument(depth), degree))
        if name in _ENCLOSING:
            kind, closer = _ENCLOSING[name]
            inside = self.closed(depth, closer)
            return Node(kind, (inside,)) if kind else inside
        if name in ("max", "min"):
            closer = {"(": ")", r"\{": r"\}"}.get(self.take(), "")
            return Node(name, self.several(depth, closer))
        if name in ("gcd", "lcm"):
            self.expect("(")
            return Node("call", tuple(sorted(self.several(depth, ")"), key=repr)), name=name)
        if name in FUNCTIONS:
            return self.function(name, depth)
        if name == "pi" or name in _GREEK:
            return self.named(name, depth)
        if name in _TEXT_MACROS or name in _ACCENTS:
            return self.lettered(name, depth)
        raise Unreadable(f"unknown command {name!r}")

    def lettered(self, macro: str, depth: int) -> Node:
        r"""`\mathbf{v}`, `\vec{v}`, `\mathbb{Z}`, `\mathrm{e}`."""
        if not self.accept("{"):
            return self.named(f"{macro} {self.take()}", depth)
        end = self._text.find("}", self._place)
        inner = "".join(self._text[self._place : end].split())
        inner = {r"\imath": "i", r"\jmath": "j"}.get(inner, inner)
        if end < 0 or not re.fullmatch(r"\\?[A-Za-z]*[0-9]?", inner):
            raise Unreadable("more than a letter in a font")
        self._place = end + 1
        if inner in ("e", "i") and macro == "mathrm":
            return Node("name", name=inner)
        if inner in _UNIT_VECTORS and macro != "mathrm":
            return Node("name", name=f"unit vector {inner}")
        if macro == "operatorname" and inner in FUNCTIONS:
            return self.function(inner, depth)
        if macro == "operatorname":
            raise Unreadable(f"unknown operator {inner!r}")
        return self.named(f"{macro} {inner}", depth)

    def function(self, name: str, depth: int) -> Node:
        base, exponent = None, None
        while self.peek() in ("_", "^"):
            if self.take() == "_":
                base = self.argument(depth)
            else:
                exponent = self.script(depth)
        if exponent is not None and exponent == negative(constant(1)):
            name, exponent = "arc" + name, None
            if name not in FUNCTIONS:
                raise Unreadable(f"unknown inverse {name!r}")
        inside = self.applied(depth)
        node = Node("log", (inside, base)) if base is not None else Node(name, (inside,))
        return Node("power", (node, exponent)) if exponent is not None else node

    def applied(self, depth: int) -> Node:
        r"""The argument of a function: `(...)`, `{...}`, or the product behind it, `2\pi x`."""
        if depth > MOST_DEPTH:
            raise Unreadable(f"deeper than {MOST_DEPTH}")
        if self.accept("("):
            return self.closed(depth, ")")
        if self.accept("{"):
            return self.closed(depth, "}")
        if self.accept("-"):
            return negative(self.applied(depth + 1))
        start = self._place
        over, under = [self.factor(depth + 1)], list[Node]()
        while True:
            token = self.peek()
            if token == "/" and "pi" in self._text[start : self._place]:  # sin pi/6
                self.take()
                under.append(self.factor(depth + 1))
            elif token in _ENDS or self.at_function():
                return quotient(over, under)
            else:
                over.append(self.factor(depth + 1))

    def at_function(self) -> bool:
        """Whether another function follows, which ends the argument of the one before."""
        plain = _PLAIN_WORDS.match(self._text, self._place)
        return plain is not None or self.peek().lstrip("\\") in FUNCTIONS
