"""Progress of a run on the terminal: the callback with the bar, the summary table and the picture.

A bar with windowed accuracy, pairs, problems a minute and time left; plain lines where there is no terminal; at the
end a table from the first window to the last, where the files are and which command comes next.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from rich.table import Table
from rich.text import Text

from flow_dpo.core.errors import visible
from flow_dpo.core.metrics import ProgressiveValidation
from flow_dpo.core.stats import wilson
from flow_dpo.core.tree import Tree
from flow_dpo.core.types import Example, Pair
from flow_dpo.runs.charts import Panel, Series, accuracy_series, save_png


class ProgressBar:
    """A callback that shows each batch. A context manager: the bar is removed at the end."""

    def __init__(self, console: Console, num_problems: int, seen: int = 0) -> None:
        """`seen`: problems of the run before it was resumed."""
        self._console = console
        self._seen_before = seen
        self._started = time.monotonic()
        self._examples, self._unit = 0, "examples"
        self._bar = Progress(
            TextColumn("learning"),
            BarColumn(bar_width=30),
            MofNCompleteColumn(),
            TextColumn("{task.fields[state]}"),
            TimeRemainingColumn(),
            console=console,
            disable=not console.is_terminal,
        )
        self._task = self._bar.add_task("learn", total=num_problems, completed=seen, state="")

    def __enter__(self) -> ProgressBar:
        self._bar.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._bar.stop()

    def on_batch(self, row: dict[str, Any], trees: Sequence[Tree], examples: Sequence[Example]) -> None:
        """Show one batch."""
        self._examples += len(examples)
        self._unit = "pairs" if any(isinstance(example, Pair) for example in examples) else self._unit
        seen = row["problems_seen"]
        rate = 60 * (seen - self._seen_before) / max(time.monotonic() - self._started, 1e-9)
        ungraded = row.get("progressive/ungraded")
        state = (
            f"accuracy {row['progressive/window_accuracy']:.0%} (last {row['progressive/window_problems']})  "
            f"{f'{ungraded} ungraded  ' if ungraded else ''}"
            f"{self._examples} {self._unit}  {rate:.0f} problems/min"
        )
        self._bar.update(self._task, completed=seen, state=state)
        if not self._console.is_terminal:
            self._console.print(Text(f"{seen} problems  {state}"))


def print_safe(console: Console, text: str) -> None:
    """Print text that may hold anything: no markup and no control sequence in it has an effect."""
    console.print(Text(visible(text)), highlight=False, soft_wrap=True)


def summary_table(progress: ProgressiveValidation) -> Table:
    """First problems against last, which are others, with 95 % intervals; what cannot be told apart is said not to be.

    Of a run of fewer problems than two windows it is the first half against the rest.
    """
    table = Table(title="Accuracy on each problem before learning from it", title_justify="left")
    for name in ("window", "problems", "accuracy", "95 % interval"):
        table.add_column(name, justify="right" if name != "window" else "left")
    recent, num = list(progress.recent), progress.num_answered
    half = len(recent) // 2
    first = (int(sum(recent[:half])), half) if num <= progress.window else progress.first
    rest = recent[-(num - first[1]) :] if num > first[1] else []
    bounds: list[tuple[float, float]] = []
    for name, (correct, of) in (("first", first), ("last", (int(sum(rest)), len(rest)))):
        low, high = wilson(correct, of)
        bounds.append((low, high))
        table.add_row(name, str(of), f"{correct / max(of, 1):.1%}", f"{low:.1%} to {high:.1%}")
    if bounds[0][1] >= bounds[1][0] and bounds[1][1] >= bounds[0][0]:
        table.caption, table.caption_justify = "The intervals overlap: no change can be told.", "left"
    return table


def plot(rows: Sequence[dict[str, Any]], path: Path) -> None:
    """progressive.png: windowed and cumulative accuracy with their intervals, and pairs by role below."""
    if not rows:
        return
    seen = [row["problems_seen"] for row in rows]
    yields = [
        Series(label=role, x=seen, y=[row[f"pairs/{role}"] / max(row[f"nodes/{role}"], 1) for row in rows])
        for role in (key.removeprefix("nodes/") for key in rows[0] if key.startswith("nodes/"))
    ]
    panels = [
        Panel(y="accuracy (%)", lines=accuracy_series(rows), bounds=(0, 100), title="Accuracy before learning"),
        *([Panel(y="pairs a trunk node", lines=yields, bounds=(0, None))] if yields else []),
    ]
    save_png(path, [replace(panel, marked=len(rows) < 12) for panel in panels], x="problems seen", height=3.2)
