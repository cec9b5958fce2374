"""TRL's GRPOTrainer as a contender: its environment, the settings that are tried, one run."""

import json
import os
import shutil
import subprocess
import sys
import sysconfig
from dataclasses import asdict
from pathlib import Path
from typing import Any

from benchmarks.quickstart_runs import Case
from rl.recipe import load_recipe
from rollout.tasks import Split, TaskStream

ROOT = Path(__file__).resolve().parent.parent
TRL_PACKAGES = ("trl==1.16.0", "datasets==5.2.0", "pandas==3.1.1", "multiprocess==0.70.19")
MOST_S = 900.0  # for one way of TRL's
WHOLE: dict[str, Any] = {"per_device_train_batch_size": 128, "bf16": False}


def ways() -> dict[str, dict[str, Any]]:
    """The settings of TRL's that are tried, by name: threads, and GRPOConfig's."""

    def way(threads: int = 2, model: dict[str, Any] | None = None, **trl: Any) -> dict[str, Any]:
        kwargs = {"dtype": "float32", **(model or {})}
        return {"threads": threads, "trl": {**WHOLE, "model_init_kwargs": kwargs, **trl}}

    return {
        "float32, 2 threads": way(),
        "float32, 1 thread": way(1),
        "bfloat16 autocast": way(bf16=True),
        "bfloat16 weights": way(model={"dtype": "bfloat16"}),
        "experts eager": way(model={"experts_implementation": "eager"}),
        "experts batched_mm": way(model={"experts_implementation": "batched_mm"}),
        "attention eager": way(model={"attn_implementation": "eager"}),
        "4 micro-batches of 32": way(per_device_train_batch_size=32, gradient_accumulation_steps=4),
        "2 steps a generation": way(steps_per_generation=2),
        "4 steps a generation": way(steps_per_generation=4),
        "data loader in 1 process": way(dataloader_num_workers=1),
        "static cache": way(cache_implementation="static"),
        "torch.compile": way(torch_compile=True),
        "continuous batching": way(use_transformers_continuous_batching=True),
        "vLLM in the same process": way(
            use_vllm=True, vllm_mode="colocate", vllm_max_model_length=256
        ),
    }


def trl_python(folder: Path) -> Path:
    """TRL's environment, made unless it is there."""
    python = folder / "bin" / "python"
    if not python.exists():
        uv = [str(Path(sys.executable).with_name("uv"))]
        subprocess.run([*uv, "venv", "-q", "--python", sys.executable, str(folder)], check=True)
        packages = Path(sysconfig.get_path("purelib", vars={"base": str(folder)}))
        (packages / "temper.pth").write_text(f"{sysconfig.get_path('purelib')}\n")
        install = [*uv, "pip", "install", "-q", "--no-deps", "--python", str(python)]
        subprocess.run([*install, *TRL_PACKAGES], check=True)
    return python


def write_tasks(case: Case, count: int) -> Path:
    """The first tasks of the stream, for TRL."""
    stream = TaskStream(load_recipe("quickstart", []).tasks, Split.train)
    path = case.folder / "tasks.jsonl"
    with path.open("w") as file:
        for position in range(count):
            row = asdict(stream.at(position))
            keys = ("id", "kind", "messages", "reference", "token_budget")
            file.write(json.dumps({key: row[key] for key in keys}) + "\n")
    return path


def run_trl(case: Case, way: dict[str, Any]) -> list[dict[str, float]]:
    """TRL's trainer, in a child process; raises RuntimeError with its last words."""
    recipe = load_recipe("quickstart", [])
    out = case.folder / "trl"
    shutil.rmtree(out, ignore_errors=True)
    out.mkdir(parents=True)
    settings = {
        "model": str(case.start),
        "tasks": str(write_tasks(case, case.steps * recipe.rollout.groups_per_step)),
        "out": str(out),
        "steps": case.steps,
        "groups": recipe.rollout.groups_per_step,
        "samples": recipe.rollout.samples_per_group,
        "max_tokens": recipe.tasks.token_budgets.math,
        "learning_rate": recipe.optimizer.learning_rate,
        "weight_decay": recipe.optimizer.weight_decay,
        "betas": list(recipe.optimizer.adam_betas),
        "seed": case.seed,
        **way,
    }
    (out / "settings.json").write_text(json.dumps(settings, indent=1) + "\n")
    environment = {
        **os.environ,
        "PYTHONPATH": str(ROOT),
        "OMP_NUM_THREADS": str(way["threads"]),
        "HF_HUB_OFFLINE": "1",
        "VLLM_ENABLE_V1_MULTIPROCESSING": "0",  # TRL reaches into the engine
        "VLLM_CPU_KVCACHE_SPACE": "1",
    }
    python = str(trl_python(case.folder.absolute() / "trl-venv"))
    command = [python, "-m", "benchmarks.trl_grpo", str(out / "settings.json")]
    with (out / "log").open("w") as log:
        done = subprocess.run(
            command, env=environment, stdout=log, stderr=subprocess.STDOUT, timeout=MOST_S
        )
    if done.returncode:
        raise RuntimeError((out / "log").read_text().strip().splitlines()[-1][:300])
    return [json.loads(line) for line in (out / "steps.jsonl").open()]
