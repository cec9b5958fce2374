"""A sequence-classification model scores conversations as transformers does."""

from pathlib import Path

import pytest
import torch
from transformers import (
    AutoModelForSequenceClassification,
    AutoTokenizer,
    LlamaConfig,
    LlamaForCausalLM,
    LlamaForSequenceClassification,
)

from model.formats import CheckpointError
from model.reward_model import RewardModel
from model.tiny import create_tiny

CONTEXT = 96
TURNS = [("user", "What is 2 + 2?"), ("assistant", "2 + 2 = 4, so 4.")]


def config(vocab_size: int, labels: int = 1) -> LlamaConfig:
    return LlamaConfig(
        vocab_size=vocab_size,
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=2,
        num_attention_heads=2,
        num_labels=labels,
        max_position_embeddings=CONTEXT,
    )


@pytest.fixture(scope="module")
def tokenizer_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("tiny") / "tiny"
    create_tiny(folder, ["What is 2 + 2? 2 + 2 = 4, so 4."] * 20, seed=0)
    return folder


@pytest.fixture(scope="module")
def checkpoint(tokenizer_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("reward")
    tokenizer = AutoTokenizer.from_pretrained(tokenizer_folder)
    torch.manual_seed(0)
    LlamaForSequenceClassification(config(len(tokenizer))).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


def test_the_score_is_that_of_transformers(checkpoint: Path) -> None:
    tokenizer = AutoTokenizer.from_pretrained(checkpoint)
    plain = AutoModelForSequenceClassification.from_pretrained(checkpoint, dtype=torch.float32)
    turns = [{"role": role, "content": content} for role, content in TURNS]
    text = tokenizer.apply_chat_template(turns, tokenize=False)
    ids = tokenizer(text, return_tensors="pt", add_special_tokens=False)
    with torch.no_grad():
        expected = float(plain(input_ids=ids["input_ids"]).logits[0, 0])
    judge = RewardModel(checkpoint)
    found = judge.score(TURNS)
    assert not found.truncated
    if not torch.cuda.is_available():
        assert judge.dtype == "float32"
        assert found.value == pytest.approx(expected, abs=1e-6)
    assert judge.score([TURNS[0], ("assistant", "5")]).value != found.value


def test_a_long_conversation_loses_its_start_and_says_so(checkpoint: Path) -> None:
    judge = RewardModel(checkpoint)
    assert judge.max_tokens == CONTEXT
    long = [("user", "2 + 2 = 4 " * 200), TURNS[1]]
    found = judge.score(long)
    assert found.truncated
    assert found == judge.score([("user", "= 4 " + "2 + 2 = 4 " * 200), TURNS[1]])
    assert RewardModel(checkpoint, max_tokens=4).score(TURNS).truncated


def test_a_language_model_is_refused(tokenizer_folder: Path, tmp_path: Path) -> None:
    tokenizer = AutoTokenizer.from_pretrained(tokenizer_folder)
    LlamaForCausalLM(config(len(tokenizer))).save_pretrained(tmp_path)
    tokenizer.save_pretrained(tmp_path)
    with pytest.raises(CheckpointError, match=r"lacks score\.weight: a language model"):
        RewardModel(tmp_path)


def test_several_labels_are_refused(tokenizer_folder: Path, tmp_path: Path) -> None:
    tokenizer = AutoTokenizer.from_pretrained(tokenizer_folder)
    LlamaForSequenceClassification(config(len(tokenizer), labels=5)).save_pretrained(tmp_path)
    tokenizer.save_pretrained(tmp_path)
    with pytest.raises(CheckpointError, match="5 labels"):
        RewardModel(tmp_path)


def test_a_folder_of_something_else_is_refused(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text("{}")
    with pytest.raises(CheckpointError, match="is no reward model"):
        RewardModel(tmp_path)
