"""One plain form of a text, so that disguised words meet the rules too.

Everything here is linear in the length of the text, for the text may be hostile.
"""

import html
import unicodedata

import regex

# What shows nothing or only decorates: zero-width and filler characters, accents, controls.
_HIDDEN = regex.compile(r"[\p{Default_Ignorable_Code_Point}\p{M}\p{Cf}\p{Co}\p{Cs}\u2800]")
_CONTROL = regex.compile(r"[^\S\n ]|[\x00-\x09\x0b-\x1f\x7f-\x9f]")
_ESCAPE = regex.compile(
    r"\\{1,4}(?:u\{?00([2-7][0-9a-fA-F])\}?|x([2-7][0-9a-fA-F])|([\"'/`<>]))|%([237][0-9a-fA-F])"
)
_NO_CODE = regex.compile(r"(?<=&#)[0-9]{1000,}")  # an integer of so many digits raises
_BREAKS = regex.compile(r"(?: ?\\{1,4}[rn](?=[\s\"'{}\[\]])| ?\n)\s*")
_SPACES = regex.compile(r" {2,}")
_MARKDOWN = regex.compile(r"\*+|`+|~~+|__+")
_DRAWN = regex.compile(r"([a-zA-Z!?])\1{2,}")
_SPELT = regex.compile(r"(?<![\w])(?:[a-zA-Z][ .\-_]){4,60}[a-zA-Z](?!\w)")
_GAP = regex.compile(r"[ .\-_]")
_TOKEN = regex.compile(
    r"[\p{Han}\p{Hiragana}\p{Katakana}\p{Thai}]|[^\W_\p{Han}\p{Hiragana}\p{Katakana}\p{Thai}]+"
)
_ALIKE = str.maketrans(
    "аеорсухіјѕһԁԛԝьАВЕКМНОРСТХУІЈЅԌ"
    "αβεζηικνορτυχΑΒΕΖΗΙΚΜΝΟΡΤΥΧ"
    "ᴀʙᴄᴅᴇꜰɢʜɪᴊᴋʟᴍɴᴏᴘʀꜱᴛᴜᴠᴡʏᴢɑɡıȷℓ"
    "\u201c\u201d\u201e\u201f\u00ab\u00bb\u2033\u2036\u301d\u301e\uff02\u2018\u2019\u201a"
    "\u201b\u2039\u203a\u2032\u2035\u00b4\u02c8\u02bc\u02b9\u275b\u275c\u275d\u275e"
    "\u2236\u02d0\ua789\u0589\ufe55\u1804\u2774\u2775\u2983\u2984\u2045\u2046\u27e6\u27e7"
    "\u301a\u301b\u1438\u1433\u3008\u3009\u27e8\u27e9\uff1c\uff1e\u2010\u2011\u2012\u2013"
    "\u2014\u2015\u2212\u2043\ua4fd\u227b",
    "aeopcyxijshdqwbABEKMHOPCTXYIJSG"
    "aBeznikvoptuxABEZHIKMNOPTYX"
    "abcdefghijklmnoprstuvwyzagijl"
    "\"\"\"\"\"\"\"\"\"\"\"''''''''''''''\"\""
    "::::::{}{}[][][]<><><><>--------:>",
)


def normal(text: str) -> str:
    """The text as the rules read it; letters keep their case.

    Compatibility forms (full-width, mathematical, circled) and look-alikes of other scripts become
    plain letters; hidden characters, accents, markdown, escapes and entities go; a run of spaces is
    one space, a run of lines one line break; letters drawn out or spelt apart are joined.
    """
    text = html.unescape(_NO_CODE.sub("", _bare(text).translate(_ALIKE)))
    text = _ESCAPE.sub(_escaped, text)
    text = _SPACES.sub(" ", _CONTROL.sub(" ", _MARKDOWN.sub("", text)))
    text = _BREAKS.sub("\n", text)
    text = _DRAWN.sub(lambda found: found[1] * (1 + (found[1] in "oO")), text)
    return _SPELT.sub(lambda found: _GAP.sub("", found[0]), text).strip()


def tokens(text: str) -> list[str]:
    """The words of a text without regard to case; where words are not spaced, its signs."""
    return _TOKEN.findall(_bare(text).casefold())


def shows_something(text: str) -> bool:
    """Whether there is more than punctuation: a letter, an emoji, a regular expression, 3 signs."""
    shown = "".join(_HIDDEN.sub("", text).split())
    return _LETTER.search(shown) is not None or _SIGN.fullmatch(shown) is not None


_LETTER = regex.compile(r"[\p{L}\p{N}\p{So}]")
_SIGN = regex.compile(r"[\p{Sm}\p{Sc}^]{1,3}|.*(?:\.[*+]|\\.|\[\^).*")


def _bare(text: str) -> str:
    visible = _HIDDEN.sub("", text)  # first: runs of accents make the normal forms quadratic
    return _HIDDEN.sub("", unicodedata.normalize("NFKD", visible))


def _escaped(found: regex.Match[str]) -> str:
    code = found[1] or found[2] or found[4]
    return chr(int(code, 16)) if code else str(found[3])
