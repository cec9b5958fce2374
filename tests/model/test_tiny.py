"""The tiny model is made the same way twice, and its tokenizer reads anything."""

from pathlib import Path

import pytest
from transformers import AutoTokenizer, PreTrainedTokenizerBase

from model.load import load_k2
from model.tiny import SPECIAL_TOKENS, create_tiny, tiny_config

CORPUS = [
    "What is 12 + 34? The answer is 46.",
    "Count the apples in the basket.",
    "The answer is 7.",
]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("tiny") / "k2"
    create_tiny(path, CORPUS, seed=3)
    return path


@pytest.fixture(scope="module")
def tokenizer(folder: Path) -> PreTrainedTokenizerBase:
    return AutoTokenizer.from_pretrained(folder)


def test_same_corpus_and_seed_give_the_same_bytes(folder: Path, tmp_path: Path) -> None:
    create_tiny(tmp_path / "k2", iter(CORPUS), seed=3)
    for file in folder.iterdir():
        assert file.read_bytes() == (tmp_path / "k2" / file.name).read_bytes(), file.name
    create_tiny(tmp_path / "other", CORPUS, seed=4)
    assert (folder / "model.safetensors").read_bytes() != (
        tmp_path / "other" / "model.safetensors"
    ).read_bytes()


def test_loads_and_has_the_announced_size(folder: Path) -> None:
    model = load_k2(folder)
    assert model.config == tiny_config(512)
    assert 5e6 < sum(parameter.numel() for parameter in model.parameters()) < 8e6


@pytest.mark.parametrize(
    "text",
    ["The answer is 46.", "héllo 日本語 🙂\n\n\ttabs  and   spaces ", "\x00\x7f", "", "1234567890"],
)
def test_any_text_survives(tokenizer: PreTrainedTokenizerBase, text: str) -> None:
    assert tokenizer.decode(tokenizer.encode(text, add_special_tokens=True)) == text


def test_every_digit_is_one_token(tokenizer: PreTrainedTokenizerBase) -> None:
    ids = tokenizer.encode("12 345 12 12 12")
    assert [tokenizer.decode([i]) for i in ids if tokenizer.decode([i]).strip()] == list(
        "12345121212"
    )


def test_special_tokens(tokenizer: PreTrainedTokenizerBase) -> None:
    assert len(tokenizer) == 512
    assert tokenizer.convert_tokens_to_ids(list(SPECIAL_TOKENS)) == list(range(504, 512))
    config = tiny_config(512)
    ids = (tokenizer.bos_token_id, tokenizer.eos_token_id, tokenizer.pad_token_id)
    assert ids == (config.bos_token_id, config.eos_token_id, config.pad_token_id)
    assert tokenizer.eos_token == "<|im_end|>"


def test_chat_template_is_k2s_without_a_default_system_turn(
    tokenizer: PreTrainedTokenizerBase,
) -> None:
    messages = [
        {"role": "system", "content": "Be brief."},
        {"role": "user", "content": "6 * 7?"},
        {"role": "assistant", "content": "42"},
        {"role": "tool", "tool_call_id": "functions.add:0", "content": "3"},
    ]
    assert tokenizer.apply_chat_template(messages, tokenize=False) == (
        "<|im_system|>system<|im_middle|>Be brief.<|im_end|>"
        "<|im_user|>user<|im_middle|>6 * 7?<|im_end|>"
        "<|im_assistant|>assistant<|im_middle|>42<|im_end|>"
        "<|im_system|>tool<|im_middle|>## Return of functions.add:0\n3<|im_end|>"
    )
    prompt = tokenizer.apply_chat_template(
        messages[1:2], tokenize=False, add_generation_prompt=True
    )
    assert (
        prompt
        == "<|im_user|>user<|im_middle|>6 * 7?<|im_end|><|im_assistant|>assistant<|im_middle|>"
    )
