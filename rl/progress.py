"""What a person sees while a run goes on: a bar on a terminal, plain lines elsewhere."""

import time
from collections.abc import Mapping
from types import TracebackType

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn
from rich.table import Table

from rl.evaluate import PassRate


def _minutes(seconds: float) -> str:
    return f"{int(seconds) // 60}:{int(seconds) % 60:02d}"


class Display:
    """Prints events and keeps one bar for the RL steps."""

    def __init__(self, console: Console | None = None) -> None:
        """Write to `console`, or to standard output."""
        self.console = console or Console()
        self._started = time.perf_counter()
        self._progress = Progress(
            TextColumn("[bold]train"),
            BarColumn(),
            MofNCompleteColumn(),
            TextColumn("{task.description}"),
            TimeElapsedColumn(),
            console=self.console,
            disable=not self.console.is_terminal,
        )
        self._first: tuple[int, float] | None = None

    def __enter__(self) -> "Display":
        """Start drawing."""
        self._progress.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        """Leave the terminal as it was."""
        self._progress.stop()

    def say(self, text: str) -> None:
        """One line, stamped with the minutes since the start."""
        stamp = _minutes(time.perf_counter() - self._started)
        self.console.print(f"[dim]{stamp:>6}[/dim]  {text}", highlight=False)

    def step(self, number: int, total: int, metrics: Mapping[str, float]) -> None:
        """One trained step."""
        now = time.perf_counter()
        if self._first is None:
            self._first = (number, now)
            self._bar = self._progress.add_task("", total=total)
        done = number - self._first[0]
        left = (total - number) * (now - self._first[1]) / done if done > 0 else 0.0
        reward = metrics.get("reward/mean", 0.0)  # absent where every group was skipped
        text = (
            f"reward {reward:.3f}  {metrics['rollout/tokens_per_s']:.0f} tok/s  "
            f"stall {metrics['time/stall']:.1f}s  left {_minutes(left) if done > 0 else '?'}"
        )
        self._progress.update(self._bar, completed=number, description=text)
        if not self.console.is_terminal:
            self.say(f"step {number}/{total}  {text}")

    def table(self, before: Mapping[str, PassRate], after: Mapping[str, PassRate]) -> None:
        """Held-out accuracy before and after."""
        table = Table(title="Held-out pass@1 (95 % interval)")
        for column in ("tasks", "before RL", "after RL", "gain"):
            table.add_column(column, justify="left" if column == "tasks" else "right")
        for name, rate in after.items():
            if name not in before:
                continue
            gain = rate.value - before[name].value
            table.add_row(name, str(before[name]), str(rate), f"{100 * gain:+.1f} points")
        self.console.print(table)
