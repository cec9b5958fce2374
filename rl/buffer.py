"""Finished groups on their way to the learner, in task order, within the staleness bound."""

import asyncio

from rollout.episode import Group


class GroupBuffer:
    """Groups by position in the task stream; step s trains positions [s * size, (s + 1) * size).

    Version v of the weights has seen v steps. With `max_staleness` 1 and version 3 just published,
    groups of steps 3 and 4 may start; those of step 5 wait in `admit` for version 4. So a token
    that is trained in step s was sampled with version s - max_staleness or newer, and at most
    `max_staleness + 1` steps of groups exist at any time.
    """

    def __init__(self, *, groups_per_step: int, max_staleness: int, version: int) -> None:
        """Start empty, with `version` being served."""
        self._size = groups_per_step
        self._max_staleness = max_staleness
        self._version = version
        self._groups: dict[int, Group | None] = {}
        self._changed = asyncio.Condition()

    async def admit(self, position: int) -> None:
        """Return when the group at `position` may start."""
        step = position // self._size
        async with self._changed:
            await self._changed.wait_for(lambda: step - self._version <= self._max_staleness)

    async def put(self, position: int, group: Group | None) -> None:
        """Hand in the finished group of `position`; None if it is passed over."""
        async with self._changed:
            self._groups[position] = group
            self._changed.notify_all()

    async def take(self, step: int) -> list[Group]:
        """Wait for all groups of `step`, remove and return them in task order.

        There may be fewer than in other steps: those passed over are left out.
        """
        positions = range(step * self._size, (step + 1) * self._size)
        async with self._changed:
            await self._changed.wait_for(lambda: all(p in self._groups for p in positions))
            groups = [self._groups.pop(p) for p in positions]
        return [group for group in groups if group is not None]

    async def published(self, version: int) -> None:
        """Every engine now serves `version`."""
        async with self._changed:
            self._version = version
            self._changed.notify_all()
