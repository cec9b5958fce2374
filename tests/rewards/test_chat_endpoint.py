"""A model behind HTTP: a real server that answers well, badly, late, or not at all."""

import asyncio
import json
import threading
import time
from collections.abc import Callable, Coroutine, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import pytest

from rewards.chat_endpoint import (
    ATTEMPTS,
    MOST_BYTES,
    ChatEndpoint,
    Fault,
    FaultKind,
    critic_endpoint,
    read_completion,
)
from rewards.comparison import Answer, NoAnswer, Pair
from rewards.critic import Critic
from rewards.critic_config import CriticConfig
from rewards.errors import RewardError
from rewards.rubric import Rubric
from rewards.task import Message

Reply = Callable[[dict[str, Any], int], tuple[int, bytes]]
ASKED = (Message(role="user", content="Why?"),)


class Server:
    """Answers by a function of the request and its number; remembers what it was asked."""

    def __init__(self) -> None:
        self.reply: Reply = lambda request, number: (200, completion("Because."))
        self.requests: list[dict[str, Any]] = []
        self.headers: list[dict[str, str]] = []
        self.running = self.most_at_once = 0
        self.connections = 0
        self.drip_s = 0.0  # between bytes
        server = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def setup(self) -> None:
                super().setup()
                server.connections += 1

            def finish(self) -> None:
                server.connections -= 1
                super().finish()

            def do_POST(self) -> None:
                server.running += 1
                server.most_at_once = max(server.most_at_once, server.running)
                try:
                    body = self.rfile.read(int(self.headers["Content-Length"]))
                    server.requests.append(json.loads(body) | {"path": self.path})
                    server.headers.append(dict(self.headers))
                    status, reply = server.reply(server.requests[-1], len(server.requests))
                    self.send_response(status)
                    self.send_header("Content-Length", str(len(reply)))
                    self.end_headers()
                    for byte in reply if server.drip_s else ():
                        self.wfile.write(bytes([byte]))
                        time.sleep(server.drip_s)
                    self.wfile.write(b"" if server.drip_s else reply)
                except OSError:
                    pass  # the client has left
                finally:
                    server.running -= 1

            def log_message(self, *arguments: object) -> None:
                pass

        self.http = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.http.daemon_threads = True
        self.url = f"http://127.0.0.1:{self.http.server_port}/v1"
        threading.Thread(target=self.http.serve_forever, args=(0.02,), daemon=True).start()


def completion(text: object, finish: str = "stop", usage: object = None) -> bytes:
    choice = {"message": {"role": "assistant", "content": text}, "finish_reason": finish}
    return json.dumps({"choices": [choice], "usage": usage}).encode()


@pytest.fixture
def server() -> Iterator[Server]:
    made = Server()
    yield made
    made.http.shutdown()
    made.http.server_close()


def endpoint(server: Server, **settings: Any) -> ChatEndpoint:
    given: dict[str, Any] = {"url": server.url, "model": "m", "backoff_s": 0.01}
    return ChatEndpoint(**given | settings)


async def ask(chat: ChatEndpoint) -> Answer:
    return await chat(ASKED, max_tokens=7, temperature=0.25)


def run(chat: ChatEndpoint, made: Callable[[], Coroutine[Any, Any, Any]] | None = None) -> Any:
    async def whole() -> Any:
        try:
            return await (made() if made else ask(chat))
        finally:
            await chat.aclose()

    return asyncio.run(whole())


def test_what_is_asked_and_answered(server: Server) -> None:
    usage = {"prompt_tokens": 12, "completion_tokens": 3}
    server.reply = lambda request, number: (200, completion("Because.", usage=usage))
    chat = endpoint(server, api_key="secret")
    assert run(chat) == Answer(text="Because.", truncated=False, tokens=3, prompt_tokens=12)
    assert server.requests == [
        {
            "path": "/v1/chat/completions",
            "model": "m",
            "messages": [{"role": "user", "content": "Why?"}],
            "temperature": 0.25,
            "max_tokens": 7,
        }
    ]
    assert server.headers[0]["Authorization"] == "Bearer secret"


@pytest.mark.parametrize("end", ["/", "/chat/completions"])
def test_other_ways_to_write_the_url(server: Server, end: str) -> None:
    run(endpoint(server, url=server.url + end))
    assert server.requests[0]["path"] == "/v1/chat/completions"
    assert "Authorization" not in server.headers[0]


def test_a_lone_surrogate_can_be_asked(server: Server) -> None:
    chat = endpoint(server)
    odd = (Message(role="user", content="a\ud800b"),)
    run(chat, lambda: chat(odd, max_tokens=1, temperature=0.0))
    assert server.requests[0]["messages"][0]["content"] == "a?b"


@pytest.mark.parametrize(
    ("usage", "tokens"),
    [
        (None, (0, 0)),
        ("many", (0, 0)),
        ({}, (0, 0)),
        ({"completion_tokens": 5}, (5, 0)),
        ({"completion_tokens": -5, "prompt_tokens": True}, (0, 0)),
        ({"completion_tokens": "5", "prompt_tokens": None}, (0, 0)),
        ({"completion_tokens": 10**400}, (0, 0)),
    ],
)
def test_usage_is_read_where_it_is_given(usage: object, tokens: tuple[int, int]) -> None:
    answer = read_completion(completion("x", usage=usage))
    assert isinstance(answer, Answer) and (answer.tokens, answer.prompt_tokens) == tokens


def test_an_answer_that_was_cut() -> None:
    cut = read_completion(completion("Bec", "length"))
    assert isinstance(cut, Answer) and cut.truncated
    thinking = read_completion(completion(None, "length"))
    assert isinstance(thinking, Answer) and thinking.truncated and thinking.text == ""


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"<html>busy</html>",
        b"\xff\xfe",
        b"[]",
        b"null",
        b'{"choices": []}',
        b'{"choices": ["x"]}',
        b'{"choices": [{"message": {"content": 5}}]}',
        b'{"choices": [{"message": null}]}',
        completion(None),
        b"[" * 100_000,
        b"1" * 10_000,
    ],
)
def test_nonsense_is_told_as_such(body: bytes) -> None:
    fault = read_completion(body)
    assert isinstance(fault, Fault) and fault.kind is FaultKind.nonsense
    assert fault.why.startswith("no chat completion: ") and len(fault.why) < 600


@pytest.mark.parametrize(
    ("status", "body"),
    [(500, b"oops"), (503, b""), (200, b"<html>busy</html>")],
)
def test_a_fault_that_may_pass_is_asked_again(server: Server, status: int, body: bytes) -> None:
    server.reply = lambda request, number: (
        (status, body) if number < ATTEMPTS else (200, completion("Because."))
    )
    assert run(endpoint(server)).text == "Because."
    assert len(server.requests) == ATTEMPTS


@pytest.mark.parametrize(
    ("status", "body", "times", "why"),
    [
        (500, b"out of  memory", ATTEMPTS, "HTTP 500: out of memory"),
        (200, b"{}", ATTEMPTS, "no chat completion: '{}'"),
        (400, b"content policy", 1, "HTTP 400: content policy"),
        (302, b"", 1, "HTTP 302"),
    ],
)
def test_one_question_without_an_answer(
    server: Server, status: int, body: bytes, times: int, why: str
) -> None:
    server.reply = lambda request, number: (status, body)
    with pytest.raises(NoAnswer, match=why):
        run(endpoint(server))
    assert len(server.requests) == times


@pytest.mark.parametrize(
    "body",
    [
        b'{"error": {"message": "This model\'s maximum context length is 2048 tokens."}}',
        b'{"error": {"code": "context_length_exceeded"}}',
        b'{"message": "The decoder prompt is longer than the maximum model length of 64."}',
        b'{"message": "max_tokens is too large: 4096"}',
    ],
)
def test_what_does_not_fit_is_the_askers_affair(server: Server, body: bytes) -> None:
    server.reply = lambda request, number: (400, body)
    with pytest.raises(ValueError, match="HTTP 400"):
        run(endpoint(server))
    assert len(server.requests) == 1


@pytest.mark.parametrize("status", [401, 403, 404])
def test_a_closed_door_is_an_error_at_once(server: Server, status: int) -> None:
    server.reply = lambda request, number: (status, b"not for you, secret")
    with pytest.raises(RewardError, match=rf"refuses: HTTP {status}: not for you, \*\*\*") as found:
        run(endpoint(server, api_key="secret"))
    assert not isinstance(found.value, NoAnswer)
    assert len(server.requests) == 1


@pytest.mark.parametrize("drip_s", [0.0, 0.1])
def test_a_late_answer_has_its_limit(server: Server, drip_s: float) -> None:
    def late(request: dict[str, Any], number: int) -> tuple[int, bytes]:
        time.sleep(0.0 if drip_s else 2.0)
        return 200, completion("Because.")

    server.reply, server.drip_s = late, drip_s
    with pytest.raises(NoAnswer, match=r"no answer within 0.2 s"):
        run(endpoint(server, timeout_s=0.2))
    assert len(server.requests) == ATTEMPTS


def test_a_huge_reply_is_not_read_to_its_end(server: Server) -> None:
    body = completion("x" * (8 * MOST_BYTES))
    assert isinstance(read_completion(body), Answer)
    server.reply = lambda request, number: (200, body)
    chat = endpoint(server)
    fault = run(chat, lambda: chat.request(ASKED, max_tokens=1, temperature=0.0))
    assert isinstance(fault, Fault) and fault.kind is FaultKind.nonsense
    assert len(fault.why) < 600


def test_no_more_at_once_than_agreed(server: Server) -> None:
    def slow(request: dict[str, Any], number: int) -> tuple[int, bytes]:
        time.sleep(0.05)
        return 200, completion("Because.")

    server.reply = slow
    chat = endpoint(server, concurrency=3)

    async def many() -> list[Answer]:
        return list(await asyncio.gather(*(ask(chat) for _ in range(12))))

    assert len(run(chat, many)) == 12
    assert server.most_at_once == 3


def test_waiting_for_a_slot_is_not_the_endpoints_fault(server: Server) -> None:
    def slow(request: dict[str, Any], number: int) -> tuple[int, bytes]:
        time.sleep(0.3)
        return 200, completion("Because.")

    server.reply = slow
    chat = endpoint(server, concurrency=1, timeout_s=1.5)

    async def many() -> None:
        await asyncio.gather(*(ask(chat) for _ in range(10)))

    run(chat, many)
    assert len(server.requests) == 10  # none was late


def test_an_endpoint_that_is_gone_is_told_early() -> None:
    chat = ChatEndpoint(url="http://127.0.0.1:9/v1", model="m", concurrency=4, backoff_s=0.0)

    async def many() -> list[Answer | BaseException]:
        return list(await asyncio.gather(*(ask(chat) for _ in range(100)), return_exceptions=True))

    errors = run(chat, many)
    told = [error for error in errors if not isinstance(error, NoAnswer)]
    assert told and all(isinstance(error, RewardError) for error in told)
    assert any("m at http://127.0.0.1:9/v1 failed 20 times in a row" in str(one) for one in told)


def test_an_answer_between_ends_a_row_of_failures(server: Server) -> None:
    server.reply = lambda request, number: (
        (500, b"") if number % 10 else (200, completion("Because."))
    )
    chat = endpoint(server, backoff_s=0.0)

    async def many() -> int:
        found = [await asyncio.gather(ask(chat), return_exceptions=True) for _ in range(30)]
        assert all(isinstance(one, Answer | NoAnswer) for (one,) in found)
        return sum(isinstance(one, Answer) for (one,) in found)

    assert run(chat, many) > 0
    assert len(server.requests) > 60


def test_one_endpoint_in_several_loops(server: Server) -> None:
    chat = endpoint(server)
    assert [run(chat).text for _ in range(3)] == ["Because."] * 3
    threads = [threading.Thread(target=run, args=(chat,)) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(server.requests) == 7


@pytest.mark.timeout(60)
def test_a_closed_endpoint_opens_again(server: Server) -> None:
    chat = endpoint(server)

    async def twice() -> list[str]:
        texts = [(await ask(chat)).text, (await ask(chat)).text]
        assert server.connections == 1  # one for both
        await chat.aclose()
        await chat.aclose()
        while server.connections:
            await asyncio.sleep(0.01)
        return [*texts, (await ask(chat)).text]

    assert run(chat, twice) == ["Because."] * 3


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"url": "ftp://x"}, "http"),
        ({"url": "http://x:port/v1"}, "is no URL"),
        ({"url": "http://a..b/v1"}, "is no URL"),
        ({"model": ""}, "its model: model=NAME"),
        ({"timeout_s": 0}, "positive"),
        ({"timeout_s": float("nan")}, "positive"),
        ({"concurrency": 0}, "positive"),
        ({"api_key": "sec\nret"}, "key holds"),
        ({"api_key": "sécret"}, "key holds"),
    ],
)
def test_settings_that_cannot_work(change: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message) as found:
        ChatEndpoint(**{"url": "http://x", "model": "m", **change})
    assert "ret" not in str(found.value)


def test_a_critic_over_http(server: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    def judge(request: dict[str, Any], number: int) -> tuple[int, bytes]:
        first = request["messages"][1]["content"].split("<answer_A>\n")[1].startswith("Air")
        word = "A" if first else "B"
        return 200, completion(f'So.\n{{"rubrics": {{"true": "{word}"}}, "better": "{word}"}}')

    server.reply = judge
    monkeypatch.setenv("JUDGE_KEY", " secret\n")
    config = CriticConfig(endpoint=server.url, model="m", api_key_env="JUDGE_KEY")
    chat = critic_endpoint(config)
    critic = Critic(config, (Rubric(name="true", text="It is true."),), chat)
    outcome = run(chat, lambda: critic.compare(Pair(prompt=ASKED, answers=("Air.", "Sea."))))
    assert outcome.preference == 1.0
    assert server.headers[0]["Authorization"] == "Bearer secret"
    assert server.requests[0]["max_tokens"] == config.token_budget


def test_a_recipe_without_an_endpoint() -> None:
    with pytest.raises(ValueError, match="endpoint is not set"):
        critic_endpoint(CriticConfig())
