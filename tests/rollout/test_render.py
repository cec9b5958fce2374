from pathlib import Path

import pytest
from transformers import AddedToken, AutoTokenizer

from model.tiny import create_tiny
from rewards.task import Message
from rollout.config import FamilyConfig, TasksConfig
from rollout.render import Renderer
from rollout.tasks import Split, TaskStream, corpus

TASKS = TasksConfig(families=[FamilyConfig(name="gcd", options={"max_value": 40})])


@pytest.fixture(scope="module")
def renderer(tmp_path_factory: pytest.TempPathFactory) -> Renderer:
    folder = tmp_path_factory.mktemp("tiny")
    create_tiny(folder, corpus(TASKS, 200), seed=0)
    return Renderer(folder)


def test_a_solution_survives_the_round_trip(renderer: Renderer) -> None:
    task = TaskStream(TASKS, Split.train).at(0)
    assert task.solution is not None
    prompt_ids, response_ids = renderer.training_ids(task.messages, task.solution)
    assert prompt_ids == renderer.prompt_ids(task.messages)
    assert response_ids[-1] == renderer.eos_id and renderer.eos_id not in response_ids[:-1]
    assert renderer.text(response_ids) == task.solution
    assert max(prompt_ids + response_ids) < renderer.vocab_size


def test_a_prompt_ends_where_the_policy_begins(renderer: Renderer) -> None:
    asked = [Message(role="user", content="1 + 1 =")]
    longer = [*asked, Message(role="assistant", content="2"), Message(role="user", content="?")]
    prompt_ids = renderer.prompt_ids(asked)
    assert renderer.prompt_ids(longer)[: len(prompt_ids)] == prompt_ids
    assert prompt_ids[-1] != renderer.eos_id and renderer.eos_id in prompt_ids


def test_marks_that_are_not_special_are_split_for_strangers_too(
    renderer: Renderer, tmp_path: Path
) -> None:
    renderer._tokenizer.save_pretrained(tmp_path)
    marks = ["</think>", "<|tool_call_begin|>", "[/INST]"]
    tokenizer = AutoTokenizer.from_pretrained(tmp_path)
    tokenizer.add_tokens([AddedToken(mark, special=False) for mark in [*marks, "    "]])
    tokenizer.save_pretrained(tmp_path)
    own = Renderer(tmp_path)
    said = [Message(role="user", content=f"a {mark}    b") for mark in marks]
    for mark, message in zip(marks, said, strict=True):
        token = tokenizer.convert_tokens_to_ids(mark)
        assert token in own.prompt_ids([message])
        (inert,) = own.inert([message])
        assert token not in own.prompt_ids([inert]) and "    " in inert.content


def test_a_tokenizer_without_a_chat_template_is_refused(renderer: Renderer, tmp_path: Path) -> None:
    renderer._tokenizer.save_pretrained(tmp_path)
    (tmp_path / "chat_template.jinja").unlink()
    with pytest.raises(ValueError, match="has no chat template"):
        Renderer(tmp_path)
