"""`temper export`: a checkpoint as others load it."""

import json
from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer


class Storage(StrEnum):
    """How `temper export` writes weights."""

    bfloat16 = "bfloat16"
    float32 = "float32"
    fp8 = "fp8"
    int4 = "int4"


def export(
    run: Annotated[Path, typer.Argument(help="A run folder, such as runs/quickstart.")],
    out: Annotated[Path, typer.Argument(help="A folder that does not exist yet.")],
    storage: Annotated[
        Storage | None,
        typer.Option(
            "--format",
            help="fp8: blocks of 128 x 128 (not for the tiny model, whose matrices are smaller "
            "than engines take as FP8); int4: routed experts. Default: int4 for a run with "
            "policy.int4_experts=true, else bfloat16.",
        ),
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print the result as JSON.")] = False,
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
    from rl.recipe import check_run, from_run
    from rl.run_folder import RunFolder

    check_run(run)
    checkpoint = latest_checkpoint(RunFolder(run.absolute()).checkpoints)
    if out.exists():
        raise BadInput(f"{out} exists: choose a new folder")
    if storage is None:
        rounded = from_run(run.absolute(), []).policy.int4_experts
        storage = Storage.int4 if rounded else Storage.bfloat16
    quantised = Quantised(storage.value) if storage.value in ("fp8", "int4") else None
    dtype = torch.float32 if storage is Storage.float32 else torch.bfloat16
    convert_checkpoint(checkpoint / "model", out, dtype, quantised=quantised)
    if as_json:
        made = {"checkpoint": checkpoint.name, "format": storage.value, "folder": str(out)}
        typer.echo(json.dumps(made))
    else:
        typer.echo(f"exported {checkpoint.name} as {storage.value} to {out}")
