"""The `temper` command: one thin function per subcommand.

Each imports what it runs, so that `temper --help` answers at once. Exit codes: 0 done, 1 failed,
2 bad input.
"""

import json
import sys
from collections.abc import Sequence
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.console import Console

from rl.cli_doctor import doctor
from rl.cli_export import export
from rl.cli_judges import eval_reward
from rl.cli_verify import eval_verifier, verify

if TYPE_CHECKING:
    from rl.config import TrainConfig
    from rl.metrics import Summary

app = typer.Typer(
    help="Reinforcement-learning post-training the way Kimi K2 was post-trained.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)

Recipe = Annotated[
    str, typer.Argument(help="A name in configs/recipe, or the path of a YAML file.")
]
Overrides = Annotated[
    list[str] | None,
    typer.Argument(metavar="[KEY=VALUE]...", help="Settings to change, such as steps=20 seed=1."),
]
Json = Annotated[bool, typer.Option("--json", help="Print the result as JSON.")]

DryRun = Annotated[
    bool,
    typer.Option(
        "--dry-run",
        help="Print the resolved recipe and its plan, and stop. Exit code 1: it does not fit.",
    ),
]
Revive = Annotated[
    bool,
    typer.Option(
        "--revive", help="Go on by itself when the driver is killed, as with resume=true."
    ),
]
Hardware = Annotated[
    str | None,
    typer.Option(
        "--hardware",
        help="A name in configs/hardware, or the path of a YAML file. "
        "Default: cpu for the tiny model, else H800.",
    ),
]
Run = Annotated[Path, typer.Argument(help="A run folder, such as runs/quickstart.")]


@app.command()
def train(
    recipe: Recipe,
    overrides: Overrides = None,
    dry_run: DryRun = False,
    revive: Revive = False,
    as_json: Json = False,
) -> None:
    """Train by RL, with the recipe's supervised start before it.

    \b
    temper train quickstart                    the tiny K2, minutes on two cores
    temper train quickstart steps=20 seed=1    with other settings
    temper train quickstart resume=true        go on after a kill or Ctrl-C
    """
    from rl.recipe import load_recipe, to_yaml

    config = load_recipe(recipe, overrides or [])
    if dry_run:
        from rewards.plugin import load_plugins
        from rl.errors import bad_input
        from rollout.sources import check_generators, first_faults

        check_generators(config.tasks)
        with bad_input():
            load_plugins(config.rewards)
        typer.echo(to_yaml(config), err=as_json)
        for fault in first_faults(config.tasks):
            typer.echo(f"temper: this run would not start here: {fault}", err=True)
        if not _plan(config, None, as_json):
            raise SystemExit(1)
        return
    drive = partial(_drive, as_json=as_json)
    if revive:
        from rl.revival import revived

        summary = revived(drive, config, lambda line: typer.echo(f"temper: {line}", err=True))
    else:
        summary = drive(config)
    if as_json:
        typer.echo(json.dumps(asdict(summary)))


@app.command()
def launch(
    cluster: Annotated[
        str,
        typer.Argument(help="Where Ray's head is: HOST:PORT, or auto on a node of the cluster."),
    ],
    recipe: Recipe,
    overrides: Overrides = None,
    dry_run: DryRun = False,
    revive: Revive = False,
    as_json: Json = False,
) -> None:
    """Train on a Ray cluster that is up: `temper train` with cluster.ray_address=CLUSTER.

    \b
    temper launch auto my_recipe run_dir=/shared/runs/my_run     on any node of the cluster
    temper launch 10.0.0.1:6379 moonlight_16b --dry-run          its recipe and plan

    Every host needs Temper and a folder that all see: docs/cluster.md.
    """
    from rl.errors import BadInput

    given = overrides or []
    if any(override.lstrip("+~").startswith("cluster.ray_address") for override in given):
        raise BadInput(f"cluster.ray_address is given twice: CLUSTER is {cluster}")
    train(recipe, [f"cluster.ray_address='{cluster}'", *given], dry_run, revive, as_json)


def _drive(config: "TrainConfig", lost: Sequence[str] = (), *, as_json: bool) -> "Summary":
    from rl.progress import Display
    from rl.train import train as run

    with Display(_console(as_json)) as display:
        return run(config, display, lost)


@app.command()
def sft(recipe: Recipe, overrides: Overrides = None, as_json: Json = False) -> None:
    """Supervised start alone: prints the checkpoint, for `policy.path=... sft=null`."""
    from rl.errors import BadInput
    from rl.progress import Display
    from rl.recipe import load_recipe
    from rl.train import sft as run

    config = load_recipe(recipe, overrides or [])
    if config.sft is None:
        raise BadInput(f"recipe {config.name} has no section sft: nothing to train on")
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
    """Held-out pass@1, with 95 % intervals, of a run's last checkpoint or a recipe's policy.path.

    \b
    temper evaluate runs/quickstart evaluation.tasks=500
    temper evaluate my_recipe policy.path=DIR           another model on the same tasks

    What was sampled lies in runs/NAME-evaluate, or in run_dir. A recipe without policy.path has the
    tiny model as it was made, without training.
    """
    from rl.checkpoint import latest_checkpoint
    from rl.errors import BadInput
    from rl.progress import Display
    from rl.recipe import check_target, from_run, load_recipe
    from rl.run_folder import RunFolder
    from rl.train import evaluate as run

    check_target(target)
    if Path(target).is_dir():
        if any(o.lstrip("+").startswith("policy.path=") for o in overrides or []):
            raise BadInput(
                f"policy.path: of the run {target} the last checkpoint is evaluated; for another "
                "model give a recipe in its place"
            )
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
    from rl.recipe import check_target

    check_target(target)
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
def report(run: Run, as_json: Json = False) -> None:
    """Write reward.png and report.html of a run, finished or not."""
    from rl.report import write_report
    from rl.run_folder import RunFolder

    folder = RunFolder(run.absolute())
    write_report(folder)
    if as_json:
        typer.echo(json.dumps({"report": str(folder.report), "plot": str(folder.plot)}))
    else:
        typer.echo(f"report {folder.report}\nplot   {folder.plot}")


app.command()(export)
app.command()(doctor)
app.command()(verify)
eval_reward.command("verifier")(eval_verifier)
app.add_typer(eval_reward, name="eval-reward")


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
