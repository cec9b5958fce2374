"""An endpoint that limits us, that shows our key, and questions that are given up."""

import asyncio
import time
from collections.abc import Awaitable, Callable
from typing import Any, TypeVar

import pytest

from rewards import chat_endpoint
from rewards.chat_endpoint import (
    BUSY_WAITS,
    MOST_WAIT_S,
    ChatEndpoint,
    Fault,
    FaultKind,
)
from rewards.comparison import Answer, NoAnswer
from rewards.task import Message

ASKED = (Message(role="user", content="Why?"),)
FINE = (200, b'{"choices": [{"message": {"content": "Because."}}]}')
BUSY = (429, b"slow down")
Reply = tuple[int, bytes]
Made = TypeVar("Made")


class Server:
    """Answers by a function of the request's number; counts."""

    def __init__(self, reply: Callable[[int], Reply], *, header: str = "", late_s: float = 0.0):
        self.reply, self.header, self.late_s = reply, header, late_s
        self.requests = self.running = 0

    async def answer(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        head = await reader.readuntil(b"\r\n\r\n")
        (length,) = [line for line in head.lower().split(b"\r\n") if b"content-length" in line]
        await reader.readexactly(int(length.split(b":")[1]))
        self.requests += 1
        self.running += 1
        status, body = self.reply(self.requests)
        await asyncio.sleep(self.late_s if status == 200 else 0.0)
        self.running -= 1
        start = f"HTTP/1.1 {status} .\r\nContent-Length: {len(body)}\r\nConnection: close\r\n"
        writer.write(f"{start}{self.header}\r\n".encode() + body)
        writer.close()

    def ask(self, work: Callable[[ChatEndpoint], Awaitable[Made]], **settings: Any) -> Made:
        """What `work` makes of the endpoint."""

        async def run() -> Made:
            http = await asyncio.start_server(self.answer, "127.0.0.1", 0)
            url = f"http://127.0.0.1:{http.sockets[0].getsockname()[1]}/v1"
            given: dict[str, Any] = {"api_key": KEY, "backoff_s": 0.01}
            chat = ChatEndpoint(url=url, model="m", **given | settings)
            try:
                return await work(chat)
            finally:
                await chat.aclose()
                http.close()

        return asyncio.run(run())


KEY = "sk-0123456789abcdef0123456789"


async def ask(chat: ChatEndpoint) -> str:
    return (await chat(ASKED, max_tokens=7, temperature=0.25)).text


async def request(chat: ChatEndpoint) -> Answer | Fault:
    return await chat.request(ASKED, max_tokens=7, temperature=0.25)


def test_a_busy_endpoint_is_waited_for() -> None:
    server = Server(lambda number: BUSY if number <= BUSY_WAITS else FINE)
    assert server.ask(ask) == "Because."
    assert server.requests == BUSY_WAITS + 1


def test_an_endpoint_that_stays_busy_is_given_up() -> None:
    server = Server(lambda number: BUSY)
    with pytest.raises(NoAnswer, match="HTTP 429: slow down"):
        server.ask(ask)
    assert server.requests == BUSY_WAITS + 1


def test_many_at_once_wait_for_a_busy_endpoint() -> None:
    """It takes three at a time: who is sent away waits, and keeps the others from coming."""
    server = Server(lambda number: BUSY if server.running > 3 else FINE, late_s=0.005)

    async def many(chat: ChatEndpoint) -> list[str]:
        return await asyncio.gather(*(ask(chat) for _ in range(60)))

    assert server.ask(many, concurrency=12) == ["Because."] * 60
    assert server.requests > 60


@pytest.mark.parametrize(
    ("header", "wait_s"),
    [
        ("Retry-After: 7\r\n", 7.0),
        ("Retry-After: 9999\r\n", MOST_WAIT_S),
        ("", 0.0),
        ("Retry-After: -1\r\n", 0.0),
        ("Retry-After: 1e9\r\n", 0.0),
        ("Retry-After: Wed, 21 Oct 2065 07:28:00 GMT\r\n", 0.0),
    ],
)
def test_a_busy_endpoint_says_how_long(
    monkeypatch: pytest.MonkeyPatch, header: str, wait_s: float
) -> None:
    monkeypatch.setattr(chat_endpoint, "BUSY_WAITS", 0)
    fault = Server(lambda number: BUSY, header=header).ask(request)
    assert fault == Fault(kind=FaultKind.busy, why="HTTP 429: slow down", wait_s=wait_s)


def test_it_is_waited_as_long_as_asked() -> None:
    server = Server(lambda number: BUSY if number == 1 else FINE, header="Retry-After: 1\r\n")
    start = time.monotonic()
    assert server.ask(ask) == "Because."
    assert time.monotonic() - start >= 1.0


@pytest.mark.timeout(60)  # an hour, where the slot is kept
@pytest.mark.parametrize("first", [FINE, BUSY, (500, b"oops")])
def test_a_cancelled_question_gives_its_slot_back(first: Reply) -> None:
    server = Server(lambda number: first if number == 1 else FINE, late_s=0.2)

    async def twice(chat: ChatEndpoint) -> str:
        asking = asyncio.create_task(ask(chat))
        while not server.requests:
            await asyncio.sleep(0.01)
        await asyncio.sleep(0.05)
        asking.cancel()
        with pytest.raises(asyncio.CancelledError):
            await asking
        return await ask(chat)

    assert server.ask(twice, concurrency=1, backoff_s=3600.0) == "Because."


@pytest.mark.parametrize("status", [200, 400, 500])
@pytest.mark.parametrize("before", [b"", b"x" * 105, b"x" * 190, b" " * 1990])
def test_no_part_of_a_key_is_shown(status: int, before: bytes) -> None:
    fault = Server(lambda number: (status, before + KEY.encode())).ask(request)
    assert isinstance(fault, Fault) and KEY[:6] not in fault.why


def test_an_answer_may_hold_the_word_that_is_the_key() -> None:
    for key in ("Because", "content", "a", "."):
        assert Server(lambda number: FINE).ask(ask, api_key=key) == "Because."


def test_a_password_in_the_url_is_not_shown() -> None:
    chat = ChatEndpoint(url="http://me:pass@127.0.0.1:9/v1", model="m", backoff_s=0.0)
    assert chat.name == "m at http://***@127.0.0.1:9/v1"
    with pytest.raises(NoAnswer) as found:
        asyncio.run(ask(chat))
    assert "pass" not in str(found.value)
