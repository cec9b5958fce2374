"""The supervised start: imitate worked solutions until some held-out tasks are solved."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Protocol

from rl.batch import Batch, pack
from rl.config import SftConfig
from rl.errors import BadInput
from rl.evaluate import PassRate
from rl.sample import supervised_sample
from rollout.render import Renderer
from rollout.tasks import TaskStream


class SupervisedStream:
    """Worked solutions of a task stream as batches: the set of the supervised start, and of PTX."""

    def __init__(self, tasks: TaskStream, renderer: Renderer, longest: int) -> None:
        """Draw from `tasks` what has at most `longest` tokens, as all else that is learnt from."""
        self._tasks, self._renderer, self._longest = tasks, renderer, longest

    def batch(self, start: int, count: int) -> Batch | None:
        """The solutions at positions [start, start + count), of tasks that have one that fits.

        None if none has.
        """
        samples = []
        for position in range(start, start + count):
            task = self._tasks.at(position)
            if task.solution is not None:
                prompt, response = self._renderer.training_ids(task.messages, task.solution)
                if len(prompt) + len(response) <= self._longest:
                    samples.append(supervised_sample(prompt, response))
        return pack(samples) if samples else None


class Pupil(Protocol):
    """What the supervised start asks of the learner."""

    async def supervise(self, batches: list[Batch], learning_rates: list[float]) -> list[float]:
        """One optimiser step a batch; the losses."""
        ...

    async def test(self, step: int) -> PassRate:
        """Pass@1 on some held-out tasks."""
        ...


@dataclass(frozen=True, slots=True, kw_only=True)
class SupervisedResult:
    """Where the supervised start ended."""

    steps: int
    loss: float
    accuracy: PassRate


def _learning_rates(config: SftConfig, first: int, count: int) -> Iterator[float]:
    for step in range(first, first + count):
        rising = (step + 1) / config.warmup_steps
        falling = (config.max_steps - step) / (config.cooldown_steps + 1)
        yield config.learning_rate * min(1.0, rising, falling)


async def supervised_start(
    config: SftConfig,
    stream: SupervisedStream,
    pupil: Pupil,
    on_test: Callable[[SupervisedResult], None],
) -> SupervisedResult:
    """Train in rounds of `test_every` steps until a test reaches `target_accuracy`.

    Returns:
        The last round's result; its accuracy is under the target when `max_steps` came first.
    """
    steps = 0
    while True:
        count = min(config.test_every, config.max_steps - steps)
        size = config.sequences_per_step
        drawn = [stream.batch((steps + i) * size, size) for i in range(count)]
        batches = [batch for batch in drawn if batch is not None]
        if len(batches) < count:
            raise BadInput(
                f"sft: of {size} tasks in a row (sft.sequences_per_step) none has a worked "
                "solution that fits engine.max_model_len: give tasks.families or "
                "tasks.supervised_families that have, or sft=null"
            )
        losses = await pupil.supervise(batches, list(_learning_rates(config, steps, count)))
        steps += count
        if steps < config.min_steps and steps < config.max_steps:
            continue
        accuracy = await pupil.test(steps)
        result = SupervisedResult(steps=steps, loss=losses[-1], accuracy=accuracy)
        on_test(result)
        if accuracy.value >= config.target_accuracy or steps >= config.max_steps:
            return result
