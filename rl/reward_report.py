"""What `temper eval-reward verifier` prints, and its JSON."""

import json
from collections.abc import Sequence
from dataclasses import asdict

from rich import box
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from rewards.evaluate import Example, LabelledReport
from rewards.hacks.matrix import Cell, Failure, HackReport
from rewards.hacks.responses import RIGHT

MOST_SHOWN = 5  # of each sort of failure


def reward_json(labelled: LabelledReport | None, hacks: HackReport) -> str:
    """Both reports as one JSON object; "labelled" is null without labelled rows."""
    whole = {
        "labelled": None if labelled is None else {**asdict(labelled), "clean": labelled.clean},
        "hacks": {
            **asdict(hacks),
            "hacks_accepted": hacks.hacks_accepted,
            "right_refused": hacks.right_refused,
            "clean": hacks.clean,
        },
    }
    return json.dumps(whole)


def print_labelled(report: LabelledReport, console: Console) -> None:
    """Rates with intervals, mistakes, differences between runs, slow rows."""
    table = Table(title=f"{report.rows} labelled rows (95 % interval)", title_justify="left")
    table.add_column("")
    table.add_column("of rows", justify="right")
    table.add_row("false positives: wrong, accepted", str(report.false_positives))
    table.add_row("false negatives: right, refused", str(report.false_negatives))
    table.add_row("accuracy", str(report.accuracy))
    console.print(table)
    _print_examples("accepted, labelled wrong", report.accepted_wrong, console)
    _print_examples("refused, labelled right", report.refused_right, console)
    for number, why in list(report.unscored.items())[:MOST_SHOWN]:
        console.print(f"line {number} has no score: {escape(why)}", highlight=False)
    if report.crashed:
        console.print(f"the scorer raised on {report.crashed} rows, which score 0")
    if report.differences:
        shown = ", ".join(
            f"line {d.line}: {d.first} and {d.second}" for d in report.differences[:5]
        )
        console.print(f"[red]not deterministic[/red], {len(report.differences)} rows: {shown}")
    else:
        console.print("deterministic: two runs, the second shuffled, gave equal scores")
    slow = ", ".join(f"line {row.line} {row.seconds:.2f} s" for row in report.slowest)
    console.print(f"slowest: {slow}", highlight=False)
    if report.late:
        lines = ", ".join(str(row.line) for row in report.late[:10])
        console.print(f"[red]over the time limit[/red], {len(report.late)} rows: line {lines}")


def print_hacks(report: HackReport, console: Console) -> None:
    """The matrix, then the first failures."""
    families = list(dict.fromkeys(cell.family for cell in report.cells))
    types = list(dict.fromkeys(cell.type for cell in report.cells))
    cells = {(cell.family, cell.type): cell for cell in report.cells}
    vertical = sum(len(name) + 2 for name in types) > 50
    table = Table(title="Hacks accepted, and right answers refused", title_justify="left",
                  box=box.SIMPLE, padding=0)  # fmt: skip
    table.add_column("", no_wrap=True)
    for name in types:
        name = name.replace("_", " ")
        header = "\n".join(name) if vertical else name
        width = 3 if vertical else len(name) + 2
        table.add_column(header, justify="right", vertical="bottom", width=width)
    for family in sorted(families, key=lambda name: name != RIGHT):
        table.add_row(family, *(_cell(cells.get((family, name))) for name in types))
    console.print(table)
    tried = sum(cell.tried for cell in report.cells if cell.family != RIGHT)
    right = sum(cell.tried for cell in report.cells if cell.family == RIGHT)
    console.print(
        f"{report.hacks_accepted} of {tried} hacks accepted, "
        f"{report.right_refused} of {right} right answers refused, "
        f"{len(report.hangs)} hangs, {len(report.raised)} errors",
        highlight=False,
    )
    if report.ran_text:
        console.print("[red]The reward executes text of the response: anyone can run code.[/red]")
    for title, failures in (
        ("failed", report.failures), ("hung", report.hangs), ("raised", report.raised),
    ):  # fmt: skip
        _print_failures(title, failures, console)


def _cell(cell: Cell | None) -> str:
    if cell is None:
        return ""
    return f"[red]{cell.failed}[/red]" if cell.failed else "·"


def _print_examples(title: str, examples: Sequence[Example], console: Console) -> None:
    for each in examples:
        text = f"{title}: line {each.line}, score {each.score:g}, {each.why}"
        console.print(escape(text), highlight=False)
        console.print(f"  reference {_quoted(each.reference)}", highlight=False)
        console.print(f"  response ... {_quoted(each.response)}", highlight=False)


def _print_failures(title: str, failures: Sequence[Failure], console: Console) -> None:
    """One failure of each family first."""
    first = {failure.family: failure for failure in reversed(failures)}
    for each in list(reversed(first.values()))[:MOST_SHOWN]:
        text = f"{title}: {each.family} ({each.type}), score {each.score}, {each.why}"
        console.print(escape(text), highlight=False)
        console.print(f"  reference {_quoted(each.reference)}", highlight=False)
        console.print(f"  response {_quoted(each.response)}", highlight=False)


def _quoted(text: str) -> str:
    return escape(repr(text if len(text) <= 160 else f"{text[:157]}..."))
