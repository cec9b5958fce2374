"""The material of a run: what its policy is asked, what it imitates, and what it is tested on.

A task whose prompt and token budget are longer than an engine takes is passed over, wherever it
comes: a dataset has a few of them, and none may end a run when its turn comes.
"""

from collections.abc import Callable

from rewards.task import Task, TaskKind
from rl.batch import Batch
from rl.config import TrainConfig
from rl.errors import BadInput
from rl.sft import SupervisedStream
from rollout.render import Renderer
from rollout.tasks import Split, TaskStream


def prompt_tokens(task: Task, renderer: Renderer) -> int:
    """Tokens of a task's prompt as the engines are given it."""
    strangers = task.kind is TaskKind.critic  # as in `rollout.sampler`
    return len(renderer.prompt_ids(renderer.inert(task.messages) if strangers else task.messages))


class Material:
    """The streams of tasks of a recipe, cut to what fits its engines."""

    def __init__(
        self,
        config: TrainConfig,
        tasks: TaskStream,
        held_out: TaskStream,
        *,
        renderer: Renderer,
        say: Callable[[str], None],
    ) -> None:
        """Take the streams of both splits, and the policy's tokenizer; `say` takes a line."""
        self._config, self._tasks, self._held_out = config, tasks, held_out
        self._renderer, self._say = renderer, say
        self._passed_over = self._without_ptx = False  # one was, and it was said
        self._longest = config.engine.max_model_len
        imitated = TaskStream(config.tasks, Split.train, supervised=True)
        self.supervised = SupervisedStream(imitated, renderer, self._longest)

    def check(self) -> None:
        """Look at what the run begins with and is measured on, and say what does not fit.

        Raises BadInput if nothing of either does.
        """
        objective = self._config.objective
        if objective.ptx_weight and objective.ptx_sequences:
            self._say(
                "worked solutions of the tasks join every step (PTX) with weight "
                f"{objective.ptx_weight:g}; objective.ptx_weight=0 for none"
            )
        rollout, count = self._config.rollout, self._config.evaluation.tasks
        first = [self._tasks.at(position) for position in range(rollout.groups_per_step)]
        for what, tasks in (("training", first), ("held-out", self._first_held_out(count))):
            too_long = [task for task in tasks if not self.fits(task)]
            if not too_long:
                continue
            found = f"{len(too_long)} of the first {len(tasks)} {what} tasks"
            why = self._why_not(too_long[0])
            if len(too_long) == len(tasks):
                raise BadInput(
                    f"{found} do not fit the engines, such as {why}: raise engine.max_model_len, "
                    "or lower tasks.token_budgets or the family's token_budget"
                )
            self._passed_over |= what == "training"
            self._say(f"{found} do not fit the engines and are passed over, such as {why}")

    def fits(self, task: Task) -> bool:
        """Whether the engines take the task's prompt and, after it, all of its budget."""
        return prompt_tokens(task, self._renderer) + task.token_budget <= self._longest

    def task_at(self, position: int) -> Task | None:
        """The training task at `position` of the stream; None if it does not fit."""
        task = self._tasks.at(position)
        if self.fits(task):
            return task
        if not self._passed_over:
            self._say(f"{self._why_not(task)}: it is passed over, and later ones without a word")
        self._passed_over = True
        return None

    def tests(self, count: int) -> list[Task]:
        """The first `count` held-out tasks, without those that do not fit: in every run the same.

        Raises `DataError` if there are fewer.
        """
        return [task for task in self._first_held_out(count) if self.fits(task)]

    def probe(self) -> list[list[int]]:
        """Fixed sequences on which engines and learner are compared: worked held-out tasks."""
        sequences = []
        for task in self._first_held_out(self._config.weights.probe_sequences):
            answer = task.solution or task.reference
            prompt, response = self._renderer.training_ids(task.messages, answer)
            sequences.append((prompt + response)[: self._longest - 1])
        return sequences

    def ptx_at(self, step: int) -> list[Batch | None]:
        """The supervised batch that joins each minibatch of `step`; None if no task drawn for it
        has a worked solution, as many have none."""
        objective = self._config.objective
        count, parts = objective.ptx_sequences, objective.minibatches
        if count == 0 or objective.ptx_weight == 0:
            return []
        first = step * count * parts
        drawn = [self.supervised.batch(first + i * count, count) for i in range(parts)]
        if all(batch is None for batch in drawn):
            if not self._without_ptx:
                self._say(
                    f"step {step + 1} has no PTX loss: of {count * parts} tasks "
                    "(objective.ptx_sequences, objective.minibatches) none has a worked solution "
                    "that fits; neither may later steps, without a word"
                )
            self._without_ptx = True
        return drawn

    def _why_not(self, task: Task) -> str:
        return (
            f"{task.id}: {prompt_tokens(task, self._renderer)} tokens of prompt and a budget of "
            f"{task.token_budget} exceed engine.max_model_len={self._longest}"
        )

    def _first_held_out(self, count: int) -> list[Task]:
        return [self._held_out.at(position) for position in range(count)]
