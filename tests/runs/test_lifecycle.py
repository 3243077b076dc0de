"""Do callbacks hear of a run's beginning, evaluations and end, and can they end it?"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

import flow_dpo
from flow_dpo.runs.callbacks.lifecycle import CallbackError, Lifecycle, RunInfo
from flow_dpo.runs.files import read_jsonl


class Hears:
    """Writes down what it hears of, and stops the run after a number of batches."""

    def __init__(self, *, stop_after: int = 0, fails_in: str = "", log: list[Any] | None = None) -> None:
        self.heard: list[Any] = [] if log is None else log
        self._stop_after, self._fails_in, self._batches = stop_after, fails_in, 0

    @property
    def wants_stop(self) -> bool:
        return bool(self._stop_after) and self._batches >= self._stop_after

    def _hear(self, event: str, *what: Any) -> None:
        self.heard.append((event, *what))
        if event == self._fails_in:
            raise ZeroDivisionError("a mistake of its own")

    def on_run_begin(self, run: RunInfo) -> None:
        self._hear("on_run_begin", run)

    def on_batch(self, row: dict[str, Any], trees: Any, examples: Any) -> None:
        self._batches += 1
        self._hear("on_batch", row["problems_seen"])

    def on_evaluation(self, name: str, metrics: Mapping[str, Any], version: int) -> None:
        self._hear("on_evaluation", name, dict(metrics), version)

    def on_run_end(self, run: RunInfo, error: BaseException | None) -> None:
        self._hear("on_run_end", run, error)


class OnlyBatches:
    def on_batch(self, row: Any, trees: Any, examples: Any) -> None:
        """The one method that a callback must have."""


def train(path: Path, *callbacks: Any, resume: bool = False, num: int = 4) -> flow_dpo.TrainResult:
    return flow_dpo.train(
        "seed", max_problems=num, problems_per_batch=1, window=2, output_dir=path, callbacks=callbacks, quiet=True,
        resume=resume,
    )  # fmt: skip


def test_a_run_is_told_from_beginning_to_end_and_stops_where_asked(tmp_path: Path) -> None:
    hears = Hears(stop_after=3)
    result = train(tmp_path / "run", OnlyBatches(), hears)
    assert result.progressive.num_seen == 3
    events = [event for event, *_ in hears.heard]
    assert events == ["on_run_begin", "on_batch", "on_batch", "on_evaluation", "on_batch", "on_run_end"]
    begun: RunInfo = hears.heard[0][1]
    assert (begun.path, begun.resumed, begun.problems_seen, begun.num_problems) == (tmp_path / "run", False, 0, 4)
    assert begun.settings["run"]["window"] == 2
    facts = json.loads((tmp_path / "run" / "run.json").read_text())
    assert begun.facts == {name: value for name, value in facts.items() if name != "schema"}
    row = read_jsonl(tmp_path / "run" / "metrics.jsonl")[1]
    evaluation = {"accuracy": row["progressive/window_accuracy"], "low": row["progressive/window_low"]}
    evaluation |= {"high": row["progressive/window_high"], "problems": 2}
    assert hears.heard[3][1:] == ("progressive", evaluation, row["learn/version"])
    ended, error = hears.heard[-1][1:]
    assert (ended.problems_seen, error) == (3, None)
    # It was checkpointed, and goes on where it stopped.
    hears = Hears()
    train(tmp_path / "run", hears, resume=True)
    assert (hears.heard[0][1].resumed, hears.heard[0][1].problems_seen) == (True, 3)
    assert [what for event, *what in hears.heard if event == "on_batch"] == [[4]]


def test_a_callback_that_raises_ends_the_run_which_is_resumed(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    log: list[Any] = []
    good = Hears(log=log)
    with pytest.raises(CallbackError, match="on_batch of the callback Hears to return, found ZeroDivisionError: a mis"):
        train(tmp_path / "run", good, Hears(fails_in="on_batch", log=log), num=2)
    assert [event for event, *_ in log] == ["on_run_begin"] * 2 + ["on_batch"] * 2 + ["on_run_end"] * 2
    assert isinstance(log[-1][2], CallbackError)
    assert train(tmp_path / "run", resume=True, num=2).progressive.num_seen == 2
    rows = read_jsonl(tmp_path / "run" / "metrics.jsonl")
    assert [row["problems_seen"] for row in rows] == [1, 2]


def test_an_error_at_the_beginning_gives_the_folder_back(tmp_path: Path) -> None:
    with pytest.raises(CallbackError, match="on_run_begin of the callback Hears"):
        train(tmp_path / "run", Hears(fails_in="on_run_begin"))
    assert not (tmp_path / "run" / "config.yaml").exists()


INFO = RunInfo(path=Path("x"), settings={}, facts={}, resumed=False, problems_seen=0, num_problems=1)


def test_every_begun_callback_is_ended_and_the_first_error_counts(caplog: pytest.LogCaptureFixture) -> None:
    log: list[Any] = []
    three = [Hears(log=log), Hears(fails_in="on_run_end", log=log), Hears(fails_in="on_run_begin", log=log)]
    with pytest.raises(CallbackError, match="on_run_begin"), Lifecycle(three, window=1).running(lambda: INFO):
        raise AssertionError("was not begun")
    assert [event for event, *_ in log] == ["on_run_begin"] * 3 + ["on_run_end"] * 3
    assert "on_run_end of the callback Hears" in caplog.text, "the second failure is told of"
    with pytest.raises(KeyboardInterrupt), Lifecycle(three[:1], window=1).running(lambda: INFO):
        raise KeyboardInterrupt
    assert isinstance(log[-1][2], KeyboardInterrupt)
    with pytest.raises(CallbackError, match="on_run_end"), Lifecycle(three[:2], window=1).running(lambda: INFO):
        pass
    try:
        raise ValueError("of somebody else")
    except ValueError:
        with Lifecycle(three[:1], window=1).running(lambda: INFO):
            pass
    assert log[-1][2] is None, "an error that is being handled outside is not the run's"
