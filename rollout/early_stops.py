"""What ends a completion before the engine would: it took too long, or it goes in circles."""

import time
from collections.abc import Sequence
from dataclasses import replace

from rewards.repetition import STRIDE, RepetitionDetector
from rollout.episode import Completion


class Timer:
    """Says stop when so many seconds have passed since a request's first token."""

    def __init__(self, seconds: float) -> None:
        """Wait for the first token: a request may be queued for long."""
        self._seconds = seconds
        self._until: float | None = None
        self.over = False

    def feed(self, tokens: Sequence[int]) -> bool:
        """The next tokens are there; returns `over`."""
        now = time.monotonic()
        if self._until is None:
            self._until = now + self._seconds
        self.over = self.over or now >= self._until
        return self.over


def until_found(drawn: Completion, detector: RepetitionDetector) -> Completion:
    """What was drawn, up to the piece in which `detector` finds that it goes in circles."""
    for first in range(0, len(drawn.token_ids), STRIDE):
        end = first + STRIDE
        if detector.feed(drawn.token_ids[first:end]):
            return replace(
                drawn,
                token_ids=drawn.token_ids[:end],
                logprobs=drawn.logprobs[:end],
                versions=drawn.versions[:end],
                routing=drawn.routing[: len(drawn.prompt_ids) + end - 1]
                if drawn.routing is not None
                else None,
            )
    return drawn
