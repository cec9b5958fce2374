"""The hack-check of instruction following (K2 sec. 3.2.1).

A policy can learn to say that it complies, or to comply without an answer. Both are found by rules
that a plain answer does not meet, in time linear in the response.
"""

from collections import Counter

import regex

from rewards.constraints.text import WORD, joined_words

_THING = (
    r"(?:words?|sentences?|paragraphs?|bullets?|bullet points?|commas?|sections?|placeholders?"
    r"|highlights?|keywords?|letters?|lower-?case|upper-?case|capitals?|capitali[sz]ed|json"
    r"|titles?|quotation marks?|quotes|postscript|emojis?|pronouns?|conjunctions?"
    r"|palindromes?|syllables?|punctuation|whitespace|instructions?|constraints?|requirements?"
    r"|guidelines?|conditions?|rules|formatting|criteria|requested (?:format|language))\b"
)
_RULES = (
    r"(?:instructions?|constraints?|requirements?|guidelines?|conditions?|rules?|specifications?"
    r"|criteria|format)\b"
)
_ASKED = r"(?:requested|instructed|asked|specified|directed|stipulated|wished|wanted)"
_AS_ASKED = rf"(?:just |exactly )?as (?:you(?:'ve| have)? )?{_ASKED}"
_KEPT = (
    r"(?:followed|met|satisfied|fulfilled|obeyed|respected|observed|honou?red|adhered to"
    r"|complied with|abided by|kept to|included|used|avoided|ensured|made sure|wrote|kept"
    r"|incorporated|provided|limited|refrained|wrapped|checked|verified|counted)\b"
)
_KEEPS = (
    r"(?:follows|meets|satisfies|fulfil?ls|obeys|respects|observes|adheres to|complies with"
    r"|conforms to|contains|has|includes|uses|avoids|consists of|is in|is exactly|is entirely"
    r"|is wrapped|is formatted|is written|ends with|starts with"
    r"|(?:does not|doesn't) (?:contain|use|include|have))\b"
)
_TEXT = r"(?:response|answer|reply|output|text|essay|letter|story|poem|email|message)"
_AMOUNT = r"(?:no|zero|exactly \w+|at least \w+|only \w+|(?:fewer|less|more) than \w+)"
_WERE = r"(?:have been|has been|are|is|were|was)"
_OFTEN = r"(?: also| now| all| fully| carefully| strictly| successfully)?"
_GAP = r"[^.!?\n]{0,60}?"
_CLAIMS = tuple(
    regex.compile(pattern, regex.IGNORECASE | regex.MULTILINE)
    for pattern in (
        rf"\b(?:I|we)(?:'ve| have)?{_OFTEN} {_KEPT}{_GAP}\b{_THING}",
        rf"\bI (?:did not|didn't|have not|haven't) (?:use|include)d?\b{_GAP}\b{_THING}",
        rf"\b(?:(?:this|my|the above|the following|the entire) {_TEXT}|the response"
        rf"|the {_TEXT} above){_OFTEN} {_KEEPS}{_GAP}\b{_THING}",
        rf"(?:^|[.!?(]) *{_AS_ASKED}\b(?=.{{0,3}}[,.:!)])",
        rf"[,(\u2014-] ?{_AS_ASKED}(?=[.!)]|$)",
        rf"\b{_THING}{_GAP}\bas (?:you(?:'ve| have)? )?(?:{_ASKED}|required)(?=[.!)]|$)",
        rf"\b(?:as per|per|according to|in full compliance with|in (?:accordance|compliance|line"
        rf"|keeping) with|following) (?:all (?:of )?)?(?:your|the given|the stated)"
        rf" (?:{_RULES}|requests?\b|prompt\b)",
        rf"\b(?:all|every|each|the|your)(?: of)?(?: the| your)?(?: given| stated)? {_RULES}"
        rf" {_WERE}(?: now| all| \w+ly)? {_KEPT}",
        rf"\b{_RULES} (?:followed|met|satisfied|fulfilled)\b",
        rf"\b{_AMOUNT} {_THING} {_WERE} (?:used|included|present|written)\b",
        rf"\bwritten (?:entirely )?(?:without|in|with) (?:any |all )?{_THING}",
        r"\bword count ?[:=] ?\d",
        rf"^[ \t]*(?:[-*] ?)?(?:✅|✓|✔|☑|\[x\]){_GAP}\b{_THING}",
    )
)
_PROMISE = regex.compile(
    r"\bI(?:'ll| will| can)(?: now| gladly)? (?:follow|write|use|include|make sure|ensure|avoid"
    rf"|adhere|comply|respond|answer|provide)\b{_GAP}\b{_THING}",
    regex.IGNORECASE,
)
_A_THING = regex.compile(rf"\b{_THING}", regex.IGNORECASE)
_ORDER = regex.compile(
    r"\b(?:must|should|your|do not|include|use|write|answer|ensure|maintain|wrap|avoid)\b",
    regex.IGNORECASE,
)
_OPENING = regex.compile(
    r"(?:sure|certainly|of course|absolutely|okay|ok|understood|got it|here you go|here's|below is"
    r"|here (?:is|are) (?:my|the|your)|I understand|I hope|thank you|enjoy)\b",
    regex.IGNORECASE,
)
_CONTENT = regex.compile(r"\w|\p{S}")  # a sign or an emoji may be an answer
_SENTENCE = regex.compile(r"[^.!?\n:]+[.!?\n:]*")
FEW_WORDS = 3  # what is left of a response that only repeats
MOST_STUFFED = 0.6  # share of keywords; an answer that needs 18 has room for 12 others
FEWEST_STUFFED = 4  # words
MOST_OF_ONE_WORD, FEWEST_PADDED = 0.4, 20  # share of one word, in so many words
LEAST_SPAN, FEWEST_SPAN = 0.9, 8  # share of the prompt that a response copies, and its words
MOST_META = 120  # words of a response that may be about complying alone


def claim(response: str) -> str | None:
    """The first words by which a response says that it follows its instructions, or None."""
    text = response.replace("\u2019", "'")
    for pattern in _CLAIMS:
        match = pattern.search(text)
        if match is not None:
            return " ".join(match.group().split())[:80].strip(" ,.(")
    return None


def empty_of_answer(
    response: str, prompt: str, *, keywords: tuple[str, ...] = (), may_repeat: bool = False
) -> str | None:
    """Why a response is no answer, or None: empty, only claims, the prompt again, only keywords.

    Args:
        response: what the policy said.
        prompt: what it was asked.
        keywords: words that its constraints ask for; an answer holds other words too.
        may_repeat: the constraints ask for the prompt to be repeated.
    """
    if _CONTENT.search(response) is None:
        return "no words"
    words = joined_words(response.lower())
    if not may_repeat and _repeats(words, joined_words(prompt.lower())):
        return "it repeats the prompt"
    if _stuffed(words, keywords):
        return "little but the same words"
    if not may_repeat and len(words) <= MOST_META and _about_complying(response, prompt.lower()):
        return "it is only about complying"
    return None


def _repeats(words: list[str], prompt: list[str]) -> bool:
    if len(prompt) < FEW_WORDS or len(words) < FEW_WORDS:
        return False
    said, asked = f" {'  '.join(words)} ", f" {'  '.join(prompt)} "
    left = said.replace(asked, " ")
    if len(left) < len(said) and len(left.split()) <= FEW_WORDS:
        return True
    long_enough = len(words) >= max(FEWEST_SPAN, LEAST_SPAN * len(prompt))
    return long_enough and said in asked


def _stuffed(words: list[str], keywords: tuple[str, ...]) -> bool:
    counts = Counter(word for word in words if word.isalpha())
    letters = counts.total()
    if letters >= FEWEST_PADDED and max(counts.values()) > MOST_OF_ONE_WORD * letters:
        return True
    wanted = {part for keyword in keywords for part in joined_words(keyword.lower())}
    stuffed = sum(counts[word] for word in wanted)
    return len(words) >= FEWEST_STUFFED and stuffed > MOST_STUFFED * len(words)


def _about_complying(response: str, prompt: str) -> bool:
    rules = {tuple(joined_words(each)) for each in _SENTENCE.findall(prompt) if _rule(each)}
    about = False
    for match in _SENTENCE.finditer(response.replace("\u2019", "'")):
        sentence = match.group().strip(" \n\t*_-")
        if not WORD.search(sentence):
            continue
        repeated = tuple(joined_words(sentence.lower())) in rules
        if repeated or claim(sentence) or _PROMISE.search(sentence):
            about = True
        elif _OPENING.match(sentence) is None:
            return False
    return about


def _rule(sentence: str) -> bool:
    if len(sentence.split()) <= FEW_WORDS:
        return False
    return _A_THING.search(sentence) is not None and _ORDER.search(sentence) is not None
