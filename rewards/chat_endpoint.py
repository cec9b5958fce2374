"""A model behind an OpenAI-compatible endpoint: `POST URL/chat/completions`."""

import asyncio
import json
import os
import re
from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass
from enum import Enum
from typing import Any
from weakref import WeakKeyDictionary

import httpx

from rewards.comparison import Answer, NoAnswer
from rewards.critic_config import CriticConfig
from rewards.errors import RewardError
from rewards.task import Message

ATTEMPTS = 4
BACKOFF_S = 0.5  # doubles with every attempt
MOST_BYTES = 8 << 20  # of one reply
LEAST_FAILURES = 20  # requests in a row until an endpoint counts as gone
BUSY_WAITS = 5  # for an endpoint that limits us: 15 s by the backoff alone
MOST_WAIT_S = 60.0  # that it may ask for
MOST_TOKENS = 1 << 40  # that one reply may claim

_NO_ROOM = re.compile(
    r"context|model length|max_(completion_)?tokens|too (long|large)", re.IGNORECASE
)


class FaultKind(Enum):
    """Why a request brought no answer."""

    late = "late"  # not within the time limit
    failed = "failed"  # no connection, or 5xx
    busy = "busy"  # 429, after all waits: too many requests
    refused = "refused"  # another status
    closed = "closed"  # not for us: no such model, no such key
    no_room = "no_room"  # messages and answer do not fit the context
    nonsense = "nonsense"  # a reply that is no chat completion


_PASSING = frozenset({FaultKind.late, FaultKind.failed, FaultKind.nonsense})


@dataclass(frozen=True, slots=True, kw_only=True)
class Fault:
    """A request without an answer."""

    kind: FaultKind
    why: str
    wait_s: float = 0.0  # that a busy endpoint asks for

    @property
    def passes(self) -> bool:
        """Whether asking again may help."""
        return self.kind in _PASSING


@dataclass(frozen=True, slots=True, kw_only=True)
class _Connection:
    """What one event loop holds."""

    client: httpx.AsyncClient
    slots: asyncio.Semaphore


class ChatEndpoint:
    """An `Ask` over HTTP. Safe for any number of callers; close it in the loop that used it."""

    def __init__(
        self,
        *,
        url: str,
        model: str,
        api_key: str = "",
        timeout_s: float = 120.0,
        concurrency: int = 16,
        backoff_s: float = BACKOFF_S,
    ) -> None:
        """Connects to nothing yet.

        Args:
            url: http://host:8000/v1
            model: the endpoint's name of its model.
            api_key: sent as a bearer token, if any; never shown.
            timeout_s: of one request, from sending to the last byte.
            concurrency: requests under way at once, in one event loop.
            backoff_s: wait before the second attempt; doubles with each.

        Raises:
            ValueError: settings that cannot work.
        """
        if not url.startswith(("http://", "https://")):
            raise ValueError(f"endpoint {url!r} must start with http:// or https://")
        if not model:
            raise ValueError("an endpoint needs the name of its model: model=NAME")
        if not timeout_s > 0 or concurrency < 1:
            raise ValueError("timeout and concurrency of an endpoint must be positive")
        if not re.fullmatch(r"[!-~]*", api_key):  # else an error of the client would show it
            raise ValueError("the endpoint's key holds a space or what is not ASCII")
        base = url.rstrip("/").removesuffix("/chat/completions")
        try:
            self._url = httpx.URL(f"{base}/chat/completions")
            self._url.host.encode("idna")  # as every request will: a bad name fails there
        except (httpx.InvalidURL, UnicodeError) as error:
            raise ValueError(f"endpoint {url!r} is no URL: {error}") from error
        self.name = f"{model} at {re.sub('//[^/]*@', '//***@', url)}"  # a password may stand there
        self._model = model
        self._api_key = api_key
        self._timeout_s = timeout_s
        self._concurrency = concurrency
        self._backoff_s = backoff_s
        self._failures = 0  # in a row
        self._connections: WeakKeyDictionary[asyncio.AbstractEventLoop, _Connection]
        self._connections = WeakKeyDictionary()

    async def __call__(
        self, messages: Sequence[Message], *, max_tokens: int, temperature: float
    ) -> Answer:
        """One answer, asked for up to four times while a fault may pass.

        Raises:
            ValueError: messages and answer do not fit the model's context.
            NoAnswer: there is none to this question.
            RewardError: the endpoint refuses everything, or has failed many times in a row.
        """
        why = "not asked"
        for attempt in range(ATTEMPTS):
            if attempt:
                await asyncio.sleep(self._backoff_s * 2 ** (attempt - 1))
            said = await self.request(messages, max_tokens=max_tokens, temperature=temperature)
            if isinstance(said, Answer):
                self._failures = 0
                return said
            if said.kind is FaultKind.no_room:
                raise ValueError(f"{self.name}: {said.why}")
            self._check(said)
            why = said.why
            if not said.passes:
                break
        raise NoAnswer(f"{self.name}: {why}")

    async def request(
        self, messages: Sequence[Message], *, max_tokens: int, temperature: float
    ) -> Answer | Fault:
        """One request, sent again only to a busy endpoint; nothing that it does is raised.

        Who waits for a busy endpoint keeps the slot, so that fewer requests come to it.
        """
        payload = {
            "model": self._model,
            "messages": [
                {"role": message.role, "content": _plain(message.content)} for message in messages
            ],
            "temperature": temperature,
            "max_tokens": max_tokens,
        }
        connection = self._connection()
        async with connection.slots:
            said = await self._send(connection.client, payload)
            for wait in range(BUSY_WAITS):
                if isinstance(said, Answer) or said.kind is not FaultKind.busy:
                    break
                await asyncio.sleep(max(self._backoff_s * 2**wait, said.wait_s))
                said = await self._send(connection.client, payload)
        return said

    async def _send(self, client: httpx.AsyncClient, payload: dict[str, Any]) -> Answer | Fault:
        try:
            async with (
                asyncio.timeout(self._timeout_s),
                client.stream("POST", self._url, json=payload) as reply,
            ):
                body = await _read(reply.aiter_bytes())
        except TimeoutError:
            return Fault(kind=FaultKind.late, why=f"no answer within {self._timeout_s:g} s")
        except httpx.HTTPError as error:
            why = f"{type(error).__name__}: {error}"
            return Fault(kind=FaultKind.failed, why=why[:300])
        # Some servers show the key in their complaint; an answer may hold the same word.
        shown = body.replace(self._api_key.encode(), b"***") if self._api_key else body
        if reply.status_code != 200:
            return _refusal(reply.status_code, shown, reply.headers.get("Retry-After", ""))
        said = read_completion(body)
        return _nonsense(shown) if isinstance(said, Fault) else said

    async def aclose(self) -> None:
        """Close the connections of the running event loop; it may be used again."""
        connection = self._connections.pop(asyncio.get_running_loop(), None)
        if connection is not None:
            await connection.client.aclose()

    def _connection(self) -> _Connection:
        loop = asyncio.get_running_loop()
        if loop not in self._connections:
            headers = {"Authorization": f"Bearer {self._api_key}"} if self._api_key else {}
            no_limits = httpx.Limits()  # the slots are the limit: waiting for one takes no time
            client = httpx.AsyncClient(headers=headers, limits=no_limits, timeout=None)
            slots = asyncio.Semaphore(self._concurrency)
            self._connections[loop] = _Connection(client=client, slots=slots)
        return self._connections[loop]

    def _check(self, fault: Fault) -> None:
        """Give up on an endpoint that is gone: asking on would take hours."""
        if fault.kind is FaultKind.closed:
            raise RewardError(f"{self.name} refuses: {fault.why}")
        self._failures += 1
        if self._failures >= max(LEAST_FAILURES, 2 * self._concurrency):
            times = f"failed {self._failures} times in a row"
            raise RewardError(f"{self.name} {times}, at last: {fault.why}")


def critic_endpoint(config: CriticConfig) -> ChatEndpoint:
    """The endpoint that judges; its key is read from the environment.

    Raises:
        ValueError: the configuration names none, or settings that cannot work.
    """
    if config.endpoint is None:
        raise ValueError("rewards.critic.endpoint is not set: the policy itself is the critic")
    return ChatEndpoint(
        url=config.endpoint,
        model=config.model,
        api_key=read_key(config.api_key_env),
        timeout_s=config.timeout_s,
        concurrency=config.concurrency,
    )


def read_key(variable: str) -> str:
    """The key in an environment variable, or nothing."""
    return os.environ.get(variable, "").strip()


def read_completion(body: bytes) -> Answer | Fault:
    """The answer in a reply of an endpoint; untrusted."""
    try:
        reply: Any = json.loads(body)
        choice: Any = reply["choices"][0]
        text, cut = choice["message"]["content"], choice.get("finish_reason") == "length"
        if text is None and cut:  # it was still reasoning, which some servers hold apart
            text = ""
        if not isinstance(text, str):
            raise TypeError("no text")
    except (ValueError, KeyError, IndexError, TypeError, AttributeError, RecursionError):
        return _nonsense(body)
    usage = reply.get("usage")
    return Answer(
        text=text,
        truncated=cut,
        tokens=_count(usage, "completion_tokens"),
        prompt_tokens=_count(usage, "prompt_tokens"),
    )


def _nonsense(body: bytes) -> Fault:
    shown = " ".join(body[:120].decode(errors="replace").split())
    return Fault(kind=FaultKind.nonsense, why=f"no chat completion: {shown!r}")


def _count(usage: object, key: str) -> int:
    """Tokens as the endpoint counts them; 0 if it does not, or not credibly."""
    value = usage.get(key) if isinstance(usage, dict) else None
    return value if type(value) is int and 0 <= value <= MOST_TOKENS else 0


def _refusal(status: int, body: bytes, retry_after: str) -> Fault:
    text = " ".join(body[:2000].decode(errors="replace").split())
    kind = FaultKind.refused
    if status == 429:
        kind = FaultKind.busy
    elif status >= 500:
        kind = FaultKind.failed
    elif status in (400, 413, 422) and _NO_ROOM.search(text):
        kind = FaultKind.no_room
    elif status in (401, 403, 404):
        kind = FaultKind.closed
    asked_s = float(retry_after) if re.fullmatch("[0-9]{1,9}", retry_after) else 0.0
    why = f"HTTP {status}: {text[:200]}".strip()
    return Fault(kind=kind, why=why, wait_s=min(asked_s, MOST_WAIT_S))


def _plain(text: str) -> str:
    """Without lone surrogates, which no request can hold."""
    return text.encode(errors="replace").decode()


async def _read(chunks: AsyncIterator[bytes]) -> bytes:
    body = bytearray()
    async for chunk in chunks:
        body += chunk
        if len(body) > MOST_BYTES:
            break
    return bytes(body)
