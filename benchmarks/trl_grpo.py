"""TRL's GRPOTrainer on the model and the tasks of a Temper run: a child of benchmarks.throughput.

Runs in an environment of its own, made by that benchmark. Writes one JSON object a step: seconds,
mean reward, tokens of the policy, mean |log-prob of the sampler - of the trainer| where TRL has it.

    PYTHONPATH=. TRL_VENV/bin/python -m benchmarks.trl_grpo SETTINGS.json
"""

import json
import sys
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import torch
from datasets import Dataset
from transformers import AutoTokenizer, TrainerCallback
from trl import GRPOConfig, GRPOTrainer

from rewards.config import RewardsConfig
from rewards.judge import VerifiableJudge
from rewards.task import Message, Task, TaskKind, Transcript

THREADS = 2  # that score


class Rewards:
    """Temper's verifiers as a reward function of TRL's."""

    def __init__(self, tasks: Sequence[Task], most_tokens: int, eos_id: int) -> None:
        self._tasks, self._most_tokens, self._eos_id = tasks, most_tokens, eos_id
        self._judge = VerifiableJudge(RewardsConfig())
        self._judge.start()
        self._pool = ThreadPoolExecutor(THREADS)
        self.last: list[float] = []
        self.tokens = 0

    def verified(
        self, *, completions: Any, completion_ids: Any, task: Sequence[int], **_: Any
    ) -> list[float]:
        """The reward of every completion."""
        words = [completion[0]["content"] for completion in completions]
        self.last = list(self._pool.map(self._score, task, words, completion_ids))
        self.tokens = sum(len(ids) for ids in completion_ids)
        return self.last

    def _score(self, task: int, words: str, ids: Sequence[int]) -> float:
        asked = self._tasks[task]
        transcript = Transcript(
            messages=(*asked.messages, Message(role="assistant", content=words)),
            response=words,
            response_tokens=len(ids),
            truncated=len(ids) >= self._most_tokens and ids[-1] != self._eos_id,
        )
        return self._judge.score(asked, [transcript])[0].total

    def close(self) -> None:
        """End the verifiers' processes."""
        self._judge.close()


class StepLog(TrainerCallback):
    """Writes a line at the end of every optimiser step."""

    def __init__(self, path: Path, rewards: Rewards, samples: int) -> None:
        self._file = path.open("w")
        self._rewards = rewards
        self._samples = samples  # of a step; a generation may be for several
        self._last = 0.0
        self._row: dict[str, float] = {}

    def on_train_begin(self, *_: Any, **__: Any) -> None:
        """The clock starts."""
        self._last = time.perf_counter()

    def on_step_end(self, *_: Any, **__: Any) -> None:
        """One optimiser step is done."""
        now = time.perf_counter()
        rewards = self._rewards.last
        self._row = {
            "seconds": now - self._last,
            "reward": sum(rewards) / len(rewards),
            "tokens": self._rewards.tokens * self._samples / len(rewards),
        }
        self._last = now

    def on_log(self, *_: Any, logs: dict[str, float] | None = None, **__: Any) -> None:
        """TRL's own numbers of a step come after its end; those of the whole run have no step."""
        if not self._row:
            return
        mismatch = (logs or {}).get("sampling/sampling_logp_difference/mean")
        if mismatch is not None:
            self._row["mismatch"] = mismatch
        self._file.write(json.dumps(self._row) + "\n")
        self._file.flush()
        self._row = {}


def task_of(row: dict[str, Any]) -> Task:
    """A line of the tasks file."""
    return Task(
        id=row["id"],
        kind=TaskKind(row["kind"]),
        messages=tuple(Message(**message) for message in row["messages"]),
        reference=row["reference"],
        token_budget=row["token_budget"],
    )


def config_of(settings: dict[str, Any]) -> GRPOConfig:
    """TRL's settings: what all contenders have in common, then the way that is tried."""
    return GRPOConfig(
        output_dir=settings["out"],
        max_steps=settings["steps"],
        num_generations=settings["samples"],
        max_completion_length=settings["max_tokens"],
        learning_rate=settings["learning_rate"],
        weight_decay=settings["weight_decay"],
        adam_beta1=settings["betas"][0],
        adam_beta2=settings["betas"][1],
        lr_scheduler_type="constant",
        temperature=1.0,
        beta=0.0,
        loss_type="grpo",
        seed=settings["seed"],
        shuffle_dataset=False,
        use_cpu=True,
        gradient_checkpointing=False,
        disable_tqdm=True,
        logging_steps=1,
        logging_strategy="steps",
        report_to=[],
        save_strategy="no",
        **settings["trl"],
    )


def main() -> None:
    """Train."""
    settings = json.loads(Path(sys.argv[1]).read_text())
    torch.set_num_threads(settings["threads"])
    lines = Path(settings["tasks"]).read_text().splitlines()
    tasks = [task_of(json.loads(line)) for line in lines]
    tokenizer = AutoTokenizer.from_pretrained(settings["model"])
    rewards = Rewards(tasks, settings["max_tokens"], tokenizer.eos_token_id)
    rows = [
        {"prompt": [{"role": m.role, "content": m.content} for m in task.messages], "task": place}
        for place, task in enumerate(tasks)
    ]
    trainer = GRPOTrainer(
        model=settings["model"],
        reward_funcs=rewards.verified,
        args=config_of(settings),
        train_dataset=Dataset.from_list(rows),
        processing_class=tokenizer,
        callbacks=[
            StepLog(
                Path(settings["out"]) / "steps.jsonl",
                rewards,
                settings["groups"] * settings["samples"],
            )
        ],
    )
    trainer.train()
    rewards.close()


if __name__ == "__main__":
    main()
