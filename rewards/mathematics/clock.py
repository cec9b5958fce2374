"""Times of day: `5:30`, `5:30 p.m.`, `17:30`."""

import re

from rewards.mathematics.form import Form, Kind

_TIME = re.compile(
    r"([0-9]{1,2}):([0-9]{2})(?::([0-9]{2}))?\s*(?:([ap])\.?\s?m\.?)?", re.IGNORECASE
)


def clock(text: str) -> Form | None:
    """The time that a text is, or None. The mark is `a`, `p` or nothing."""
    match = _TIME.fullmatch(text)
    if match is None or int(match.group(2)) > 59:
        return None
    hours, minutes, seconds, half = match.groups()
    if half and not 1 <= int(hours) <= 12:
        return None
    said = f"{int(hours)}:{minutes}" + (f":{seconds}" if seconds else "")
    return Form(kind=Kind.time, text=said, mark=(half or "").lower())


def same_time(gold: Form, answer: Form) -> bool:
    """Whether two times are one. `pm` may be left out, like a unit; 17:30 is 5:30 pm."""
    unsaid = gold.mark == answer.mark or not gold.mark or not answer.mark
    return (gold.text == answer.text and unsaid) or _of_day(gold) == _of_day(answer)


def _of_day(time: Form) -> str:
    """On the clock of 24 hours; a time that may be of either half stays as it is."""
    hours, _, rest = time.text.partition(":")
    if not time.mark or not 1 <= int(hours) <= 12:
        return time.text
    return f"{int(hours) % 12 + (12 if time.mark == 'p' else 0)}:{rest}"
