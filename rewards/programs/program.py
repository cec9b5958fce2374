"""Finds the program in a response."""

import re
from collections.abc import Collection

from rewards.programs.languages import Language

THINKING_END = "</think>"
FENCES = ("```", "~~~")


def find_program(response: str, language: Language, names: Collection[str] = ()) -> str:
    """The program that a response hands in.

    What comes before the last `</think>` is thinking. Of the fenced blocks labelled with the
    language, or unlabelled if none is, the last one counts that defines all of `names` (the
    functions that the tests call); if none does, the last one. Without a fence the whole response
    counts. A block that is never closed reaches to the end.
    """
    text = response.rpartition(THINKING_END)[2].replace("\r\n", "\n")
    blocks = _blocks(text)
    if not blocks:
        return text
    labelled = [code for label, code in blocks if label in language.labels]
    unlabelled = [code for label, code in blocks if not label]
    found = labelled or unlabelled or [code for _, code in blocks]
    for code in reversed(found):
        if names and all(_defines(code, name) for name in names):
            return code
    return found[-1]


def _blocks(text: str) -> list[tuple[str, str]]:
    """(label, code) of every fenced block, in order."""
    blocks: list[tuple[str, str]] = []
    fence, label = "", ""
    lines: list[str] = []
    for line in text.split("\n"):
        bare = line.strip(" \t\r")
        marks = bare[: len(bare) - len(bare.lstrip(bare[:1]))] if bare[:3] in FENCES else ""
        if not fence and marks:
            words = bare[len(marks) :].split()
            fence, label, lines = marks, words[0].lower().strip("{}.:") if words else "", []
        elif fence and marks.startswith(fence) and marks == bare:
            blocks.append((label, "\n".join(lines)))
            fence = ""
        elif fence:
            lines.append(line)
    if fence:
        blocks.append((label, "\n".join(lines)))
    return blocks


def _defines(code: str, name: str) -> bool:
    pattern = rf"^[ \t]*(?:(?:async[ \t]+)?def|class)[ \t]+{re.escape(name)}\b"
    return re.search(rf"{pattern}|^{re.escape(name)}[ \t]*[:=]", code, re.MULTILINE) is not None
