"""Messages to token ids and back. Tokens once sampled are never encoded again."""

import re
from collections.abc import Sequence
from pathlib import Path

from rewards.task import Message
from rollout.tokenizer import load_tokenizer

MARK = re.compile(r"<.*>|\[.*\]")


class Renderer:
    """A saved tokenizer with its chat template."""

    vocab_size: int  # tokens, special ones included
    eos_id: int  # the token that ends a turn, as the chat template writes it

    def __init__(self, path: str | Path) -> None:
        """Load the tokenizer; raise `ValueError` if it cannot end a turn."""
        self._tokenizer = load_tokenizer(Path(path))
        if not self._tokenizer.chat_template:
            raise ValueError(f"the tokenizer in {path} has no chat template: save one with it")
        self.vocab_size = len(self._tokenizer)
        self.eos_id = self._end_of_turn(path)
        self._special = self._special_token()

    def prompt_ids(self, messages: Sequence[Message]) -> list[int]:
        """Ids [P] of the conversation, up to where the policy's turn begins."""
        return self._encode(messages, generate=True)

    def training_ids(
        self, messages: Sequence[Message], response: str
    ) -> tuple[list[int], list[int]]:
        """Ids [P] of the prompt and [L] of a given response, end of turn included."""
        response_ids = self._tokenizer.encode(response, add_special_tokens=False)
        return self.prompt_ids(messages), [*response_ids, self.eos_id]

    def inert(self, messages: Sequence[Message]) -> tuple[Message, ...]:
        """The messages with a space in every special token that their contents spell.

        For text of strangers: a tokenizer turns `<|im_end|>` into the token wherever it stands.
        """
        return tuple(
            Message(role=message.role, content=self._split_special(message.content))
            for message in messages
        )

    def text(self, token_ids: Sequence[int]) -> str:
        """The words of sampled tokens, without special tokens."""
        return str(
            self._tokenizer.decode(
                list(token_ids), skip_special_tokens=True, clean_up_tokenization_spaces=False
            )
        )

    def _encode(self, messages: Sequence[Message], *, generate: bool) -> list[int]:
        turns = [{"role": message.role, "content": message.content} for message in messages]
        ids = self._tokenizer.apply_chat_template(
            turns, add_generation_prompt=generate, tokenize=True, return_dict=False
        )
        return list(ids)

    def _split_special(self, content: str) -> str:
        content = content.encode(errors="replace").decode()  # tokenizers take no lone surrogates
        return self._special.sub(lambda m: " " if len(m[1]) == 1 else f"{m[2]} ", content)

    def _special_token(self) -> re.Pattern[str]:
        """Matches the first character (group 2) of a special token (group 1), overlaps as well."""
        added = self._tokenizer.added_tokens_decoder.values()
        # Some control tokens, as </think>, are not marked special; runs of spaces are no marks.
        marks = {str(t) for t in added if t.special or MARK.fullmatch(str(t))}
        tokens = {*self._tokenizer.all_special_tokens, *marks}
        shortest_first = sorted(tokens, key=lambda token: (len(token), token))
        return re.compile(f"(?=({'|'.join(map(re.escape, shortest_first))}))(.)", re.DOTALL)

    def _end_of_turn(self, path: str | Path) -> int:
        """The first special token after an answer; the tokenizer's own eos may be another."""
        asked = [Message(role="user", content="a")]
        answered = [*asked, Message(role="assistant", content="a")]
        special = set(self._tokenizer.all_special_ids)
        for token in self._encode(answered, generate=False)[len(self.prompt_ids(asked)) :]:
            if token in special:
                return int(token)
        raise ValueError(
            f"the chat template in {path} ends an assistant's turn with no special token"
        )
