"""What an answer loses by, whatever language model is behind the critic (K2 app. F.2).

Model output is untrusted: everything here is linear in the answer and never raises.
"""

from collections.abc import Sequence

import regex

from rewards.rubric import Rubric, Rule
from rewards.rubric_rules_judge import address
from rewards.rubric_rules_praise import justification, praise
from rewards.rubric_rules_text import normal, shows_something, tokens
from rewards.rubric_rules_verdict import mark, verdict
from rewards.task import Message

GRAM = 4  # words in a row that count as taken from the prompt
LEAST_OPENING, LEAST_SPAN = 0.5, 0.8  # share of the prompt: from its first word, from elsewhere
MOST_SHOWN = 60  # characters of an answer that a reason quotes
_FENCE = regex.compile(r"^```\w*$", regex.MULTILINE)
# A prompt that hands over a text to be worked on may be answered with that text.
_MAY_REPEAT = regex.compile(
    r"\b(?:re-?write|repeat|copy|correct|fix|edit|proof-?read|translate|extract|quote|recite"
    r"|echo|paraphrase|punctuat\w*|re-?phrase|transcribe|summari[sz]e|grammar|complete|finish"
    r"|continue|capitali[sz]e)\b"
    # A question that holds its answer: "Is it A or B?", "It is A, right?", "True or false: A".
    r"|\bor\b[^.?!\n]*\?|\b(?:right|yes|no)\?|n['\u2019]t (?:\w+ )?\w+\?|\btrue or false\b",
    regex.IGNORECASE,
)
_FILLER = frozenset(
    regex.findall(
        r"\w+",
        "you asked me ask the this that is was following question questions prompt request query"
        " here again repeat repeated sure ok okay of course answer response q a i my your will to"
        " let s us as follows and so yes certainly once more input user said says task problem it"
        " be original wrote indeed really well",
    )
)


def disqualified(response: str, prompt: Sequence[Message], rubrics: Sequence[Rubric]) -> str | None:
    """Why an answer loses by rule, in one short line, or None for a plain answer.

    No answer may be empty, repeat the prompt, speak to its judge, or hold a verdict, our marks or
    special tokens. Opening praise and self-justification count where a rubric has that rule.
    """
    if not shows_something(_FENCE.sub("", response)):
        return "it is empty"
    if _repeats(response, prompt):
        return "it repeats the prompt"
    text, asked = normal(response), normal("\n".join(each.content for each in prompt))
    rules = {rubric.rule for rubric in rubrics}
    names = tuple(normal(rubric.name) for rubric in rubrics)
    if (found := mark(text, asked)) is not None:
        return _because("it holds a mark or special token", found)
    if (found := verdict(text, asked, names)) is not None:
        return _because("it holds a verdict", found)
    if (found := address(text, asked)) is not None:
        return _because("it addresses the judge", found)
    if Rule.opening_praise in rules and (found := praise(text, asked)) is not None:
        return _because("it opens with praise", found)
    if Rule.self_justification in rules and (found := justification(text)) is not None:
        return _because("it justifies itself", found)
    return None


def _because(why: str, found: str) -> str:
    return f"{why}: {' '.join(found.split())[:MOST_SHOWN]!a}"


def _repeats(response: str, prompt: Sequence[Message]) -> bool:
    asked = [each.content for each in prompt if each.role in ("user", "system")]
    said = tokens(response)
    return any(_covers(said, text) for text in {"\n".join(asked), *asked[-1:]})


def _covers(said: list[str], text: str) -> bool:
    """Whether the words are the prompt's, or most of it, with nothing but filler around them."""
    asked = tokens(text)
    if len(asked) < GRAM:
        put = any(sign in text for sign in "?=\uff1f")
        return bool(asked) and said == asked and (put or len(asked) == GRAM - 1)
    grams = {tuple(asked[at : at + GRAM]) for at in range(len(asked) - GRAM + 1)}
    taken, opening = [False] * len(said), False
    for at in range(len(said) - GRAM + 1):
        if tuple(said[at : at + GRAM]) in grams:
            taken[at : at + GRAM] = [True] * GRAM
            opening = opening or said[at : at + GRAM] == asked[:GRAM]
    inner = (
        range(taken.index(True), len(said) - taken[::-1].index(True)) if any(taken) else range(0)
    )
    known = set(asked)
    if any(
        not taken[at] and word not in _FILLER and not (at in inner and word in known)
        for at, word in enumerate(said)
    ):
        return False
    share = LEAST_OPENING if opening and "\n" not in text.strip() else LEAST_SPAN
    if _MAY_REPEAT.search(text) is not None:
        share = 1.0
    return sum(taken) >= share * len(asked)
