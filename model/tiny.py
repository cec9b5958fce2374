"""A K2 small enough for a laptop: tokenizer, chat template and network made by code.

Departures from the released model, beyond size: every digit is one token; the chat template inserts
no default system turn; <|im_end|> is the tokenizer's end-of-sequence token, so that engines stop on
it without being told.
"""

import itertools
import json
import tempfile
from collections.abc import Iterable
from pathlib import Path

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

from model.config import K2Config, RopeScaling
from model.k2 import K2
from model.load import save_k2

VOCABULARY = 512
ROLE_COPIES = 1000
# K2's names (spec 1.7), the last ids of the vocabulary with [PAD] at the very end, as released.
SPECIAL_TOKENS = (
    "[BOS]",
    "[EOS]",
    "<|im_end|>",
    "<|im_user|>",
    "<|im_assistant|>",
    "<|im_system|>",
    "<|im_middle|>",
    "[PAD]",
)
CHAT_TEMPLATE = """\
{%- for message in messages -%}
{%- if message['role'] == 'user' -%}<|im_user|>
{%- elif message['role'] == 'assistant' -%}<|im_assistant|>
{%- else -%}<|im_system|>
{%- endif -%}
{{- message['name'] or message['role'] -}}<|im_middle|>
{%- if message['tool_call_id'] -%}
{{- '## Return of ' + message['tool_call_id'] + '\\n' -}}
{%- endif -%}
{{- message['content'] -}}<|im_end|>
{%- endfor -%}
{%- if add_generation_prompt -%}<|im_assistant|>assistant<|im_middle|>{%- endif -%}
"""


def tiny_config(vocab_size: int) -> K2Config:
    """7.6 M parameters. vLLM's CPU kernels ask for K2's own kv_lora_rank and qk_rope_head_dim."""
    return K2Config(
        vocab_size=vocab_size,
        hidden_size=256,
        intermediate_size=768,
        moe_intermediate_size=192,
        num_hidden_layers=3,
        num_attention_heads=4,
        num_key_value_heads=4,
        n_routed_experts=16,
        num_experts_per_tok=2,
        q_lora_rank=128,
        kv_lora_rank=512,
        qk_nope_head_dim=64,
        qk_rope_head_dim=64,
        v_head_dim=64,
        rope_scaling=RopeScaling(),
        max_position_embeddings=4096,
        bos_token_id=vocab_size - len(SPECIAL_TOKENS) + SPECIAL_TOKENS.index("[BOS]"),
        eos_token_id=vocab_size - len(SPECIAL_TOKENS) + SPECIAL_TOKENS.index("<|im_end|>"),
        pad_token_id=vocab_size - 1,
    )


def train_tokenizer(corpus: Iterable[str]) -> Tokenizer:
    """Byte-level BPE of VOCABULARY entries: any text can be encoded, every digit is one token."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Digits(individual_digits=True),
            pre_tokenizers.ByteLevel(add_prefix_space=False),
        ]
    )
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=VOCABULARY - len(SPECIAL_TOKENS),
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )
    # Role names stand in every prompt: enough copies of them make each one token.
    roles = ["user", "assistant", "system"] * ROLE_COPIES
    tokenizer.train_from_iterator(itertools.chain(corpus, roles), trainer)
    # A small corpus has too few merges: reserved tokens keep the special ids where they are.
    unused = VOCABULARY - len(SPECIAL_TOKENS) - tokenizer.get_vocab_size()
    tokenizer.add_special_tokens(
        [*(f"<|reserved_{index}|>" for index in range(unused)), *SPECIAL_TOKENS]
    )
    return tokenizer


def write_tokenizer(tokenizer: Tokenizer, folder: Path, max_length: int) -> None:
    """The two files from which transformers and vLLM make the tokenizer and its chat template."""
    tokenizer.save(str(folder / "tokenizer.json"))
    settings = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "bos_token": "[BOS]",
        "eos_token": "<|im_end|>",
        "pad_token": "[PAD]",
        "additional_special_tokens": [token for token in SPECIAL_TOKENS if token.startswith("<|")],
        "clean_up_tokenization_spaces": False,
        "model_max_length": max_length,
        "chat_template": CHAT_TEMPLATE,
    }
    (folder / "tokenizer_config.json").write_text(
        json.dumps(settings, indent=2) + "\n", encoding="utf-8"
    )


def create_tiny(path: str | Path, corpus: Iterable[str], seed: int) -> None:
    """Make the tiny model's checkpoint folder. The same corpus and seed give the same bytes."""
    model = K2(tiny_config(VOCABULARY))
    model.initialize_(seed)
    with tempfile.TemporaryDirectory() as tokenizer:
        write_tokenizer(
            train_tokenizer(corpus), Path(tokenizer), model.config.max_position_embeddings
        )
        save_k2(model, path, torch.float32, tokenizer_from=tokenizer)
