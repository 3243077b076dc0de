"""Progress of a run on the terminal: the callback that shows each batch, the summary table and the picture.

Besides what is being done (`runs.live`) it shows windowed accuracy, examples, problems per minute and, if workers are
elsewhere, what limits the run. Without a terminal it prints a plain line per batch. At the end a table compares the
first and the last problems, which never overlap.
"""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table
from rich.text import Text

from flow_dpo.core.errors import visible
from flow_dpo.core.metrics import ProgressiveValidation
from flow_dpo.core.stats import wilson
from flow_dpo.core.tree import Tree
from flow_dpo.core.types import Example, Pair, Role
from flow_dpo.learner.settings import LearnerSettings
from flow_dpo.runs.bottleneck import NUM_BATCHES, bottleneck
from flow_dpo.runs.charts import Panel, Series, accuracy_series, save_png
from flow_dpo.runs.live import Live
from flow_dpo.workers.settings import WorkersSettings


class ProgressBar:
    """A callback that shows each batch."""

    def __init__(
        self,
        live: Live,
        num_problems: int,
        seen: int = 0,
        learner: LearnerSettings | None = None,
        workers: WorkersSettings | None = None,
    ) -> None:
        """`seen`: problems of the run before it was resumed. `learner` says what an update takes, `workers` whether to
        show what limits the run: workers that use all processors of the machine can neither be more nor sample
        ahead."""
        self._learner = learner
        self._says_limit = workers is None or not workers.fill_machine
        self._live = live
        self._seen_before = seen
        self._started = time.monotonic()
        self._pairs = self._words = self._others = 0
        self._rows: deque[Mapping[str, Any]] = deque(maxlen=NUM_BATCHES)
        self._warm = False
        live.begin(num_problems, "problems", seen)

    def on_batch(self, row: dict[str, Any], trees: Sequence[Tree], examples: Sequence[Example]) -> None:
        """Show one batch."""
        self._pairs += sum(isinstance(example, Pair) for example in examples)
        singles = [example for example in examples if not isinstance(example, Pair)]
        self._words += sum(bool(example.request.choices) for example in singles)
        self._others += sum(not example.request.choices for example in singles)
        seen = row["problems_seen"]
        rate = 60 * (seen - self._seen_before) / max(time.monotonic() - self._started, 1e-9)
        ungraded = row.get("progressive/ungraded")
        if len(self._rows) == 1 and not self._warm:
            self._rows.clear()  # the first batch after a start, while workers warm up
            self._warm = True
        self._rows.append(row)
        self._live.limit = bottleneck(list(self._rows)) if self._says_limit else ""
        self._live.note = (
            f"accuracy {row['progressive/window_accuracy']:.0%} (last {row['progressive/window_problems']})  "
            f"{f'{ungraded} ungraded  ' if ungraded else ''}"
            f"{self._learned()}  {rate:.{0 if rate >= 10 else 1}f} problems/min"
            f"{self._waiting(row, len(examples))}"
        )
        self._live.advance(seen)
        self._live.print("  ".join(filter(None, (self._live.pace(), self._live.note, self._live.limit))))

    def _learned(self) -> str:
        """The number of examples so far; if some are pairs, by kind: pairs, verdict words of a choosing role, and whole
        completions."""
        if not self._pairs:
            return f"{self._words + self._others} examples"
        others = ((self._words, "verdicts"), (self._others, "completions"))
        return ", ".join([f"{self._pairs} pairs", *(f"{number} {unit}" for number, unit in others if number)])

    def _waiting(self, row: Mapping[str, Any], num_new: int) -> str:
        """Why nothing was learned from this batch; "" if something was."""
        waiting = int(row.get("learn/waiting") or 0)
        if self._learner is None or row.get("learn/updates", 1):
            return ""
        if not waiting:
            return "" if num_new else "  nothing learned: no problem of this batch gave an example"
        return f"  {waiting} examples wait, an update takes {_size_of_update(self._learner)}"


def print_safe(console: Console, text: str) -> None:
    """Print text that can contain anything: markup and control sequences in it have no effect."""
    console.print(Text(visible(text)), highlight=False, soft_wrap=True)


def summary_table(progress: ProgressiveValidation) -> Table:
    """The first problems against the last, with 95 % intervals; if these overlap, the caption says so.

    The first window against up to a window of later problems; in a run of at most one window, its two halves.
    """
    table = Table(title="Accuracy on each problem before learning from it", title_justify="left")
    for name in ("window", "problems", "accuracy", "95 % interval"):
        table.add_column(name, justify="right" if name != "window" else "left")
    recent, num = list(progress.recent), progress.num_answered
    half = len(recent) // 2
    first = (int(sum(recent[:half])), half) if num <= progress.window else progress.first
    rest = recent[-(num - first[1]) :] if num > first[1] else []
    windows = {"first": first, "last": (int(sum(rest)), len(rest))}
    if num < 2:
        windows = {"all (too few to compare)": (progress.num_correct, num)}
    bounds: list[tuple[float, float]] = []
    for name, (correct, of) in windows.items():
        low, high = wilson(correct, of)
        bounds.append((low, high))
        table.add_row(name, str(of), f"{correct / max(of, 1):.1%}", f"{low:.1%} to {high:.1%}")
    if len(bounds) == 2 and bounds[0][1] >= bounds[1][0] and bounds[1][1] >= bounds[0][0]:
        table.caption, table.caption_justify = "The intervals overlap: no change can be shown.", "left"
    return table


def learned(rows: Iterable[Mapping[str, Any]], roles: Sequence[Role], settings: LearnerSettings) -> str:
    """Which roles learned nothing, and why, from the run's rows of metrics; "" if all have learned."""
    rows = list(rows)
    untrained = [role for role in roles if not any(f"learn/{role}/learning_rate" in row for row in rows)]
    if not untrained:
        return ""
    kept = [name for name in rows[-1] if name.startswith("learn/") and name.endswith("/window")] if rows else []
    waiting = int(sum(rows[-1][name] for name in ("learn/waiting", *kept))) if rows else 0
    counts = [f"{kind}/{role}" for kind in ("pairs", "scored") for role in roles]
    num_examples = sum(int(row.get(count, 0)) for row in rows for count in counts)
    if any(row["learn/updates"] for row in rows):
        return f"{' and '.join(untrained)} learned nothing: no update had an example of that role"
    if waiting:
        takes = _size_of_update(settings, roles, flags=True)
        return f"nothing was learned: {waiting} examples wait, an update takes {takes}; train on more problems"
    if num_examples:
        return "nothing was learned: every update was dropped, because its loss or gradient was not finite"
    ungraded = sum(row["ungraded_rate"] * row["num_verdicts"] for row in rows)
    if rows and ungraded >= 0.5 * sum(row["num_verdicts"] for row in rows):
        return "nothing was learned: most rollouts could not be graded, and an ungraded one teaches nothing"
    num_trees, num_tied = (int(sum(row[name] for row in rows)) for name in ("num_trees", "tied_trees"))
    accuracy = rows[-1]["progressive/accuracy"] if rows else 0.0
    return (
        f"nothing was learned: no problem gave an example; the rollouts of {num_tied} of {num_trees} problems all "
        f"ended alike ({accuracy:.0%} of the first ones were right): use problems that the model solves sometimes"
    )


def _size_of_update(settings: LearnerSettings, roles: Sequence[Role] | None = None, *, flags: bool = False) -> str:
    """How many examples an update takes, in words, for the pools of these roles; of all roles if None."""
    own = {role: each.examples_per_update for role, each in settings.roles.items() if roles is None or role in roles}
    shown = lambda size, flag: f"{size} ({flag})" if flags else size  # noqa: E731
    sizes = [
        shown(f"{size} of {role}", f"--learner.roles.{role}.examples_per_update") for role, size in own.items() if size
    ]
    if roles is None or not set(roles) <= {role for role, size in own.items() if size is not None}:
        passes = settings.passes
        parts = f"{passes.minibatches} times " if passes.minibatches > 1 else ""
        problems = shown(f"{parts}the examples of {passes.problems_per_update} problems", "--problems_per_update")
        examples = shown(f"{parts}{settings.examples_per_update}", "--examples_per_update")
        sizes.insert(0, problems if passes.problems_per_update else examples)
    return " or ".join(sizes)


def plot(rows: Sequence[dict[str, Any]], path: Path) -> None:
    """Draw progressive.png: windowed and cumulative accuracy with their intervals and, below, each role's pairs or, for
    a role without pairs, its scored completions."""
    if not rows:
        return
    seen = [row["problems_seen"] for row in rows]
    yields: list[Series] = []
    for role in (key.removeprefix("nodes/") for key in rows[0] if key.startswith("nodes/")):
        scored = any(row.get(f"scored/{role}") for row in rows) and not any(row[f"pairs/{role}"] for row in rows)
        kind = "scored" if scored else "pairs"
        counts = [row.get(f"{kind}/{role}", 0) / max(row[f"nodes/{role}"], 1) for row in rows]
        yields.append(Series(label=f"{role}, verdicts" if scored else role, x=seen, y=counts))
    panels = [
        Panel(y="accuracy (%)", lines=accuracy_series(rows), bounds=(0, 100), title="Accuracy before learning"),
        *([Panel(y="examples per trunk node", lines=yields, bounds=(0, None))] if yields else []),
    ]
    save_png(path, [replace(panel, marked=len(rows) < 12) for panel in panels], x="problems seen", height=3.2)
