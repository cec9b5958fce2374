"""`temper verify` and `temper eval-reward verifier`: what of the command line runs verifiers."""

from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console

Json = Annotated[bool, typer.Option("--json", help="Print the result as JSON.")]


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
    left out of OUT and counted, unless no row can be read. A gold answer that is no mathematics we
    know ("the group $S_4$ or a quotient of it") is answered by its own text only; such golds are
    counted.

    Rows on which the verifier itself fails score 0 and are named. If they are more than 3 and more
    than 1 %, OUT is written, but the exit code is 1.
    """
    from rewards.recorded import verify_file
    from rewards.rows import RowError, lines_of
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
        if next(lines_of(source), None) is None:
            raise RowError(f"{source} holds no rows: nothing to score")
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
