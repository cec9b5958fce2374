"""The tokenizer of a checkpoint folder. No code that lies in the folder is run."""

import json
from pathlib import Path
from typing import Any

from transformers import AutoTokenizer, PreTrainedTokenizerBase, PreTrainedTokenizerFast
from transformers.convert_slow_tokenizer import TikTokenConverter

# How Kimi K2's own tokenizer cuts text before its merges; no piece of it mixes Han with others.
_UPPER = r"[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}&&[^\p{Han}]]"
_LOWER = r"[\p{Ll}\p{Lm}\p{Lo}\p{M}&&[^\p{Han}]]"
_SHORT = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)?"
KIMI_PIECES = "|".join(
    (
        r"[\p{Han}]+",
        rf"[^\r\n\p{{L}}\p{{N}}]?{_UPPER}*{_LOWER}+{_SHORT}",
        rf"[^\r\n\p{{L}}\p{{N}}]?{_UPPER}+{_LOWER}*{_SHORT}",
        r"\p{N}{1,3}",
        r" ?[^\s\p{L}\p{N}]+[\r\n]*",
        r"\s*[\r\n]+",
        r"\s+(?!\S)",
        r"\s+",
    )
)
KIMI_CLASS = "TikTokenTokenizer"
KIMI_SPECIAL = 256  # ids after the merges' that are special, named or not
RANKS = "tiktoken.model"


def load_tokenizer(folder: Path) -> PreTrainedTokenizerBase:
    """As transformers has it; that of Kimi K2 and Moonlight, which is released as code, built here.

    Without that code transformers would cut text at other places, silently.

    Raises:
        OSError, ValueError: no tokenizer that can be read, or one that is other code.
    """
    if (folder / RANKS).is_file() and not (folder / "tokenizer.json").is_file():
        return _kimi(folder)
    tokenizer: PreTrainedTokenizerBase = AutoTokenizer.from_pretrained(str(folder))
    return tokenizer


def _kimi(folder: Path) -> PreTrainedTokenizerFast:
    settings: dict[str, Any] = json.loads((folder / "tokenizer_config.json").read_text("utf-8"))
    if settings.get("tokenizer_class") != KIMI_CLASS:
        raise ValueError(
            f"{folder}/{RANKS} belongs to a tokenizer of class "
            f"{settings.get('tokenizer_class')!r}, whose code is not run; known is Kimi's "
            f"{KIMI_CLASS}. Save it as tokenizer.json"
        )
    ranks = TikTokenConverter.load_tiktoken_bpe(str(folder / RANKS))
    first = len(ranks)
    named = {int(id): token["content"] for id, token in settings["added_tokens_decoder"].items()}
    special = [
        named.get(id, f"<|reserved_token_{id}|>") for id in range(first, first + KIMI_SPECIAL)
    ]
    roles = {
        role: token["content"] if isinstance(token, dict) else token
        for role in ("bos_token", "eos_token", "unk_token", "pad_token")
        if (token := settings.get(role))
    }
    template = folder / "chat_template.jinja"
    converter = TikTokenConverter(str(folder / RANKS), KIMI_PIECES, extra_special_tokens=special)
    return PreTrainedTokenizerFast(
        tokenizer_object=converter.converted(),
        additional_special_tokens=[token for token in named.values() if token in special],
        chat_template=(
            template.read_text("utf-8") if template.is_file() else settings.get("chat_template")
        ),
        **roles,
    )
