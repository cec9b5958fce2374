"""The critic's endpoint is asked once before an engine is started: a real server, or none."""

import asyncio
import json
import socket
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import pytest

from rewards.critic_config import CriticConfig
from rewards.errors import RewardError
from rl.rollout_worker import endpoint_of


class Server(ThreadingHTTPServer):
    """Answers with `status`, and keeps what it was sent."""

    status = 200

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.asked: list[dict[str, Any]] = []


class Handler(BaseHTTPRequestHandler):
    server: Server

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers["Content-Length"]))
        self.server.asked.append(json.loads(body))
        said = {"choices": [{"message": {"content": "yes"}, "finish_reason": "stop"}]}
        reply = json.dumps(said).encode()
        self.send_response(self.server.status)
        self.send_header("Content-Length", str(len(reply)))
        self.end_headers()
        self.wfile.write(reply)

    def log_message(self, format: str, *args: object) -> None:
        pass


@pytest.fixture
def server() -> Iterator[Server]:
    server = Server()
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    yield server
    server.shutdown()
    thread.join()
    server.server_close()


def _critic(port: int) -> CriticConfig:
    return CriticConfig(
        endpoint=f"http://127.0.0.1:{port}/v1", model="m", token_budget=77, temperature=0.3
    )


async def _open(critic: CriticConfig | None) -> bool:
    endpoint = await endpoint_of(critic)
    if endpoint is not None:
        await endpoint.aclose()
    return endpoint is not None


def test_an_endpoint_is_asked_once_as_it_will_be(server: Server) -> None:
    assert asyncio.run(_open(_critic(server.server_port)))
    (asked,) = server.asked
    assert (asked["model"], asked["max_tokens"], asked["temperature"]) == ("m", 77, 0.3)


def test_the_policy_as_critic_needs_no_endpoint() -> None:
    assert not asyncio.run(_open(None))
    assert not asyncio.run(_open(CriticConfig()))


def test_an_endpoint_without_the_model_is_refused(server: Server) -> None:
    server.status = 404
    with pytest.raises(RewardError, match=r"endpoint does not answer: m at .* HTTP 404"):
        asyncio.run(_open(_critic(server.server_port)))


def test_an_endpoint_that_is_not_there_is_refused() -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    with pytest.raises(RewardError, match=r"endpoint does not answer: m at .* Connect"):
        asyncio.run(_open(_critic(port)))
