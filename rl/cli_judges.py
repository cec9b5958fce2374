"""`temper eval-reward`: the part of the command line that measures judges (see rl/cli.py)."""

import json
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.console import Console
from typer.core import TyperGroup

from rewards.preference.records import Shape

if TYPE_CHECKING:
    from rewards.preference.judges import Judge
    from rl.open_judge import JudgeOptions

PAIRS = "pairs"


class PairsByDefault(TyperGroup):
    """`temper eval-reward DATA ...` is `temper eval-reward pairs DATA ...`."""

    def parse_args(self, ctx: typer.Context, args: list[str]) -> list[str]:  # type: ignore[override]
        """Put the command's name where it was left out."""
        if args and args[0] not in self.commands and args[0] != "--help":
            args = [PAIRS, *args]
        return super().parse_args(ctx, args)


eval_reward = typer.Typer(
    cls=PairsByDefault,
    help="How good a verifier, reward function, reward model or critic is, before it trains.",
    no_args_is_help=True,
)


@eval_reward.command(PAIRS)
def eval_pairs(
    data: Annotated[
        Path, typer.Argument(help="JSON lines, a JSON array or parquet, plain or .gz.")
    ],
    settings: Annotated[
        list[str] | None,
        typer.Argument(metavar="[KEY=VALUE]...", help="How an endpoint or model is asked."),
    ] = None,
    scores: Annotated[
        Path | None,
        typer.Option("--scores", help='Recorded scores: rows {"id", "scores": {"A": x, "B": y}}.'),
    ] = None,
    judge: Annotated[
        str | None,
        typer.Option(
            "--judge",
            help="FILE.py:FUNCTION, URL, a folder with a reward model, critic:CHECKPOINT, "
            "or verifier:KIND.",
        ),
    ] = None,
    shape: Annotated[
        Shape | None, typer.Option("--shape", help="Default: recognised by the rows' keys.")
    ] = None,
    out: Annotated[
        Path | None,
        typer.Option("--out", help="Folder of the result. Default: one in runs/eval-reward."),
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print the result as JSON.")] = False,
) -> None:
    """A judge against labels: pairs, JudgeBench, RewardBench 1 and 2, RM-Bench, best-of-N, scores.

    \b
    temper eval-reward judgebench.jsonl --scores scores.jsonl
    temper eval-reward pairs.jsonl --judge mine.py:score            score(prompt, response)
    temper eval-reward pairs.jsonl --judge mine.py:compare          compare(prompt, a, b)
    temper eval-reward pairs.jsonl --judge http://host:8000/v1 model=NAME concurrency=32
    temper eval-reward best_of_8.jsonl --judge path/to/reward_model
    temper eval-reward pairs.jsonl --judge critic:path/to/policy rubrics=k2 max_tokens=1024
    temper eval-reward pairs.jsonl --judge http://host:8000/v1 model=NAME asks=critic rubrics=k2
    temper eval-reward compare runs/eval-reward/A runs/eval-reward/B

    Keys: orders (both or first), max_tokens, concurrency; of endpoints model, asks (comparison,
    score or critic), timeout_s, api_key_env; of critics rubrics (names in configs/rubrics or files,
    with commas between), instruction (its system prompt), decided_by (overall or rubrics),
    temperature; of critic:CHECKPOINT max_model_len. What a judge says is kept in the folder: the
    same command goes on after a stop.
    Rows that cannot be used are counted and shown, never dropped in silence.
    """
    from rl.errors import BadInput
    from rl.eval_reward import Evaluation, evaluate_judge
    from rl.eval_reward_table import print_evaluation
    from rl.open_judge import read_options

    if scores is not None and judge is not None:
        raise BadInput("give --scores or --judge, not both; compare two results with compare")
    options = read_options(settings or [])
    what = Evaluation(
        data=data,
        scores=scores,
        judge=None if judge is None else _judge(judge, options),
        shape=shape,
        both_orders=options.orders == "both",
        out=out,
    )
    evaluated = evaluate_judge(what, Console(stderr=True))
    if as_json:
        typer.echo(json.dumps(evaluated.summary()))
    else:
        print_evaluation(evaluated, Console())


@eval_reward.command("compare")
def eval_compare(
    first: Annotated[Path, typer.Argument(help="A result.json, or its folder.")],
    second: Annotated[Path, typer.Argument(help="Another, of the same rows.")],
    as_json: Annotated[bool, typer.Option("--json", help="Print the result as JSON.")] = False,
) -> None:
    """Is one judge better than another on the same rows, and how far do they agree?

    Exact McNemar test, paired bootstrap of the difference, Cohen's kappa.
    """
    from rl.eval_reward import compare_results
    from rl.eval_reward_table import print_comparison

    made = compare_results(first, second)
    if as_json:
        typer.echo(json.dumps(asdict(made)))
    else:
        print_comparison(made, Console())


def _judge(spec: str, options: "JudgeOptions") -> "Judge":
    """Loads torch, vLLM and verifiers for judges that need them alone."""
    from rl.open_judge import open_judge

    if Path(spec).is_dir():
        from rl.reward_model_judge import RewardModelJudge

        return RewardModelJudge(Path(spec), max_tokens=options.max_tokens or None)
    kind, _, name = spec.partition(":")
    if kind == "verifier":
        from rl.verifier_judge import open_verifier

        return open_verifier(name)
    if kind == "critic":
        from rl.checkpoint_critic import open_checkpoint_critic

        return open_checkpoint_critic(Path(name), options)
    if options.asks == "critic" and kind in ("http", "https"):
        from rl.critic_judge import open_endpoint_critic

        return open_endpoint_critic(spec, options)
    return open_judge(spec, options)
