"""`temper eval-reward pairs` and `compare`: a judge on preference data, from files to a report."""

import json
import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from hashlib import sha256
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from rewards.preference.comparisons import group_by_prompt
from rewards.preference.files import read_preferences
from rewards.preference.judge_comparison import JudgeComparison, compare_judges, read_result
from rewards.preference.judgements import JudgementFile
from rewards.preference.judges import Judge
from rewards.preference.judging import Verdicts, hear, recorded_verdicts
from rewards.preference.page import render_page
from rewards.preference.recorded_scores import join_scores
from rewards.preference.records import Preferences, ProblemKind, Shape
from rewards.preference.report import JudgeReport, make_report
from rl.errors import BadInput, bad_input, writing

RESULT, PAGE, JUDGEMENTS = "result.json", "report.html", "judgements.jsonl"


@dataclass(frozen=True, slots=True, kw_only=True)
class Evaluation:
    """What to evaluate. Without judge and scores, the scores that are in the data."""

    data: Path
    scores: Path | None = None
    judge: Judge | None = None
    shape: Shape | None = None  # None: recognised
    both_orders: bool = True
    out: Path | None = None  # None: a folder in runs/eval-reward named after data and judge


@dataclass(frozen=True, slots=True, kw_only=True)
class Evaluated:
    """The report and where it lies."""

    report: JudgeReport
    result: Path
    page: Path
    kept: int  # judgements that an earlier run had made

    def summary(self) -> dict[str, Any]:
        """For `--json`: the report without the columns of single rows, and the files."""
        values = _plain(asdict(self.report))
        del values["rows"]
        for each in values["worst"]:
            del each["prompt"], each["good"], each["bad"], each["words"]
        return {**values, "files": {"result": str(self.result), "page": str(self.page)}}


def evaluate_judge(what: Evaluation, console: Console) -> Evaluated:
    """Read, judge, report. What the judge says is kept as it comes, so a stopped run goes on.

    Raises:
        BadInput: files that cannot be used, or nothing that could be judged.
        RewardError: the judge is gone.
        RunFailed: the results cannot be written.
    """
    folder = _folder(what)
    with bad_input():
        source = read_preferences(what.data, what.shape)
        how = "given" if what.shape else "recognised; --shape overrides"
        console.print(f"{what.data}: {source.read} rows of shape {source.shape.value} ({how})")
        source = _with_scores(source, what)
    with _using(folder):  # what was judged must have a place
        folder.mkdir(parents=True, exist_ok=True)
    kept = 0
    if what.judge is None:
        said, name = recorded_verdicts(source.rows), _recorded_name(what)
    else:
        said, kept = _hear(what, what.judge, source, folder, console)
        name = what.judge.name
    with bad_input():
        report = make_report(str(what.data), name, source, said)
    result, page = folder / RESULT, folder / PAGE
    with writing(folder, "give the command again: no judgement is made twice"):
        result.write_text(json.dumps(_plain(asdict(report)), ensure_ascii=True) + "\n")
        page.write_text(render_page(report), errors="replace")
    return Evaluated(report=report, result=result, page=page, kept=kept)


def compare_results(first: Path, second: Path) -> JudgeComparison:
    """Two judges by their `result.json`. Raises BadInput for files that are none."""
    with bad_input():
        return compare_judges(read_result(first), read_result(second))


def _with_scores(source: Preferences, what: Evaluation) -> Preferences:
    """The rows to judge, with recorded scores where they are the judge."""
    rows, problems = source.rows, source.problems
    if what.scores is not None:
        joined = join_scores(rows, what.scores)
        rows, problems = joined.rows, (*problems, *joined.problems)
    elif what.judge is not None:
        rows = tuple(replace(row, recorded=None) for row in rows)
    elif not any(row.recorded for row in rows):
        raise BadInput(
            f"{what.data} holds no scores of its own: give --scores FILE or --judge JUDGE"
        )
    if source.shape is Shape.scored:
        rows = tuple(group_by_prompt(rows))
    return replace(source, rows=rows, problems=problems)


def _hear(
    what: Evaluation, judge: Judge, source: Preferences, folder: Path, console: Console
) -> tuple[Verdicts, int]:
    """What the judge says, and how much of it was kept from before."""
    with _using(folder):
        kept = JudgementFile(folder / JUDGEMENTS)
    before = len(kept)
    columns = TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn()
    try:
        with Progress(*columns, TimeRemainingColumn(), console=console, transient=True) as bar:
            task = bar.add_task("judging", total=None)
            said = hear(
                judge,
                source.rows,
                kept,
                lambda done, total: bar.update(task, completed=done, total=total),
                both_orders=what.both_orders,
            )
        return said, before
    except KeyboardInterrupt:
        console.print(f"stopped; {len(kept)} judgements are kept: the same command goes on")
        raise
    finally:
        kept.close()
        judge.close()


def _recorded_name(what: Evaluation) -> str:
    return f"scores of {what.scores.name}" if what.scores else f"scores in {what.data.name}"


def _folder(what: Evaluation) -> Path:
    if what.out is not None:
        folder = what.out
    else:
        judge = what.judge.name if what.judge else what.scores.name if what.scores else "recorded"
        names = (re.sub(r"[^A-Za-z0-9.-]+", "-", each) for each in (what.data.name, judge))
        made = "__".join(names)
        if what.judge:  # others may have its name: a checkpoint of another run, other rubrics
            made += f"-{sha256(what.judge.identity.encode(errors='replace')).hexdigest()[:6]}"
        folder = Path("runs/eval-reward") / made
    with _using(folder):
        if folder.exists() and not folder.is_dir():
            raise BadInput(f"--out {folder} is a file: name a folder")
        there = {each.name for each in folder.iterdir()} if folder.is_dir() else set()
    if there and not there & {RESULT, PAGE, JUDGEMENTS}:
        raise BadInput(f"--out {folder} holds other files: name a new folder")
    return folder


@contextmanager
def _using(folder: Path) -> Iterator[None]:
    """What the disk refuses of the folder, as the user's mistake."""
    try:
        yield
    except OSError as error:
        raise BadInput(f"cannot use --out {folder}: {error.strerror or error}") from error


def _plain(value: Any) -> Any:
    """JSON has no NaN: a figure of nothing is null. Enums are their names."""
    if isinstance(value, Mapping):
        return {str(key): _plain(each) for key, each in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(each) for each in value]
    if isinstance(value, ProblemKind):
        return value.name
    return None if isinstance(value, float) and value != value else value
