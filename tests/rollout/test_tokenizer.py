"""Kimi's tokenizer, built without its code, against tiktoken, which that code calls."""

import base64
import json
import random
from pathlib import Path

import pytest
import tiktoken

from model.releases import kimi_k2_instruct
from rewards.task import Message
from rollout.render import Renderer
from rollout.tokenizer import KIMI_PIECES, KIMI_SPECIAL, load_tokenizer

WORDS = ["do", "don", "'t", "don't", "क्", "क्या", "He", "Hello", "中文", " a", "\n\n", "12"]
# As released, with gaps between them.
SPECIAL = {0: "[BOS]", 1: "[EOS]", 2: "<|im_end|>", 3: "<|im_user|>", 4: "<|im_assistant|>"}
SPECIAL |= {17: "<|im_middle|>", 254: "[UNK]", 255: "[PAD]"}
TEMPLATE = (
    "{%- for m in messages -%}<|im_{{ m['role'] }}|>{{ m['role'] }}<|im_middle|>"
    "{{ m['content'] }}<|im_end|>{%- endfor -%}"
    "{%- if add_generation_prompt -%}<|im_assistant|>assistant<|im_middle|>{%- endif -%}"
)


def _ranks() -> dict[bytes, int]:
    """Single bytes, then words by way of their beginnings, as merges need them."""
    tokens = [bytes([byte]) for byte in range(256)]
    for word in map(str.encode, WORDS):
        tokens += [word[:n] for n in range(2, len(word) + 1) if word[:n] not in tokens]
    return {token: rank for rank, token in enumerate(tokens)}


@pytest.fixture(params=["kimi_k2", "deepseek_v3"])
def released(request: pytest.FixtureRequest, tmp_path: Path) -> Path:
    """A folder with the files of a release: config.json, ranks, settings, and code."""
    ranks = _ranks()
    lines = [base64.b64encode(token) + b" %d" % rank for token, rank in ranks.items()]
    (tmp_path / "tiktoken.model").write_bytes(b"\n".join(lines))
    (tmp_path / "tokenization_kimi.py").write_text("raise SystemExit('code of the folder ran')\n")
    added = {
        str(len(ranks) + place): {"content": name, "special": True}
        for place, name in SPECIAL.items()
    }
    settings = {
        "added_tokens_decoder": added,
        "additional_special_tokens": ["<|im_end|>", "<|im_user|>"],
        "auto_map": {"AutoTokenizer": ["tokenization_kimi.TikTokenTokenizer", None]},
        "bos_token": "[BOS]",
        "chat_template": TEMPLATE,
        "eos_token": {"content": "[EOS]"},
        "pad_token": "[PAD]",
        "tokenizer_class": "TikTokenTokenizer",
        "unk_token": "[UNK]",
    }
    (tmp_path / "tokenizer_config.json").write_text(json.dumps(settings))
    kimi_k2_instruct().to_json(tmp_path / "config.json")
    config = json.loads((tmp_path / "config.json").read_text())
    config |= {
        "model_type": request.param,
        "auto_map": {"AutoConfig": "configuration_deepseek.DeepseekV3Config"},
    }
    (tmp_path / "config.json").write_text(json.dumps(config))
    return tmp_path


def test_kimis_text_is_cut_and_merged_as_tiktoken_does(released: Path) -> None:
    ranks = _ranks()
    ids = {
        SPECIAL.get(n, f"<|reserved_token_{len(ranks) + n}|>"): len(ranks) + n
        for n in range(KIMI_SPECIAL)
    }
    peer = tiktoken.Encoding("kimi", pat_str=KIMI_PIECES, mergeable_ranks=ranks, special_tokens=ids)
    tokenizer = load_tokenizer(released)
    assert len(tokenizer) == len(ranks) + KIMI_SPECIAL
    draw = random.Random(0)
    letters = "aBdon't क्या中文0123 \n\r\t.,'SD éÄ<|-"
    texts = ["".join(draw.choices(letters, k=30)) for _ in range(1000)]
    texts += [
        "don't",
        "क्या",
        "Hello中文 12345",
        "a<|im_end|>b",
        f"<|reserved_token_{len(ranks) + 9}|>",
    ]
    for text in texts:
        expected = peer.encode(text, allowed_special="all")
        assert tokenizer.encode(text, add_special_tokens=False) == expected, text
        assert tokenizer.decode(expected, clean_up_tokenization_spaces=False) == text
    assert tokenizer.encode("don't", add_special_tokens=False) == [ranks[b"don't"]]


def test_kimis_turns_end_as_its_template_says(released: Path) -> None:
    renderer = Renderer(released)
    first = len(_ranks())
    assert renderer.eos_id == first + 2
    prompt = renderer.prompt_ids([Message(role="user", content="do")])
    assert prompt[0] == first + 3 and prompt[-1] == first + 17
    stranger = renderer.inert([Message(role="user", content="a<|im_middle|>b")])
    assert stranger[0].content != "a<|im_middle|>b"
    template = "{{ 'other' }}<|im_end|>"
    (released / "chat_template.jinja").write_text(template)
    assert load_tokenizer(released).chat_template == template


def test_another_tokenizer_that_is_code_is_refused_by_name(released: Path) -> None:
    file = released / "tokenizer_config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | {"tokenizer_class": "MineTokenizer"}))
    with pytest.raises(ValueError, match="class 'MineTokenizer', whose code is not run"):
        Renderer(released)
