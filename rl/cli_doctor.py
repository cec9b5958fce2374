"""`temper doctor`: the part of the command line that checks machine and installation."""

import json
import tempfile
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.console import Console
from rich.markup import escape
from rich.table import Table

if TYPE_CHECKING:
    from rl.config import TrainConfig
    from rl.doctor import Agreement, Finding, Told

RAY_LIMIT_S = 300.0
RECIPE_LIMIT_S = 600.0  # beyond what the engine may take to start
COLOURS = {"ok": "green", "warning": "yellow", "FAIL": "bold red"}


def doctor(
    recipe: Annotated[
        str | None,
        typer.Argument(help="A name in configs/recipe, or the path of a YAML file."),
    ] = None,
    overrides: Annotated[
        list[str] | None,
        typer.Argument(metavar="[KEY=VALUE]...", help="Settings to change."),
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print the result as JSON.")] = False,
) -> None:
    """Check the machine and the installation; with a RECIPE, its engine against its learner too.

    \b
    temper doctor                 half a minute: packages, memory, sandbox, Ray, ...
    temper doctor quickstart      and: both start, weights arrive, log-probs agree

    Each check is a line: ok, warning (some runs will not work, or not well) or FAIL, with what to
    do. Nothing is kept, no run folder is touched. Exit code 1: something failed.
    """
    from rl.doctor import Examination, Finding
    from rl.errors import RunFailed

    config = _load(recipe, overrides)
    console = Console(stderr=as_json)
    told: list[Told] = []
    try:
        with tempfile.TemporaryDirectory(prefix="temper-doctor-") as folder:
            for each in _examine(config, Path(folder)):
                told.append(each)
                if isinstance(each, Finding):
                    _print(each, console)
    except KeyboardInterrupt as stop:
        raise RunFailed("stopped; nothing was kept") from stop
    findings = tuple(each for each in told if isinstance(each, Finding))
    agreements = tuple(each for each in told if not isinstance(each, Finding))
    done = Examination(findings=findings, agreements=agreements)
    if agreements:
        console.print(_table(agreements))
    if as_json:
        typer.echo(json.dumps(done.record(), indent=1))
    if not done.healthy:
        raise SystemExit(1)


def _load(recipe: str | None, overrides: list[str] | None) -> "TrainConfig | None":
    if recipe is None:
        return None
    from rl.recipe import load_recipe

    return load_recipe(recipe, overrides or [])


def _examine(config: "TrainConfig | None", folder: Path) -> "Iterator[Told]":
    """Every check, the heavy ones last; what needs Ray is not tried where Ray fails."""
    from rl.config import ClusterConfig
    from rl.doctor import Apart, Finding, Verdict, examine, examine_apart
    from rl.doctor_checks import light_checks

    for check in light_checks():
        yield examine(check)
    ray = Apart(
        name="ray",
        work="rl.doctor_engine:examine_ray",
        args=(config.cluster if config is not None else ClusterConfig(),),
        limit_s=RAY_LIMIT_S,
        log=folder / "ray.log",
    )
    works = True
    for told in examine_apart(ray):
        works = works and not (isinstance(told, Finding) and told.verdict is Verdict.fail)
        yield told
    if config is None or not works:
        return
    recipe = Apart(
        name="engine and learner",
        work="rl.doctor_engine:examine_recipe",
        args=(replace(config, run_dir=str(folder / "run")),),
        limit_s=config.engine.start_timeout_s + RECIPE_LIMIT_S,
        log=folder / "recipe.log",
    )
    yield from examine_apart(recipe)


def _print(finding: "Finding", console: Console) -> None:
    verdict = finding.verdict.value
    colour = COLOURS[verdict]
    seconds = f" [dim]({finding.seconds:.0f} s)[/]" if finding.seconds >= 1 else ""
    line = f"[{colour}]{verdict:<8}[/]{finding.check:<20}{escape(finding.found)}{seconds}"
    console.print(line, highlight=False, soft_wrap=True)
    for part in finding.advice.splitlines():
        console.print(f"{'':<8}-> {escape(part)}", highlight=False, soft_wrap=True)


def _table(agreements: "tuple[Agreement, ...]") -> Table:
    """Differences between engine and learner."""
    table = Table(title="|log-prob: engine - learner|, nats")
    for column in ("tokens", "mean", "max", "mean at most", "verdict"):
        table.add_column(column, justify="left" if column in ("tokens", "verdict") else "right")
    for each in agreements:
        verdict = "[green]agree[/]" if each.agrees else "[bold red]DIFFER[/]"
        numbers = (f"{value:.2g}" for value in (each.mean, each.largest, each.tolerance))
        table.add_row(each.tokens, *numbers, verdict)
    return table
