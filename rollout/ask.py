"""The policy as a judge: a conversation in, what the engine says to it out."""

import asyncio
from collections.abc import Sequence

from rewards.comparison import Answer
from rewards.task import Message
from rollout.episode import Generate, StopReason
from rollout.render import Renderer
from rollout.sampler import GroupAborted


class EngineAsk:
    """A `rewards.comparison.Ask` over an engine of ours; it serves any number of callers at once.

    No more than `concurrency` of its requests are in the engine, so that judgements do not starve
    what the policy generates meanwhile.
    """

    def __init__(self, renderer: Renderer, engine: Generate, *, concurrency: int) -> None:
        """Hold the parts; none is owned."""
        self._renderer, self._engine = renderer, engine
        self._free = asyncio.Semaphore(concurrency)

    async def __call__(
        self, messages: Sequence[Message], *, max_tokens: int, temperature: float
    ) -> Answer:
        """One answer; no special token that a message spells reaches the engine.

        `truncated` says that the answer was cut, by `max_tokens` or because it went in circles.

        Raises:
            ValueError: prompt and answer do not fit the engine.
            GroupAborted: the engine gave the answer up.
            EngineError: the engine is dead.
        """
        prompt_ids = self._renderer.prompt_ids(self._renderer.inert(messages))
        async with self._free:
            completion = await self._engine.draw(
                prompt_ids, max_tokens=max_tokens, temperature=temperature
            )
        if completion.stop_reason is StopReason.abort:
            raise GroupAborted("the engine aborted a judgement")
        return Answer(
            text=self._renderer.text(completion.token_ids.tolist()),
            truncated=completion.stop_reason is not StopReason.stop,
            tokens=len(completion.token_ids),
            prompt_tokens=len(prompt_ids),
        )
