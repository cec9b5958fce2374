"""What a judge is measured on: rows of responses whose quality is known."""

from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass
from enum import StrEnum
from hashlib import sha256

from rewards.task import Message

MOST_EXAMPLES = 5  # of one kind of problem


class Shape(StrEnum):
    """How the rows of a file say which responses are good."""

    pairs = "pairs"  # prompt, chosen, rejected
    judgebench = "judgebench"  # question, response_A, response_B, label
    best_of_n = "best_of_n"  # prompt, responses, correct
    scored = "scored"  # prompt, response, score
    reward_bench = "reward_bench"  # pairs in its 23 subsets
    reward_bench_2 = "reward_bench_2"  # lists of chosen and rejected responses
    rm_bench = "rm_bench"  # three chosen and three rejected responses, by style


ONE_OF_TWO = frozenset({Shape.pairs, Shape.judgebench, Shape.reward_bench})


class ProblemKind(StrEnum):
    """What was wrong with a row, a recorded score, or a judgement."""

    unreadable = "row that cannot be read"
    no_label = "row without a label"
    duplicate_row = "row repeated"
    duplicate_id = "id of several different rows"
    equal_responses = "responses all equal"
    bad_score_row = "scores that cannot be used"
    repeated_scores = "scores given twice for one id"
    unknown_id = "scores of an id that no row has"
    no_scores = "row without recorded scores"
    failed = "judge failed"
    timeout = "judge timed out"
    refused = "judge has no room for it, or refuses it"
    nonsense = "judgement that cannot be read"
    truncated = "input or answer of the judge truncated"


@dataclass(frozen=True, slots=True, kw_only=True)
class Problem:
    """One thing that went wrong, and where."""

    kind: ProblemKind
    line: int  # in the file, from 1; the number of the row in JSON arrays and parquet
    id: str
    why: str


class RowProblem(ValueError):
    """A row that cannot be used."""

    def __init__(self, kind: ProblemKind, why: str) -> None:
        """What is wrong, and why."""
        super().__init__(why)
        self.kind = kind


@dataclass(frozen=True, slots=True, kw_only=True)
class ProblemCount:
    """All problems of one kind, with a few of them."""

    kind: ProblemKind
    count: int
    examples: tuple[Problem, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Row:
    """One prompt and its responses. How good each is lies in `quality`.

    Example: `{"question": q, "response_A": a, "response_B": b, "label": "B>A"}` has responses
    (a, b) and quality (0.0, 1.0). Chosen responses come before rejected ones.
    """

    id: str
    line: int  # as in `Problem`
    prompt: tuple[Message, ...]
    responses: tuple[str, ...]  # [N]
    quality: tuple[float, ...]  # [N]; 1 is good and 0 is not, or any scale in scored rows
    alias: str | None = None  # another id of the row
    subset: str = ""
    answers: tuple[str, ...] = ()  # [N] final answers, for majority votes
    recorded: tuple[float, ...] | None = None  # [N] scores of a judge that came with the data
    reference: str | None = None  # what a verifier needs
    swapped: bool = False  # a comparing judge sees responses 0 and 1 the other way round first

    @property
    def good(self) -> tuple[bool, ...]:
        """Whether each response is good; for rows whose quality is 1 or 0."""
        return tuple(value > 0 for value in self.quality)


@dataclass(frozen=True, slots=True, kw_only=True)
class Preferences:
    """A file of rows, with what could not be used."""

    shape: Shape
    rows: tuple[Row, ...]
    problems: tuple[Problem, ...]
    read: int  # rows in the file, usable or not
    digest: str  # of the rows' contents, in order


def prompt_text(prompt: tuple[Message, ...]) -> str:
    """A prompt as one text: a lone user message as it is, a conversation with roles."""
    if len(prompt) == 1 and prompt[0].role == "user":
        return prompt[0].content
    return "\n\n".join(f"{message.role}: {message.content}" for message in prompt)


def row_digest(row: Row) -> str:
    """What the row asks and what is right, whatever its id: equal rows have equal digests."""
    made = sha256()
    turns = [part for message in row.prompt for part in (message.role, message.content)]
    for part in (*turns, "", *row.responses, repr(row.quality)):
        data = part.encode(errors="surrogatepass")
        made.update(len(data).to_bytes(8, "little") + data)
    return made.hexdigest()


def count_problems(problems: Iterable[Problem]) -> tuple[ProblemCount, ...]:
    """Problems by kind, the most frequent first, each with its first examples."""
    kept = list(problems)
    counts = Counter(problem.kind for problem in kept)
    examples: dict[ProblemKind, list[Problem]] = {kind: [] for kind in counts}
    for problem in kept:
        if len(examples[problem.kind]) < MOST_EXAMPLES:
            examples[problem.kind].append(problem)
    return tuple(
        ProblemCount(kind=kind, count=count, examples=tuple(examples[kind]))
        for kind, count in counts.most_common()
    )
