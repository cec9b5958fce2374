"""The usual worker of `rewards.math_answer`: our grammar, and values to 60 digits."""

from rewards.mathematics import algebra
from rewards.mathematics.compare import same
from rewards.mathematics.expression import Node, Unreadable
from rewards.mathematics.forms import read_form, read_gold
from rewards.mathematics.nursery import serve
from rewards.mathematics.text import Number
from rewards.mathematics.values import same_rational

MEMORY_BYTES = 1 << 30  # of address space


class Algebra:
    """Exact for rational functions, numeric for the rest."""

    def equal(self, gold: Node, answer: Node) -> bool:
        """Whether they have one value everywhere."""
        verdict = same_rational(gold, answer)
        return algebra.same_value(gold, answer) if verdict is None else verdict

    def rounds(self, exact: Node, rounded: Number) -> bool:
        """Whether a decimal is a rounding of a constant."""
        return algebra.rounds(exact, rounded)

    def proportional(self, gold: Node, answer: Node, *, positive: bool) -> bool:
        """Whether `gold = 0` and `answer = 0` say the same."""
        return algebra.proportional(gold, answer, positive=positive)


class Comparer:
    """Answers with forms of our own."""

    def reads(self, gold: str) -> bool:
        """Whether our grammar reads the gold."""
        return read_gold(gold) is not None

    def equal(self, gold: str, answer: str) -> bool:
        """Whether the answer is the gold; False for an answer that cannot be read."""
        form = read_gold(gold)
        try:
            return form is not None and same(form, read_form(answer), Algebra())
        except Unreadable:
            return False


if __name__ == "__main__":
    serve(Comparer(), MEMORY_BYTES)
