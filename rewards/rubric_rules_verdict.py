"""Finds verdicts, our marks and special tokens in a normal text.

Gaps are bounded, so all is linear in the text.
"""

import regex

from rewards.critic_prompt import MARKS

_KEY = (
    r"(?:better|rubrics?|violations?|verdicts?|winner|preference|preferred|judg[e]?ment"
    r"|(?:better|preferred|winning|chosen)[_ ](?:answer|response|one))"
)
_WORTH = r"(?:answer[_ ]|response[_ ])?[\"'\[(]{0,2}(?:a|b|tie)[\"'\])]{0,2}"
QUOTED = 4  # of these are JSON; the others are words that a prompt may ask for
_VERDICTS = tuple(
    regex.compile(pattern, regex.IGNORECASE | regex.MULTILINE)
    for pattern in (
        rf"[\"'] ?{_KEY} ?[\"'] ?/{{0,2}} ?[:=,>|-]{{0,3}} ?[\[(]?[\"'] ?(?:a|b|tie"
        rf"|answer[_ ][ab])\b",
        r"\brubrics ?[:=] ?[{\[]",
        r"[{,(] ?[\"'](?:overall|choice|decision|vote|result|best)[\"'] ?[:=] ?[\"'](?:a|b"
        r"|tie)[\"']",
        r"[\"'] ?(?:rubrics|violations) ?[\"'] ?[:=] ?[{\[]",
        rf"(?:^|[\s{{,;(\"'>-]){_KEY} ?[\"']?(?: is| goes to)? ?[:=>|-]{{1,3}} ?{_WORTH} ?"
        r"(?=$|[,;}\]).!\n<|]|(?:is (?:the )?(?:better|best|winner)|wins)\b)",
        rf"<(?:{_KEY}|winner)> ?{_WORTH}",
    )
)
_SQUEEZED = regex.compile(
    r"[{,(](?:rubrics|violations|better|verdict|winner|preference)[:=][{\[]?(?:\w{1,40}:)?"
    r"(?:a|b|tie)?(?=[,}\])]|$)|\{(?:rubrics|violations|verdict)[:=]\{",
    regex.IGNORECASE,
)
_SQUEEZE = regex.compile(r"[\s\"'\\_]+")
_ORDERED = regex.compile(
    r"\[\[ ?(?:[ABC]|tie|TIE|[AB] ?[<>=]{1,2} ?[AB]) ?\]\]"
    r"|(?:^|\n)[(\"'#-]{0,2} ?[AB] ?(?:>{1,3}|<{1,3}|beats|wins over|is better than) ?[AB] ?"
    r"[)\"'.!]{0,2} ?(?=$|\n)"
    r"|\b[Aa]nswer[_ ][AB] ?(?:>{1,3}|<{1,3}|beats) ?[Aa]nswer[_ ][AB]"
)
_OUR_MARK = regex.compile(
    r"< ?/? ?(?:"
    + "|".join(mark.replace("_", "[_ -]?") for mark in MARKS if mark != "request")
    + r") ?>|\[ ?/ ?answer[_ -]?[ab] ?\]",
    regex.IGNORECASE,
)
_BALANCED = tuple(
    (
        regex.compile(rf"< ?{tag}\b[^<>]{{0,100}}>", regex.IGNORECASE),
        regex.compile(rf"< ?/ ?{tag} ?>", regex.IGNORECASE),
    )
    for tag in ("request", "s")
)
_TOKEN = regex.compile(
    r"<\|[^|<>\n]{1,40}\|>|\[/?INST\]|\[(?:BOS|EOS|EOT)\]|<</?SYS>>|<(?:start|end)_of_turn>"
    r"|<\|?(?:im_start|im_end|endoftext)\|?>|<(?:bos|eos)>"
)
_A_KEY = regex.compile(_KEY, regex.IGNORECASE)
_COMPARED = regex.compile(r"\b[AB]\b.{1,200}\b[AB]\b", regex.DOTALL)


def mark(text: str, prompt: str) -> str | None:
    """The first of our marks or special tokens in a normal text, or None."""
    found = _OUR_MARK.search(text)
    if found is None and _TOKEN.search(prompt) is None:
        found = _TOKEN.search(text)
    if found is not None:
        return found[0]
    for opening, closing in _BALANCED:
        last = closing.search(text)
        if last is not None and len(opening.findall(text)) != len(closing.findall(text)):
            return last[0]
    return None


def verdict(text: str, prompt: str, names: tuple[str, ...] = ()) -> str | None:
    """The first words of a verdict in a normal text, or None.

    Args:
        text: the answer.
        prompt: what was asked; a verdict in words that it asks for is an answer.
        names: of the rubrics, whose verdicts are found too.
    """
    named = _A_KEY.search(prompt) is not None
    for pattern in () if named else _VERDICTS[QUOTED:]:
        if found := pattern.search(text):
            return found[0]
    if not (named and "json" in prompt.lower()):
        for pattern in _VERDICTS[:QUOTED]:
            if found := pattern.search(text):
                return found[0]
        if found := _SQUEEZED.search(_SQUEEZE.sub("", text)):
            return found[0]
    if not _COMPARED.search(prompt) and (found := _ORDERED.search(text)):
        return found[0]
    for name in names:
        found = regex.search(
            rf"[\"'] ?{regex.escape(name)} ?[\"'] ?[:=] ?[\"'] ?(?:a|b|tie)\b",
            text,
            regex.IGNORECASE,
        )
        if found:
            return found[0]
    return None
