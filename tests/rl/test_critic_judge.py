"""The critic as a judge of `temper eval-reward`: a checkpoint on a real engine, or an endpoint."""

import json
import threading
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
import torch

from model.load import load_k2, save_k2
from model.tiny import create_tiny
from rewards.comparison import Answer, Ask, NoAnswer
from rewards.critic_config import CriticConfig, DecidedBy
from rewards.errors import RewardError
from rewards.preference.judges import Failure, Judgement, Question
from rewards.preference.records import ProblemKind
from rewards.task import Message
from rl.checkpoint_critic import open_checkpoint_critic
from rl.critic_judge import CriticJudge, Served, critic_config
from rl.critic_rubrics import rubrics_of
from rl.errors import BadInput
from rl.open_judge import JudgeOptions

SAYS_A = '{"rubrics": {"true": "A"}, "better": "A"}'
SAYS_TIE = '{"rubrics": {"true": "B"}, "better": "tie"}'
TEXT = Path(__file__).resolve().parent.parent / "data" / "judgebench" / "pairs.jsonl"
TOKENS = ["max_tokens=48", "max_model_len=512"]


def sums(path: Path, count: int, extra: Sequence[dict[str, Any]] = ()) -> str:
    rows = [
        {"id": str(n), "prompt": f"{n} + {n}?", "chosen": f"{2 * n}", "rejected": f"{2 * n + 1}"}
        for n in range(1, count + 1)
    ]
    path.write_text("".join(json.dumps(row) + "\n" for row in [*rows, *extra]))
    return str(path)


def teach(folder: Path, says: str) -> Path:
    """A tiny K2 that answers `says` to everything: a token of that text, then the end of turn.

    With nothing added by its layers, the next token depends on the last one alone.
    """
    create_tiny(folder, ["Compare two answers: which is better, more of it true?"] * 20, seed=0)
    file = folder / "tokenizer.json"
    tokenizer = json.loads(file.read_text())
    added = {token["content"]: token for token in tokenizer["added_tokens"]}
    spare = added["<|reserved_0|>"]
    tokenizer["model"]["vocab"].pop("<|reserved_0|>", None)
    spare |= {"content": says, "special": False}
    file.write_text(json.dumps(tokenizer))
    model = load_k2(folder)
    start, said, end = added["<|im_middle|>"]["id"], spare["id"], added["<|im_end|>"]["id"]
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if name.endswith(("o_proj.weight", "down_proj.weight", "lm_head.weight")):
                parameter.zero_()
        embedding = model.state_dict()["model.embed_tokens.weight"]
        head = model.state_dict()["lm_head.weight"]
        for last, following in ((start, said), (said, end)):
            head[following] = 10 * embedding[last] / embedding[last].norm()
    save_k2(model, folder, torch.float32, tokenizer_from=folder)
    return folder


def test_a_checkpoint_that_always_says_a_is_found_out(eval_reward: Any, tmp_path: Path) -> None:
    folder = teach(tmp_path / "policy", SAYS_A)
    long = {"id": "long", "prompt": "1?", "chosen": "two " * 500, "rejected": "3"}
    data = sums(tmp_path / "pairs.jsonl", 6, [long])
    command = (data, "--judge", f"critic:{folder}", "rubrics=tiny", *TOKENS, "--out", "o")
    code, out, error = eval_reward(*command)
    shown = " ".join(out.split())
    assert code == 0, error
    assert "critic policy on 6 of 7 rows" in shown
    assert "ALWAYS SAYS A" in shown and "same verdict in both orders 0/6" in shown
    assert "picks the first shown 12/12" in shown
    assert "2 x judge failed" in shown and "max_model_len=512" in shown
    assert len((tmp_path / "o" / "judgements.jsonl").read_text().splitlines()) == 12
    sums(tmp_path / "pairs.jsonl", 6)
    code, out, _ = eval_reward(*command, "--json")  # all is kept: no engine starts
    found = json.loads(out)
    assert code == 0 and (found["judged"], found["overall"]["ties"]) == (6, 6)
    assert found["problems"] == []


def test_what_cannot_be_read_is_no_tie(eval_reward: Any, tmp_path: Path) -> None:
    folder = teach(tmp_path / "policy", '{"better": "A"}')
    data = sums(tmp_path / "pairs.jsonl", 3)
    command = (data, "--judge", f"critic:{folder}", "rubrics=tiny", *TOKENS, "--out", "o")
    code, _, error = eval_reward(*command)
    assert code == 2 and "judged none of the 3 rows" in error
    assert "lacks 'rubrics'" in error and '{"better": "A"}' in error
    assert (tmp_path / "o" / "judgements.jsonl").read_text() == ""


def test_a_checkpoint_says_the_same_alone_and_in_a_batch(tmp_path: Path) -> None:
    folder = tmp_path / "tiny"
    create_tiny(folder, [TEXT.read_text()], seed=0)  # words, and hardly a spare token
    model = load_k2(folder)
    for parameter in model.parameters():
        if parameter.ndim > 1:
            parameter.data.mul_(2)  # else it says one word for ever
    save_k2(model, folder, torch.float32, tokenizer_from=folder)
    questions = [Question(prompt=asked(str(n)), responses=("one " * n, "two")) for n in range(1, 9)]
    said = []
    for concurrency in (1, 8):
        options = JudgeOptions(
            rubrics="tiny", max_tokens=24, max_model_len=600, concurrency=concurrency
        )
        judge = open_checkpoint_critic(folder, options)
        said.append(sorted(judge.judge(questions)))
    assert said[0] == said[1]
    assert len({each.why for _, each in said[0]}) > 4  # not all alike


def asked(text: str) -> tuple[Message, ...]:
    return (Message(role="user", content=text),)


def served(replies: Sequence[Answer | Exception], heard: list[float]) -> Served:
    """A model that gives `replies` one after another, and what temperatures it is asked at."""
    left = iter(replies)

    async def ask(messages: Sequence[Message], *, max_tokens: int, temperature: float) -> Answer:
        heard.append(temperature)
        reply = next(left)
        if isinstance(reply, Exception):
            raise reply
        return reply

    @asynccontextmanager
    async def opened() -> AsyncIterator[Ask]:
        yield ask

    return Served(name="fake", identity="fake", open=opened)


def says(text: str, *, truncated: bool = False) -> Answer:
    return Answer(text=text, truncated=truncated, tokens=3, prompt_tokens=9)


def config(**changes: Any) -> CriticConfig:
    settings = {"rubrics": ["tiny"], "temperature": 0.0, "concurrency": 1, "token_budget": 64}
    return CriticConfig(**(settings | changes))


QUESTION = Question(prompt=asked("?"), responses=("a", "b"))


def test_every_kind_of_answer_is_told_apart() -> None:
    replies = [
        says(f"A is true.\n{SAYS_A}"),
        says(SAYS_TIE),
        says("A, surely."),
        says(SAYS_A, truncated=True),
        NoAnswer("late"),
        ValueError("too long"),
    ]
    heard: list[float] = []
    judge = CriticJudge(config(), served(replies, heard))
    found = [said for _, said in judge.judge([QUESTION] * 6)]
    assert found[0] == Judgement(value=1.0, text=f"A is true.\n{SAYS_A}")
    assert found[1] == Judgement(value=0.5, text=SAYS_TIE)
    kinds = [each.kind for each in found[2:] if isinstance(each, Failure)]
    assert kinds == [
        ProblemKind.nonsense, ProblemKind.truncated, ProblemKind.failed, ProblemKind.failed
    ]  # fmt: skip
    assert heard == [0.0] * 6  # greedy: no second try


def test_a_model_that_draws_is_asked_again() -> None:
    heard: list[float] = []
    replies = [
        says("?"),
        says(SAYS_A, truncated=True),
        says(SAYS_A),
        says("?"),
        says("?"),
        says(""),
    ]
    judge = CriticJudge(config(temperature=0.7, attempts=3), served(replies, heard))
    first, second = (said for _, said in judge.judge([QUESTION] * 2))
    assert isinstance(first, Judgement) and first.value == 1.0
    assert isinstance(second, Failure) and second.kind is ProblemKind.nonsense
    assert heard == [0.7] * 6


def test_the_rubrics_may_decide() -> None:
    judge = CriticJudge(config(decided_by=DecidedBy.rubrics), served([says(SAYS_TIE)], []))
    ((_, said),) = judge.judge([QUESTION])
    assert isinstance(said, Judgement) and said.value == 0.0


def test_a_model_that_is_gone_ends_the_judging() -> None:
    judge = CriticJudge(config(), served([says(SAYS_A), RewardError("gone")], []))
    answers = judge.judge([QUESTION] * 3)
    assert next(answers)[0] == 0
    with pytest.raises(RewardError, match="gone"):
        next(answers)


def test_a_caller_who_stops_closes_the_model() -> None:
    closed: list[bool] = []

    @asynccontextmanager
    async def opened() -> AsyncIterator[Ask]:
        async def ask(messages: object, *, max_tokens: int, temperature: float) -> Answer:
            return says(SAYS_A)

        try:
            yield ask
        finally:
            closed.append(True)

    judge = CriticJudge(config(), Served(name="fake", identity="fake", open=opened))
    next(judge.judge([QUESTION] * 3))
    judge.close()
    assert closed == [True]


def test_a_kept_judgement_is_found_by_all_that_it_depends_on() -> None:
    def identity(**changes: Any) -> str:
        return CriticJudge(config(**changes), served([], [])).identity

    settings: list[dict[str, Any]] = [
        {},
        {"rubrics": ["k2"]},
        {"instruction": "Compare."},
        {"temperature": 0.5},
        {"token_budget": 65},
        {"decided_by": DecidedBy.rubrics},
    ]
    assert len({identity(**each) for each in settings}) == len(settings)
    assert identity(concurrency=7) == identity()


def test_an_endpoint_is_asked_what_the_policy_is_asked(eval_reward: Any, tmp_path: Path) -> None:
    verdict = {"rubrics": {}, "better": "B"}
    names = [each.name for each in rubrics_of(CriticConfig()) if each.rule is None]
    bodies: list[dict[str, Any]] = []

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            bodies.append(json.loads(self.rfile.read(int(self.headers["Content-Length"]))))
            text = json.dumps(verdict | {"rubrics": dict.fromkeys(names, "B")})
            reply = json.dumps({"choices": [{"message": {"content": text}}]}).encode()
            self.send_response(200)
            self.send_header("Content-Length", str(len(reply)))
            self.end_headers()
            self.wfile.write(reply)

        def log_message(self, *arguments: object) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True).start()
    data = sums(tmp_path / "pairs.jsonl", 4)
    url = f"http://127.0.0.1:{server.server_port}/v1"
    try:
        code, out, error = eval_reward(
            data, "--judge", url, "model=m", "asks=critic", "max_tokens=99", "--json"
        )
    finally:
        server.shutdown()
        server.server_close()
    assert code == 0, error
    found = json.loads(out)
    assert found["judge"] == f"critic m at {url}" and found["judged"] == 4
    assert len(bodies) == 8
    for body in bodies:
        system, user = (message["content"] for message in body["messages"])
        assert system == CriticConfig().instruction
        assert all(name in user for name in names) and "no_opening_praise" not in user
        assert (body["max_tokens"], body["temperature"]) == (99, 0.0)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("critic:nowhere",), "no config.json there"),
        (("critik:tiny",), "did you mean 'critic'?"),
        (("critic:tiny", "rubrics=k3"), "did you mean 'k2'?"),
        (("critic:tiny", "rubrics=,"), "rubrics is empty"),
        (("critic:tiny", "rubrics=k2,k2"), "given twice"),
        (("critic:tiny", "temperature=3"), "temperature must lie in [0, 2]"),
        (("critic:tiny", "max_model_len=512"), "max_tokens=2048 leaves no room"),
        (("critic:tiny", "max_model_len=-1"), "must not be negative"),
        (("critic:tiny", "decided_by=rubric"), "did you mean 'rubrics'?"),
        (("critic:tiny", "concurrency=0"), "concurrency must be at least 1"),
        (("http://x", "asks=critic"), "name of its model: model=NAME"),
        (("http://x", "model=m", "asks=critique"), "did you mean 'critic'?"),
    ],
)
def test_bad_input_is_one_message(
    eval_reward: Any, tmp_path: Path, arguments: tuple[str, ...], message: str
) -> None:
    create_tiny(tmp_path / "tiny", ["one"], seed=0)
    code, _, error = eval_reward(sums(tmp_path / "pairs.jsonl", 2), "--judge", *arguments)
    assert code == 2 and message in error and "Traceback" not in error


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (lambda folder: (folder / "tokenizer.json").unlink(), "no tokenizer to ask with"),
        (lambda folder: (folder / "config.json").write_text("{"), "config.json is not JSON"),
        (lambda folder: (folder / "config.json").write_text("[]"), "must hold a JSON object"),
    ],
)
def test_a_folder_that_cannot_judge(
    tmp_path: Path, spoil: Callable[[Path], Any], message: str
) -> None:
    create_tiny(tmp_path, ["one"], seed=0)
    spoil(tmp_path)
    with pytest.raises(BadInput, match=message):
        open_checkpoint_critic(tmp_path, JudgeOptions(max_tokens=64))


def test_an_unknown_rubric_is_bad_input() -> None:
    with pytest.raises(BadInput, match="did you mean 'k2'"):
        rubrics_of(CriticConfig(rubrics=["k_2"]))
    assert {each.name for each in rubrics_of(CriticConfig(rubrics=["k2"]))} >= {
        "honest_uncertainty"
    }


def test_a_critic_has_the_recipes_own_system_prompt() -> None:
    assert critic_config(JudgeOptions(instruction="Judge.")).instruction == "Judge."
    assert critic_config(JudgeOptions()).instruction == CriticConfig().instruction
