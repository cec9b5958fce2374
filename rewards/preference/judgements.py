"""What a judge said, kept by content: a run that was cut short goes on where it stopped."""

import json
from collections.abc import Callable, Sequence
from hashlib import sha256
from pathlib import Path
from typing import Any

from rewards.preference.judges import Failure, Judge, Judgement, Question

MOST_TEXT = 4000  # characters of a judge's words that are kept


class JudgementFile:
    """JSON lines of judgements, by a digest of judge and question.

    Failures are not kept, so that running again asks for them again. A last line that was being
    written when the process died is dropped and asked for again.
    """

    def __init__(self, path: Path) -> None:
        """Read what is there."""
        self._known: dict[str, Judgement] = {}
        if path.exists():
            for line in path.read_bytes().split(b"\n"):
                self._remember(line)
        path.parent.mkdir(parents=True, exist_ok=True)
        self._file = path.open("ab")
        if self._file.tell() and not path.read_bytes().endswith(b"\n"):
            self._file.write(b"\n")

    def __len__(self) -> int:
        """How many are kept."""
        return len(self._known)

    def get(self, key: str) -> Judgement | None:
        """A kept judgement."""
        return self._known.get(key)

    def add(self, key: str, judgement: Judgement) -> None:
        """Keep a judgement, on disk at once."""
        self._known[key] = judgement
        record = {
            "key": key,
            "value": judgement.value,
            "truncated": judgement.truncated,
            "text": judgement.text[:MOST_TEXT],
        }
        self._file.write(json.dumps(record).encode() + b"\n")
        self._file.flush()

    def close(self) -> None:
        """Close the file."""
        self._file.close()

    def _remember(self, line: bytes) -> None:
        try:
            record: Any = json.loads(line)
            judgement = Judgement(
                value=float(record["value"]),
                truncated=bool(record["truncated"]),
                text=str(record["text"]),
            )
            self._known[str(record["key"])] = judgement
        except (ValueError, KeyError, TypeError):
            return


def key_of(identity: str, question: Question) -> str:
    """By what a judgement is kept: the judge, and every word it is shown."""
    turns = [part for each in question.prompt for part in (each.role, each.content)]
    shown = [identity, turns, question.responses, question.reference]
    return sha256(json.dumps(shown).encode()).hexdigest()


def ask(
    judge: Judge,
    questions: Sequence[Question],
    kept: JudgementFile,
    progress: Callable[[int, int], None],
) -> list[Judgement | Failure]:
    """A judgement for every question, in order; equal questions are asked once.

    `progress` hears how many of the questions to ask are answered, and how many there are.
    """
    keys = [key_of(judge.identity, question) for question in questions]
    to_ask = {key: each for key, each in zip(keys, questions, strict=True) if not kept.get(key)}
    asked = list(to_ask)
    failures: dict[str, Failure] = {}
    progress(0, len(asked))
    for done, (index, said) in enumerate(judge.judge(list(to_ask.values())), 1):
        if isinstance(said, Failure):
            failures[asked[index]] = said
        else:
            kept.add(asked[index], said)
        progress(done, len(asked))
    found = []
    for key in keys:
        answer = kept.get(key) or failures.get(key)
        assert answer is not None, "the judge left a question out"
        found.append(answer)
    return found
