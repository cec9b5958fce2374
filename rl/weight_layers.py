"""A version on its way layer by layer: one is loaded while the next one comes.

So a host that weights are sent to holds two layers of them, not two versions: a relay's two sets of
files take turns (`rollout.receive_broadcast`), and the next layer but one is not sent before all
engines have loaded this one.
"""

import asyncio
from collections.abc import AsyncGenerator, Sequence
from dataclasses import dataclass

from model.send_weights import WeightUpdate
from rl.part import Part
from rl.weight_transport import WeightTransport


@dataclass(frozen=True, slots=True, kw_only=True)
class Layer:
    """What the engines load next."""

    first: bool
    last: bool
    placed: dict[Part, WeightUpdate | BaseException]
    """As it lies for each engine, or why it did not come there."""


async def by_layer(
    transport: WeightTransport, updates: Sequence[WeightUpdate], parts: Sequence[Part]
) -> AsyncGenerator[Layer, None]:
    """Bring the layers of `updates`, those of each shard by rank, to `parts`.

    Ask for the next one when all have loaded this one. Who leaves `parts` meanwhile gets no more,
    but of the one that is on its way.
    """
    numbers = sorted({number for update in updates for number in update.layers})

    def begun(number: int) -> "asyncio.Task[dict[Part, WeightUpdate | BaseException]]":
        return asyncio.create_task(_placed(transport, updates, list(parts), number))

    coming = [begun(numbers[0])]
    try:
        for number, following in zip(numbers, [*numbers[1:], None], strict=True):
            placed = await coming.pop()
            if following is not None:
                coming = [begun(following)]
            yield Layer(first=number == numbers[0], last=following is None, placed=placed)
    finally:
        for task in coming:
            task.cancel()


async def _placed(
    transport: WeightTransport, updates: Sequence[WeightUpdate], parts: Sequence[Part], number: int
) -> dict[Part, WeightUpdate | BaseException]:
    delivery = await transport.begin([update.layer(number) for update in updates], parts)
    found = await asyncio.gather(*(delivery.at(part) for part in parts), return_exceptions=True)
    return dict(zip(parts, found, strict=True))
