"""A process of the run as the driver speaks to it, whatever cluster it lives in."""

import asyncio
import contextlib
import re
from collections.abc import Awaitable, Callable, Mapping
from typing import Any, Protocol, TypeVar

from rl.errors import PartLost
from rl.timeline import Span

Answer = TypeVar("Answer")

SPANS_S = 10.0  # what a busy part says later is lost

HEAD_LOOK_S = 5.0
MOST_MISSED = 3


class Part(Protocol):
    """One process of the run."""

    async def call(self, method: str, *args: Any) -> Any:
        """Call a method; what it raises is raised here. Raises `PartLost` if the process ends."""
        ...

    def kill(self) -> None:
        """End the process, whatever it does. May be called twice, and of a dead one."""
        ...


async def within(seconds: float, part: str, answer: Awaitable[Answer]) -> Answer:
    """The answer of `part`, if it comes in time.

    Raises:
        PartLost: it does not.
    """
    try:
        async with asyncio.timeout(seconds):
            return await answer
    except TimeoutError as error:
        raise PartLost(part, f"no answer for {seconds:g} s") from error


async def farewell(part: Part, method: str) -> None:
    """Call a method that puts things away; a part that cannot has nothing to put away any more."""
    with contextlib.suppress(Exception):
        await part.call(method)


async def watch_head(address: tuple[str, int], fail: Callable[[Exception], None]) -> None:
    """Call `fail` once nobody listens at the address of the cluster's head any more.

    Ray ends a driver that has been without its head for a minute, and says nothing before.
    """
    missed = 0
    while missed < MOST_MISSED:
        await asyncio.sleep(HEAD_LOOK_S)
        try:
            async with asyncio.timeout(HEAD_LOOK_S):
                _, writer = await asyncio.open_connection(*address)
            writer.close()
            missed = 0
        except OSError:  # a timeout is one, too
            missed += 1
    fail(PartLost("Ray's head", f"nobody listens at {address[0]}:{address[1]}"))


def why_dead(error: Exception) -> str:
    """What Ray's error tells of the end of a process, in a line."""
    text = str(error) or type(error).__name__
    pid = re.search(r"pid: (\d+)", text)
    detail = re.search(r"(?:Worker exit detail|OOM kill reason): (.*)", text)
    known = detail[1] if detail else text.splitlines()[-1]
    if "connection error code 2" in known:
        known = "killed, or ended by itself: SIGKILL, out of memory, a crash in native code"
    return f"process {pid[1]}: {known}" if pid else known


async def asked_spans(parts: Mapping[str, Part]) -> list[Span]:
    """What each of them did since it was last asked, by name; a busy or a dead one says nothing."""
    asked = (within(SPANS_S, name, part.call("take_spans", name)) for name, part in parts.items())
    answers = await asyncio.gather(*asked, return_exceptions=True)
    return [span for spans in answers if not isinstance(spans, BaseException) for span in spans]
