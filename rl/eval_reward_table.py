"""A judge's evaluation in the terminal."""

from rich.console import Console
from rich.markup import escape
from rich.table import Table

from rewards.preference.agreement import Interval
from rewards.preference.judge_comparison import JudgeComparison
from rewards.preference.report import Accuracy, JudgeReport
from rl.eval_reward import Evaluated

MOST_SUBSETS = 40


def print_evaluation(evaluated: Evaluated, console: Console) -> None:
    """Warnings first, then every figure, then problems, then the paths."""
    report = evaluated.report
    if evaluated.kept:
        console.print(f"{evaluated.kept} judgements were kept from an earlier run")
    for warning in report.warnings:
        console.print(f"[bold red]{printable(warning)}[/]", highlight=False)
    console.print(_accuracies(report))
    table = _plain_table()
    for name, value in _facts(report):
        table.add_row(name, value)
    console.print(table)
    _print_problems(report, console)
    console.print(f"result {evaluated.result}\nreport {evaluated.page}", soft_wrap=True)


def print_comparison(made: JudgeComparison, console: Console) -> None:
    """Which judge is better, and how sure that is."""
    if not made.same_data:
        console.print("[bold red]the two saw different data; only shared ids are compared[/]")
    table = _plain_table()
    table.add_row("first", f"{printable(made.first)}: {_percent(made.first_accuracy)}")
    table.add_row("second", f"{printable(made.second)}: {_percent(made.second_accuracy)}")
    table.add_row("difference", f"{_percent(made.difference)}, paired bootstrap over rows")
    table.add_row("McNemar, exact", f"p = {made.mcnemar_p:.4g}")
    table.add_row(
        f"right, of {made.rows} rows",
        f"both {made.both_right}, first only {made.first_right_only}, "
        f"second only {made.second_right_only}, neither {made.neither_right}",
    )
    table.add_row("same verdict", str(made.same_verdict))
    table.add_row("Cohen's kappa", _number(made.kappa))
    if made.only_in_first or made.only_in_second:
        left_out = f"{made.only_in_first} only in the first, {made.only_in_second} in the second"
        table.add_row("rows left out", left_out)
    only_first, only_second = made.first_right_examples[:3], made.second_right_examples[:3]
    table.add_row("only the first is right", printable(", ".join(only_first)) or "-")
    table.add_row("only the second is right", printable(", ".join(only_second)) or "-")
    console.print(table)


def _plain_table() -> Table:
    return Table(show_header=False, box=None, padding=(0, 2, 0, 0))


def _accuracies(report: JudgeReport) -> Table:
    title = f"{printable(report.judge)} on {report.judged} of {report.read} rows"
    table = Table(title=title, box=None)
    for name in ("", "rows", "accuracy, %", "right", "wrong", "ties", "ties as wrong, %"):
        table.add_column(name, justify="right" if name else "left", no_wrap=bool(name))
    named = [("all", report.overall), *((n or "-", a) for n, a in report.subsets.items())]
    for name, each in named[: MOST_SUBSETS + 1]:
        table.add_row(*_row(name, each))
    table.caption = (
        f"accuracy: {report.counts}; 95 % by bootstrap over rows. "
        "Ties as wrong: right of all comparisons, Wilson."
    )
    if len(named) > MOST_SUBSETS + 1:
        table.caption += f"; {len(named) - MOST_SUBSETS - 1} more subsets in the report"
    return table


def _row(name: str, each: Accuracy) -> tuple[str, ...]:
    counts = (str(value) for value in (each.right, each.wrong, each.ties))
    strict = each.ties_wrong
    wilson = Interval(value=strict.value, low=strict.low, high=strict.high)
    return (printable(name), str(each.rows), _short(each.accuracy), *counts, _short(wilson))


def _facts(report: JudgeReport) -> list[tuple[str, str]]:
    facts: list[tuple[str, str]] = []
    if made := report.published:
        parts = ", ".join(f"{name or '-'} {100 * value:.2f}" for name, value in made.parts.items())
        facts.append((made.name, f"{100 * made.value:.2f} % ({printable(parts)})"))
        facts.append(("", made.rule))
    if best := report.best_of_n:
        facts.append(("pass@1", _percent(best.pass_at_1)))
        ties = f"; first of equal scores {100 * best.rm_at_n_first:.2f} %, {best.tied_rows} rows"
        facts.append((f"RM@{best.n}", _percent(best.rm_at_n) + (ties if best.tied_rows else "")))
        facts.append((f"pass@{best.n}", _percent(best.pass_at_n)))
        if best.majority is not None and best.weighted_majority is not None:
            facts.append((f"majority@{best.n}", f"{100 * best.majority:.2f} %"))
            facts.append((f"weighted majority@{best.n}", f"{100 * best.weighted_majority:.2f} %"))
    if fit := report.scored:
        facts.append(
            (
                "against graded quality",
                f"Pearson {_number(fit.pearson)}, Spearman {_number(fit.spearman)}, "
                f"AUC {_number(fit.area_under_curve)}",
            )
        )
    return facts + _biases(report)


def _biases(report: JudgeReport) -> list[tuple[str, str]]:
    facts: list[tuple[str, str]] = []
    fits = {"calibration": report.calibration, "with a fitted slope": report.calibration_fitted}
    for name, each in fits.items():
        if each is not None:
            shown = f"ECE {each.ece:.3f}, Brier {each.brier:.3f} (slope {each.slope:.3g})"
            facts.append((name, shown))
    length = report.length
    facts.append(("better is longer", str(length.good_longer)))
    prefers = f"{100 * length.prefers_longer:.1f} %, excess {_percent(length.excess)}"
    facts.append(("judge prefers longer", prefers))
    if position := report.position:
        facts.append(("better is on side A", str(position.good_on_a)))
        facts.append(("judge says A", str(position.says_a)))
    if orders := report.orders:
        facts.append(("same verdict in both orders", str(orders.consistent)))
        facts.append(("picks the first shown", str(orders.picks_first_shown)))
        facts.append(("accuracy, first order only", f"{100 * orders.first_order:.2f} %"))
    facts.append(("truncated", str(report.truncated)))
    return facts


def _print_problems(report: JudgeReport, console: Console) -> None:
    for problem in report.problems:
        console.print(f"[yellow]{problem.count} x {problem.kind.value}[/]", highlight=False)
        for example in problem.examples[:3]:
            text = f"    line {example.line} {example.id}: {example.why}"
            console.print(printable(text), highlight=False, soft_wrap=True)


def _short(interval: Interval) -> str:
    low, high = 100 * interval.low, 100 * interval.high
    return f"{100 * interval.value:.2f} \\[{low:.1f}, {high:.1f}]"


def printable(text: str) -> str:
    """Text of data or of a judge, without what a terminal would obey or could not write."""
    kept = "".join(each if each.isprintable() else "\N{REPLACEMENT CHARACTER}" for each in text)
    return escape(kept)


def _percent(interval: Interval) -> str:
    low, high = 100 * interval.low, 100 * interval.high
    return f"{100 * interval.value:.2f} % \\[{low:.2f}, {high:.2f}]"


def _number(value: float | None) -> str:
    return "-" if value is None else f"{value:.3f}"
