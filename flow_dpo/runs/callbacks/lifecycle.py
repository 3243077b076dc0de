"""Events of a run for its callbacks: begin, batch, evaluation, end, and a callback's request that the run stop.

A callback has `on_batch(row, trees, examples)`; all else is optional:

    class Notes:
        wants_stop = False                                       # True ends the run after this batch, checkpointed

        def on_run_begin(self, run: RunInfo): ...                # loaded, nothing sampled yet
        def on_batch(self, row, trees, examples): ...
        def on_evaluation(self, name, metrics, version): ...     # "progressive": a window of problems is full
        def on_run_end(self, run: RunInfo, error): ...           # written; error is what ended it, or None

Invariant: every callback that was begun is ended exactly once, in reverse order, whatever ended the run. A callback
that raises ends the run as an interruption does: everything up to the last checkpoint is kept, and the error names it.
"""

from __future__ import annotations

import logging
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType
from typing import Any

from flow_dpo.core.errors import FlowDpoError
from flow_dpo.core.protocols import Callback, Row
from flow_dpo.core.tree import Tree
from flow_dpo.core.types import Example, Problem
from flow_dpo.runs.records import read_metrics

log = logging.getLogger("flow_dpo")

EVENTS = ("on_run_begin", "on_batch", "on_evaluation", "on_run_end")
"""All methods that a callback can have; only `on_batch` is required."""
PROGRESSIVE = "progressive"
"""The evaluation that every run makes: its windowed accuracy, whenever a window of new problems is full."""
_WINDOW = {"accuracy": "window_accuracy", "low": "window_low", "high": "window_high", "problems": "window_problems"}


class CallbackError(FlowDpoError, RuntimeError):
    """A callback raised an error: the run ends and can be resumed."""


@dataclass(frozen=True, kw_only=True)
class RunInfo:
    """A run, as its callbacks see it when it begins and when it ends."""

    path: Path
    """The run folder."""
    settings: Mapping[str, Any]
    """Every setting by section, as config.yaml has them: {"objective": {"beta": 0.1}, ...}."""
    facts: Mapping[str, Any]
    """What run.json says at this time: versions, commit, device, model, data."""
    resumed: bool
    """Whether it continues from a checkpoint."""
    problems_seen: int
    """Problems that were sampled and learned from so far."""
    num_problems: int
    """Problems of the stream in total."""
    model: Any = field(default=None, repr=False)
    """The model that is trained, with its adapters (`peft.PeftModel`)."""
    tokenizer: Any = field(default=None, repr=False)

    def rows(self) -> list[dict[str, Any]]:
        """The rows of metrics.jsonl at this moment."""
        return read_metrics(self.path / "metrics.jsonl")


class Lifecycle:
    """One callback that passes every event on to the callbacks that have a method for it, in order."""

    def __init__(self, callbacks: Sequence[Callback], *, window: int, seen: int = 0) -> None:
        """`window` is the number of problems per "progressive" evaluation, `seen` those that a resumed run has seen."""
        self._callbacks, self._window, self._seen = [*callbacks], window, seen

    def join(self, callbacks: Iterable[Callback]) -> None:
        """Also pass events on to these, after the others."""
        self._callbacks += callbacks

    @property
    def wants_stop(self) -> bool:
        """Whether a callback asks the run to end after this batch."""
        return any(getattr(callback, "wants_stop", False) for callback in self._callbacks)

    @contextmanager
    def running(self, info: Callable[[], RunInfo]) -> Iterator[None]:
        """A context around what is sampled and learned: callbacks are begun on entering and ended on leaving."""
        begun, done = list[Callback](), False
        try:
            now = info()
            for callback in self._callbacks:
                begun.append(callback)
                _call(callback, "on_run_begin", now)
            yield
            done = True
        finally:
            self._end(begun, info, None if done else sys.exception())

    def _end(self, begun: Sequence[Callback], info: Callable[[], RunInfo], error: BaseException | None) -> None:
        failed: CallbackError | None = None
        now = info() if begun else None
        for callback in reversed(begun):
            try:
                _call(callback, "on_run_end", now, error)
            except CallbackError as found:
                # What ended the run is what the user must see; a second failure is only logged.
                if error is not None or failed is not None:
                    log.warning("%s", found)
                else:
                    failed = found
        if failed is not None:
            raise failed

    def on_batch(self, row: Row, trees: Sequence[Tree], examples: Sequence[Example]) -> None:
        """Pass one batch on, and the progressive evaluation if a window was filled."""
        for callback in self._callbacks:
            _call(callback, "on_batch", row, trees, examples)
        before, self._seen = self._seen, int(row["problems_seen"])
        if before // self._window < self._seen // self._window:
            metrics = {name: row[f"progressive/{key}"] for name, key in _WINDOW.items()}
            self.evaluated(PROGRESSIVE, metrics, int(row["learn/version"]))

    def evaluated(self, name: str, metrics: Mapping[str, Any], version: int) -> None:
        """Pass on an evaluation of the adapters of this version."""
        for callback in self._callbacks:
            _call(callback, "on_evaluation", name, metrics, version)

    def until_stopped(self, problems: Iterable[Problem]) -> Iterator[Problem]:
        """The problems, until a callback asks the run to end; batches in flight are still learned from."""
        for problem in problems:
            if self.wants_stop:
                return
            yield problem


def _call(callback: Callback, event: str, *args: Any) -> None:
    method = getattr(callback, event, None)
    if method is not None:
        with _Named(callback, event):
            method(*args)


class _Named:
    """A context that turns an error in a callback's own code into one that names the callback.

    Errors that this package raises on purpose, and interruptions, pass unchanged.
    """

    def __init__(self, callback: Callback, event: str) -> None:
        self._callback, self._event = callback, event

    def __enter__(self) -> None:
        """Nothing is needed."""

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        if isinstance(error, Exception) and not isinstance(error, FlowDpoError):
            # A callback that calls others says which of them failed.
            inner = str(getattr(self._callback, "running", "")).partition(".")
            name, event = (inner[0], inner[2]) if inner[2] else (type(self._callback).__name__, self._event)
            raise CallbackError(
                f"expected {event} of the callback {name} to return, found "
                f"{type(error).__name__}: {error}; what was learned up to the last checkpoint is kept: fix the "
                "callback, and resume"
            ) from error
