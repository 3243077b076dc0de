"""The callback behind `--report_to`: sends a run's metrics, some solutions and its report to one or several trackers.

    Tracking(TrackingSettings(report_to="wandb,tensorboard"))

The step of every point is the number of problems seen: it differs in every row, means the same in every recipe, and
compares runs at the same data. The learner's version can stand still or jump within a batch; it is a curve of its own
("learn/version"). A resumed run continues the same curves: trackers.json keeps each tracker's id and the last step that
was sent to it. What a tracker has is not sent again, and what it lacks is read from metrics.jsonl. An evaluation
belongs to a version of the adapters; it is sent unless the tracker has one of that version or a later one.

Invariant: no point is sent twice, however the run ended; a tracker that fails does not end the run (`guard`).
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from flow_dpo.core.protocols import Row
from flow_dpo.core.tree import Tree
from flow_dpo.core.types import Example
from flow_dpo.data import strict_json
from flow_dpo.trackers.clients import Tracker, make
from flow_dpo.trackers.guard import Guard
from flow_dpo.trackers.settings import TrackingSettings
from flow_dpo.trackers.transformers_callbacks import flat
from flow_dpo.trackers.usual_names import numbers

if TYPE_CHECKING:
    from flow_dpo.runs.callbacks.lifecycle import RunInfo

MARKS = "trackers.json"
"""By tracker: {"id": with which to continue, "step": the last one sent, "evaluated": for each name of an evaluation,
the version of the last one sent}. "evaluated" is missing before the first evaluation."""
_SHOWN = 2000
"""Maximum number of characters of a text in a table."""


class Tracking:
    """One callback for all trackers of a run."""

    def __init__(self, settings: TrackingSettings, report: Callable[[Path], Sequence[Path]] | None = None) -> None:
        """`report` writes a report on a finished run and returns its files, which are attached."""
        self._settings, self._report = settings, report
        self._trackers: dict[str, tuple[Tracker, Guard]] = {}
        self._marks: dict[str, dict[str, Any]] = {}
        self._done: dict[str, int] = {}
        self._path, self._seen, self._batches = Path(), 0, 0
        self._unmarked = set[str]()
        """Trackers of a run that did not record evaluations yet: what they received is known from the step only."""

    def on_run_begin(self, run: RunInfo) -> None:
        """Open every tracker. For a resumed run, send it the rows that it lacks."""
        self._path, self._seen = run.path, run.problems_seen
        goes_on = run.settings["run"]["resume"] and (run.path / MARKS).exists()
        self._marks = strict_json.parse_object((run.path / MARKS).read_bytes(), MARKS) if goes_on else {}
        rows = run.rows() if run.resumed else []
        self._batches = len(rows)
        for name in self._settings.trackers:
            known = self._marks.get(name, {})
            if known and "evaluated" not in known:
                self._unmarked.add(name)
            guard = Guard(name)
            with guard:
                tracker = make(name)
                self._trackers[name] = tracker, guard
                id = tracker.begin(
                    folder=run.path, project=self._settings.project, name=self._settings.run_name or run.path.name,
                    id=known.get("id"), settings=dict(flat(run.settings)),
                )  # fmt: skip
                if not isinstance(id, str):  # it is stored as JSON, and read by a resumed run
                    raise TypeError(f"expected begin to return an id as text, to open the run again, found {id!r:.80}")
                self._marks[name] = {**known, "id": id, "step": known.get("step", 0)}
            self._done[name] = known.get("step", 0)
        self._write()
        for row in rows:
            self._send(
                int(row["problems_seen"]), lambda tracker, row=row: tracker.log(_finite(row), row["problems_seen"])
            )

    def on_batch(self, row: Row, trees: Sequence[Tree], examples: Sequence[Example]) -> None:
        """Send one row, and a table if one is due."""
        self._seen = step = int(row["problems_seen"])
        self._batches += 1
        every, num_rows = self._settings.table_batches, self._settings.table_rows
        table = [_solution(tree) for tree in trees[:num_rows]] if every and (self._batches - 1) % every == 0 else []

        def send(tracker: Tracker) -> None:
            tracker.log(_finite(row), step)
            if table:
                tracker.table(table, step)

        self._send(step, send)

    def on_evaluation(self, name: str, metrics: Mapping[str, Any], version: int) -> None:
        """Send an evaluation as "eval/<name>/<metric>", except the progressive one, which is in every row."""
        if name == "progressive":
            return
        found = {f"eval/{name}/{key}": value for key, value in _finite(metrics).items()}
        for key, (tracker, guard) in self._trackers.items():
            evaluated = self._marks[key].setdefault("evaluated", {})
            early = key in self._unmarked and self._seen <= self._done[key]
            if guard.failed or early or evaluated.get(name, -1) >= version:
                continue
            evaluated[name] = version
            self._write()  # first, as in `_send`
            with guard:
                tracker.log(found, self._seen)

    def on_run_end(self, run: RunInfo, error: BaseException | None) -> None:
        """Attach the plot and the report of a run that ended without an error, and close every tracker."""
        files = [run.path / "progressive.png"] if error is None else []
        if error is None and self._report is not None:
            writing = Guard("the report for trackers")
            with writing:
                files += self._report(run.path)
        for tracker, guard in self._trackers.values():
            if guard.failed:
                continue
            with guard:
                for file in files:
                    if file.exists():
                        tracker.attach(file)
                tracker.end(failed=error is not None)

    def _send(self, step: int, send: Callable[[Tracker], None]) -> None:
        """Send to the trackers that lack this step. It is recorded first, so a point can get lost but not doubled."""
        wanting = [
            name for name, (_, guard) in self._trackers.items() if not guard.failed and step > self._done.get(name, 0)
        ]
        for name in wanting:
            self._marks[name]["step"] = step
        if wanting:
            self._write()
        for name in wanting:
            tracker, guard = self._trackers[name]
            with guard:
                send(tracker)

    def _write(self) -> None:
        beside = self._path / f"{MARKS}.tmp"
        beside.write_text(json.dumps(self._marks, indent=2) + "\n", encoding="utf-8")
        beside.replace(self._path / MARKS)


def _finite(row: Mapping[str, Any]) -> dict[str, float]:
    return {name: value for name, value in numbers(row).items() if math.isfinite(value)}


def _solution(tree: Tree) -> list[str]:
    """A tree's trunk as a row of a table."""
    problem, trunk = tree.problem, tree.trunk
    verdict = trunk.verdict
    cells = [problem.id, problem.question, problem.gold]
    cells += ["none", "", trunk.text] if verdict is None else [verdict.status, verdict.answer or "", trunk.text]
    return [str(cell)[:_SHOWN] for cell in cells]
