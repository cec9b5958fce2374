"""The `temper` command: one thin function per subcommand.

Each imports what it runs, so that `temper --help` answers at once. Exit codes: 0 done, 1 failed,
2 bad input.
"""

import json
import sys
from dataclasses import asdict
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.console import Console

from rl.cli_doctor import doctor
from rl.cli_judges import eval_reward

if TYPE_CHECKING:
    from rl.config import TrainConfig

app = typer.Typer(
    help="Reinforcement-learning post-training the way Kimi K2 was post-trained.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)

app.add_typer(eval_reward, name="eval-reward")
app.command()(doctor)

Recipe = Annotated[
    str, typer.Argument(help="A name in configs/recipe, or the path of a YAML file.")
]
Overrides = Annotated[
    list[str] | None,
    typer.Argument(metavar="[KEY=VALUE]...", help="Settings to change, such as steps=20 seed=1."),
]
Json = Annotated[bool, typer.Option("--json", help="Print the result as JSON.")]

Hardware = Annotated[
    str | None,
    typer.Option(
        "--hardware",
        help="A name in configs/hardware, or the path of a YAML file. "
        "Default: cpu for the tiny model, else H800.",
    ),
]


class Verifiable(StrEnum):
    """Task kinds that have a verifier."""

    math = "math"
    code = "code"
    instructions = "instructions"


Workers = Annotated[
    int | None,
    typer.Option("--workers", help="Processes that score. Default: one per core, two for code."),
]
Timeout = Annotated[
    float | None,
    typer.Option(
        "--timeout",
        help="Seconds one row may take; then it scores 0. "
        "Default: 5, for code 60 (and 6 of CPU per process).",
    ),
]


class Storage(StrEnum):
    """How `temper export` writes weights."""

    bfloat16 = "bfloat16"
    float32 = "float32"
    fp8 = "fp8"
    int4 = "int4"


Run = Annotated[Path, typer.Argument(help="A run folder, such as runs/quickstart.")]


@app.command()
def train(
    recipe: Recipe,
    overrides: Overrides = None,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Print the resolved recipe and its plan, and stop.")
    ] = False,
    as_json: Json = False,
) -> None:
    """Train by RL, with the recipe's supervised start before it.

    \b
    temper train quickstart                    the tiny K2, minutes on two cores
    temper train quickstart steps=20 seed=1    with other settings
    temper train quickstart resume=true        go on after a kill or Ctrl-C
    """
    from rl.progress import Display
    from rl.recipe import load_recipe, to_yaml

    config = load_recipe(recipe, overrides or [])
    if dry_run:
        typer.echo(to_yaml(config))
        _plan(config, None, as_json)
        return
    from rl.train import train as run

    with Display(_console(as_json)) as display:
        summary = run(config, display)
    if as_json:
        typer.echo(json.dumps(asdict(summary)))


@app.command()
def sft(recipe: Recipe, overrides: Overrides = None, as_json: Json = False) -> None:
    """Supervised start alone: prints the checkpoint, for `policy.path=... sft=null`."""
    from rl.progress import Display
    from rl.recipe import load_recipe
    from rl.train import sft as run

    config = load_recipe(recipe, overrides or [])
    if config.run_dir is None:
        config.name += "-sft"
    with Display(_console(as_json)) as display:
        checkpoint = run(config, display)
    if as_json:
        typer.echo(json.dumps({"checkpoint": str(checkpoint)}))


@app.command()
def evaluate(
    target: Annotated[str, typer.Argument(help="A recipe, or a run folder (its last checkpoint).")],
    overrides: Overrides = None,
    as_json: Json = False,
) -> None:
    """Held-out pass@1 with 95 % intervals."""
    from rl.checkpoint import latest_checkpoint
    from rl.progress import Display
    from rl.recipe import from_run, load_recipe
    from rl.run_folder import RunFolder
    from rl.train import evaluate as run

    if Path(target).is_dir():
        folder = RunFolder(Path(target).absolute())
        config = from_run(folder.root, overrides or [])
        config.policy.path = str(latest_checkpoint(folder.checkpoints) / "model")
    else:
        config = load_recipe(target, overrides or [])
    config.sft, config.resume = None, False
    if not any(o.startswith("run_dir=") for o in overrides or []):
        config.run_dir, config.name = None, config.name + "-evaluate"
    with Display(_console(as_json)) as display:
        rates = run(config, display)
    if as_json:
        typer.echo(json.dumps({name: asdict(rate) for name, rate in rates.items()}))
    else:
        for name, rate in rates.items():
            typer.echo(f"{name:<20} {rate}")


@app.command("profile-tasks")
def profile_tasks(
    target: Annotated[str, typer.Argument(help="A recipe, or a run folder (its last checkpoint).")],
    out: Annotated[
        Path, typer.Option("--out", help="The tasks worth training on: FILE.jsonl, to be written.")
    ],
    overrides: Overrides = None,
    samples: Annotated[int, typer.Option("--samples", help="Samples of every task.")] = 10,
    tasks: Annotated[int, typer.Option("--tasks", help="Distinct training tasks.")] = 256,
    keep: Annotated[
        tuple[float, float],
        typer.Option("--keep", metavar="LOW HIGH", help="Pass rates to keep, ends included."),
    ] = (0.1, 0.9),
    as_json: Json = False,
) -> None:
    """How hard the training tasks are for a model; keeps those of moderate difficulty.

    \b
    temper profile-tasks runs/quickstart --out tasks.jsonl       a run's last checkpoint
    temper profile-tasks my_recipe policy.path=DIR --out tasks.jsonl --tasks 5000
    Then, in the recipe, "test_families" for "families", and
    families: [{source: tasks, name: chosen, path: tasks.jsonl}]

    Sampled at rollout.temperature_start. The same command goes on after a stop. A recipe without a
    checkpoint is measured after its supervised start, which is made first.
    """
    from rl.profile_tasks import ProfileSettings, load_target
    from rl.profile_tasks import profile_tasks as run
    from rl.progress import Display

    settings = ProfileSettings(out=out, samples=samples, tasks=tasks, keep=keep)
    config = load_target(target, overrides or [])
    with Display(_console(as_json)) as display:
        summary = run(config, settings, display)
    if as_json:
        typer.echo(json.dumps(asdict(summary)))


@app.command()
def plan(
    recipe: Recipe,
    overrides: Overrides = None,
    hardware: Hardware = None,
    as_json: Json = False,
) -> None:
    """Memory, traffic and time of a recipe, by arithmetic alone. Exit code 1: it does not fit.

    \b
    temper plan k2_full                              Kimi K2, whole, on 256 H800
    temper plan k2_full parallel.offload=none        what happens without offload, what would help
    temper plan moonlight_16b --hardware H200
    """
    from rl.recipe import load_recipe

    if not _plan(load_recipe(recipe, overrides or []), hardware, as_json):
        raise SystemExit(1)


@app.command()
def report(run: Run) -> None:
    """Write reward.png and report.html of a run, finished or not."""
    from rl.report import write_report
    from rl.run_folder import RunFolder

    folder = RunFolder(run.absolute())
    write_report(folder)
    typer.echo(f"report {folder.report}\nplot   {folder.plot}")


@app.command()
def export(
    run: Run,
    out: Annotated[Path, typer.Argument(help="A folder that does not exist yet.")],
    storage: Annotated[
        Storage | None,
        typer.Option(
            "--format",
            help="fp8: blocks of 128 x 128; int4: routed experts. Default: int4 for a run with "
            "policy.int4_experts=true, else bfloat16.",
        ),
    ] = None,
) -> None:
    """Write the run's last checkpoint as a Hugging Face folder that vLLM and transformers load.

    \b
    temper export runs/quickstart out
    temper export runs/quickstart out --format fp8     as K2-Instruct is released
    """
    import torch

    from model.convert import convert_checkpoint
    from model.formats import Quantised
    from rl.checkpoint import latest_checkpoint
    from rl.errors import BadInput
    from rl.recipe import from_run
    from rl.run_folder import RunFolder

    checkpoint = latest_checkpoint(RunFolder(run.absolute()).checkpoints)
    if out.exists():
        raise BadInput(f"{out} exists: choose a new folder")
    if storage is None:
        rounded = from_run(run.absolute(), []).policy.int4_experts
        storage = Storage.int4 if rounded else Storage.bfloat16
    quantised = Quantised(storage.value) if storage.value in ("fp8", "int4") else None
    dtype = torch.float32 if storage is Storage.float32 else torch.bfloat16
    convert_checkpoint(checkpoint / "model", out, dtype, quantised=quantised)
    typer.echo(f"exported {checkpoint.name} as {storage.value} to {out}")


@app.command()
def verify(
    kind: Annotated[Verifiable, typer.Argument(help="What the rows are.")],
    source: Annotated[Path, typer.Argument(metavar="IN", help="JSON lines, plain or gzip.")],
    out: Annotated[
        Path,
        typer.Argument(
            metavar="OUT", help="Replaced when all is scored; a name in .gz is compressed."
        ),
    ],
    workers: Workers = None,
    timeout: Timeout = None,
    skip_bad_rows: Annotated[
        bool,
        typer.Option("--skip-bad-rows", help="Leave rows out that cannot be used; count them."),
    ] = False,
    as_json: Json = False,
) -> None:
    """Score recorded responses with a verifier. No model is needed.

    \b
    math          {"response": "... \\\\boxed{5}", "gold": "5"}
    code          {"response": "...", "tests": ["assert f(1) == 2"]}
                  {"response": "...", "cases": [{"stdin": "1", "stdout": "2"}]}
                  and, if need be, "language" and "setup" (code before the tests)
    instructions  {"response": "...", "prompt": "...",
                   "instruction_id_list": ["punctuation:no_comma"], "kwargs": [{}]}

    OUT has the rows of IN in their order, each with "score" from 0 to 1 and "why"; other keys stay.

    Rows that cannot be read are named with their lines, and nothing is scored (exit code 2). A row
    that gets no score through no fault of its response, as when workers die over it, is named and
    ends the command (exit code 1). Either way OUT is not written. With --skip-bad-rows both are
    left out of OUT and counted. A gold answer that is no mathematics we know ("the group $S_4$ or
    a quotient of it") is answered by its own text only; such golds are counted.

    Rows on which the verifier itself fails score 0 and are named. If they are more than 3 and more
    than 1 %, OUT is written, but the exit code is 1.
    """
    from rewards.recorded import verify_file
    from rewards.task import TaskKind
    from rl.verify import (
        print_verification,
        scorer_spec,
        scoring,
        verification_json,
        warn_of_crashes,
        worker_count,
    )

    spec = scorer_spec(TaskKind(kind.value), timeout)
    processes = worker_count(spec.kind, workers)
    with scoring(Console(stderr=True)) as progress:
        done = verify_file(
            source,
            out,
            spec,
            workers=processes,
            skip_bad_rows=skip_bad_rows,
            progress=progress,
        )
    if as_json:
        typer.echo(verification_json(done))
    else:
        print_verification(done, source, Console())
    warn_of_crashes(done, source, Console(stderr=True))
    if done.broken:
        raise SystemExit(1)


@eval_reward.command("verifier")
def eval_verifier(
    rows: Annotated[
        Path | None,
        typer.Argument(
            metavar="[ROWS]",
            help='Rows as of `temper verify`, each with "label": 1 for a right response, else 0.',
        ),
    ] = None,
    kind: Annotated[
        Verifiable, typer.Option("--kind", help="What the rows, and the hacks, are.")
    ] = Verifiable.math,
    reward: Annotated[
        str | None,
        typer.Option(
            "--reward",
            metavar="FILE.py:FUNCTION",
            help="Your reward, function(task, transcript). Default: the verifier of the kind.",
        ),
    ] = None,
    timeout: Timeout = None,
    workers: Workers = None,
    answer_format: Annotated[
        str, typer.Option("--answer-format", help="Where a math reward looks for the ANSWER.")
    ] = r"\boxed{ANSWER}",
    as_json: Json = False,
) -> None:
    """Mistakes on labelled rows, and the hacks a reward falls for.

    \b
    temper eval-reward verifier                              the math verifier
    temper eval-reward verifier rows.jsonl --kind code       with labelled rows
    temper eval-reward verifier --reward mine.py:score       your own reward
        --answer-format '#### ANSWER'                        that reads this

    Labelled rows are scored twice, the second time shuffled and by other processes. The hacks are
    responses that earn nothing honestly; right answers are tried as well. A score above 0.5 accepts
    a response. The reward runs in processes that are killed when they hang.

    Exit code 1: a mistake, a difference between the two runs, a hang or an error was found.
    """
    from rewards.evaluate import evaluate_labelled
    from rewards.hacks.matrix import run_hack_matrix
    from rewards.task import TaskKind
    from rl.reward_report import print_hacks, print_labelled, reward_json
    from rl.verify import scorer_spec, scoring, worker_count

    spec = scorer_spec(TaskKind(kind.value), timeout, reward)
    processes = worker_count(spec.kind, workers)
    with scoring(Console(stderr=True)) as progress:
        labelled = (
            None
            if rows is None
            else evaluate_labelled(rows, spec, workers=processes, progress=progress)
        )
        hacks = run_hack_matrix(
            spec, workers=processes, answer_format=answer_format, progress=progress
        )
    if as_json:
        typer.echo(reward_json(labelled, hacks))
    else:
        if labelled is not None:
            print_labelled(labelled, Console())
        print_hacks(hacks, Console())
    if not (hacks.clean and (labelled is None or labelled.clean)):
        raise SystemExit(1)


def _plan(config: "TrainConfig", hardware: str | None, as_json: bool) -> bool:
    """Print what a recipe needs; whether it fits."""
    from rl.hardware import load_hardware
    from rl.plan import make_plan
    from rl.plan_changes import changes_that_fit
    from rl.plan_model import architecture_of
    from rl.plan_table import plan_json, print_plan

    row = load_hardware(hardware or ("cpu" if config.policy.path is None else "H800"))
    architecture = architecture_of(config.policy)
    made = make_plan(config, architecture, row)
    changes = [] if made.fits else changes_that_fit(config, architecture, row)
    if as_json:
        typer.echo(plan_json(made, changes))
    else:
        print_plan(made, changes, Console())
    return made.fits


def _console(as_json: bool) -> Console:
    """Where progress goes: beside the result when that is JSON."""
    return Console(stderr=as_json)


def main() -> None:
    """Run the command; an expected error is one message, not a traceback."""
    try:
        app()
    except Exception as error:
        code = _exit_code(error)
        if code is None:
            raise
        _fail(error, code)


def _exit_code(error: Exception) -> int | None:
    """2 for bad input, 1 for a run that failed in a known way, None for a mistake of ours."""
    from rewards.errors import RewardError
    from rl.errors import BadInput, RunFailed

    if isinstance(error, BadInput):
        return 2
    if isinstance(error, RunFailed | RewardError | FloatingPointError):
        return 1
    from model.formats import CheckpointError  # loads torch
    from rollout.errors import EngineError, StaleWeightsError, WeightUpdateError
    from rollout.sampler import GroupAborted
    from rollout.sources import DataError

    if isinstance(error, CheckpointError | DataError):
        return 2
    known = EngineError | GroupAborted | StaleWeightsError | WeightUpdateError
    return 1 if isinstance(error, known) else None


def _fail(message: object, code: int) -> None:
    print(f"temper: {message}", file=sys.stderr)
    raise SystemExit(code)


if __name__ == "__main__":
    main()
