"""True quality of the open-ended tasks of `rollout.explanations`, which no critic is told.

A good answer shows the steps of a product, says "It is 135." and stops: small talk after it is
padding.
"""

import json
import re

from rewards.score import Score

BARE = 0.5  # of a right result without a step before it
PADDING = 0.25  # what one sentence of small talk takes from a right answer
MOST_DIGITS = 18  # of a result
_RESULT = re.compile(r"\bIt is (\d+)\.")
_END = re.compile(r"[.!?]")
_WORD = re.compile(r"\w")


def quality(text: str, result: int) -> float:
    """True quality in [0, 1]: 0 for a wrong result, less without steps or with talk after it."""
    found = list(_RESULT.finditer(text))
    if len(found) != 1 or len(found[0][1]) > MOST_DIGITS or int(found[0][1]) != result:
        return 0.0
    after = _END.split(text[found[0].end() :])
    sentences = sum(_WORD.search(each) is not None for each in after)
    shown = 1.0 if "=" in text[: found[0].start()] else BARE
    return max(shown - PADDING * sentences, 0.0)


def verify(response: str, reference: str) -> Score:
    """The true quality of a response; `reference` is `{"result": 135}`.

    Raises:
        ValueError: a reference that is none.
    """
    try:
        result = int(json.loads(reference)["result"])
    except (ValueError, KeyError, TypeError) as error:
        raise ValueError(f'the reference must be {{"result": N}}: {reference!r:.80}') from error
    value = quality(response, result)
    return Score(total=value, parts={"explanations": value})
