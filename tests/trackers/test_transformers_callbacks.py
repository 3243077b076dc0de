"""Do transformers' own callbacks run unmodified: trackers with offline back ends, and early stopping?"""

from __future__ import annotations

import glob
import sqlite3
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from transformers import EarlyStoppingCallback, TrainerCallback
from transformers.integrations import MLflowCallback, TensorBoardCallback, TrackioCallback, WandbCallback

import flow_dpo
from flow_dpo.core.errors import ConfigError
from flow_dpo.runs.callbacks.lifecycle import CallbackError
from flow_dpo.runs.files import read_jsonl
from flow_dpo.trackers.transformers_args import CallbackArguments
from flow_dpo.trackers.transformers_callbacks import STATE, TransformersCallbacks


def train(path: Path, callback: TransformersCallbacks, *, max_problems: int = 4, **more: Any) -> list[dict[str, Any]]:
    settings = {"problems_per_batch": 1, "window": 1, "examples_per_update": 1, "max_problems": max_problems}
    flow_dpo.train("seed", output_dir=path, callbacks=[callback], quiet=True, **settings, **more)
    return read_jsonl(path / "metrics.jsonl")


class Writes(TrainerCallback):
    """Writes down the events of a run with the step of each."""

    def __init__(self) -> None:
        self.events: list[tuple[str, int]] = []
        self.logs: list[dict[str, float]] = []
        self.seen: dict[str, Any] = {}

    def on_train_begin(self, args: Any, state: Any, control: Any, **more: Any) -> None:
        self.events.append(("on_train_begin", state.global_step))
        self.seen = {"args": args, **more}

    def on_step_end(self, args: Any, state: Any, control: Any, **more: Any) -> None:
        self.events.append(("on_step_end", state.global_step))

    def on_log(self, args: Any, state: Any, control: Any, logs: Any = None, **more: Any) -> None:
        self.events.append(("on_log", state.global_step))
        self.logs.append(dict(logs))
        logs.clear()  # its own copy

    def on_evaluate(self, args: Any, state: Any, control: Any, metrics: Any = None, **more: Any) -> None:
        self.events.append(("on_evaluate", state.global_step))

    def on_train_end(self, args: Any, state: Any, control: Any, **more: Any) -> None:
        self.events.append(("on_train_end", state.global_step))


@dataclass
class Given:
    metric_for_best_model: str | None = None
    run_name: str = "mine"
    secret_token: str = "hf_secret"

    def to_dict(self) -> dict[str, Any]:
        return vars(self)


class Never(EarlyStoppingCallback):
    """Early stopping to which no metric is ever better: its rule is transformers' own."""

    def check_metric_value(self, args: Any, state: Any, control: Any, metric_value: float) -> None:
        super().check_metric_value(args, state, control, -1.0)


def test_events_early_stopping_and_what_a_resumed_run_takes_up(tmp_path: Path) -> None:
    writes, stops = Writes(), Never(early_stopping_patience=3)
    driven = TransformersCallbacks([writes, stops], Given())
    rows = train(tmp_path / "run", driven, max_problems=20)
    # 1. It stopped: the first evaluation is the best so far, the three that follow are no better.
    assert len(rows) == 4
    assert stops.early_stopping_patience_counter == 3
    # 2. Steps are updates; a batch that made one is logged once, under the usual names and our own.
    updates = [int(row["learn/updates"]) for row in rows]
    assert sum(updates) > 0
    steps = [step for event, step in writes.events if event == "on_step_end"]
    assert steps == list(range(1, sum(updates) + 1))
    batches = [logs for logs in writes.logs if "loss" in logs]
    assert len(batches) == sum(update > 0 for update in updates)
    assert {"loss", "learning_rate", "reward", "epoch", "progressive/accuracy", "learn/updates"} <= set(batches[-1])
    assert [e for e, _ in writes.events].count("on_evaluate") == 4
    assert (writes.events[0], writes.events[-1]) == (("on_train_begin", 0), ("on_train_end", sum(updates)))
    # 3. What they read of args, and the model.
    args = writes.seen["args"]
    assert (args.run_name, args.metric_for_best_model) == ("mine", "progressive_accuracy")
    assert (args.greater_is_better, args.world_size if hasattr(args, "world_size") else 1) == (True, 1)
    assert "hf_secret" not in args.to_json_string()
    assert '"objective.beta": ' in args.to_json_string()
    assert writes.seen["model"].peft_config
    assert writes.seen["processing_class"] is not None
    # 4. A resumed run takes the counts up where its checkpoint stands.
    state = read_jsonl(tmp_path / "run" / STATE)
    assert [row["callbacks"][1]["attributes"]["early_stopping_patience_counter"] for row in state] == [0, 1, 2, 3]
    again = TransformersCallbacks([Writes(), patient := Never(early_stopping_patience=5)], Given())
    rows = train(tmp_path / "run", again, max_problems=20, resume=True)
    assert (len(rows), patient.early_stopping_patience_counter) == (6, 5)
    assert again.state.best_metric == max(row["progressive/window_accuracy"] for row in rows)


class Fails(TrainerCallback):
    def on_log(self, args: Any, state: Any, control: Any, **more: Any) -> None:
        raise OSError("no room")


class FailingTracker(TensorBoardCallback):
    """A tracker of transformers, as far as its module tells."""

    __module__ = TensorBoardCallback.__module__

    def __init__(self) -> None:
        """Needs no package."""

    def on_train_begin(self, args: Any, state: Any, control: Any, **more: Any) -> None:
        raise ConnectionError("lost")


def test_a_tracker_fails_once_and_a_users_own_ends_the_run(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    with pytest.raises(CallbackError, match=r"expected on_log of the callback Fails to return, found OSError: no room"):
        train(tmp_path / "run", TransformersCallbacks([FailingTracker(), Fails()]))
    assert caplog.text.count("FailingTracker failed") == 1
    with pytest.raises(ConfigError, match="callbacks of transformers"):
        TransformersCallbacks([object()])


@pytest.mark.slow
@pytest.mark.filterwarnings("default")
def test_the_trackers_of_transformers_run_unmodified(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    for name, value in {
        "TRACKIO_DIR": str(tmp_path / "trackio"), "WANDB_MODE": "offline", "WANDB_DIR": str(tmp_path),
        "WANDB_SILENT": "true", "MLFLOW_TRACKING_URI": f"sqlite:///{tmp_path}/mlflow.db", "HF_HUB_OFFLINE": "1",
    }.items():  # fmt: skip
        monkeypatch.setenv(name, value)
    for package in ("trackio", "wandb", "tensorboard", "mlflow"):
        pytest.importorskip(package)
    import mlflow

    mlflow.set_tracking_uri(f"sqlite:///{tmp_path}/mlflow.db")
    callbacks = [TrackioCallback, WandbCallback, TensorBoardCallback, MLflowCallback]
    driven = TransformersCallbacks(callbacks, SimpleNamespace(project="theirs"))
    rows = train(tmp_path / "run", driven)
    assert [guard.failed for _, guard in driven._callbacks if guard is not None] == [False] * 4
    updates = sum(int(row["learn/updates"]) for row in rows)
    logged = sum(row["learn/updates"] > 0 for row in rows)

    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    [events] = glob.glob(str(tmp_path / "run" / "runs" / "*"))
    curves = EventAccumulator(events)
    curves.Reload()
    assert [point.step for point in curves.Scalars("train/loss")][-1] == updates
    assert len(curves.Scalars("train/loss")) == logged
    assert len(curves.Scalars("eval/progressive_accuracy")) == 4
    [record] = mlflow.search_runs(output_format="list", search_all_experiments=True)
    assert len(mlflow.MlflowClient().get_metric_history(record.info.run_id, "loss")) == logged
    import wandb

    assert wandb.run is not None
    assert list(Path(wandb.run.dir).parent.glob("run-*.wandb"))
    wandb.finish()
    import trackio.utils

    [database] = list(Path(trackio.utils.TRACKIO_DIR).glob("theirs*.db"))  # read when it was imported
    with sqlite3.connect(database) as found:
        (num,) = found.execute("select count(*) from metrics").fetchone()
    assert num == logged + 4


@pytest.mark.parametrize(
    ("strategy", "metric", "told"),
    [
        ("steps", "accuracy", ["eval"]),  # it follows the held-out problems
        ("steps", "progressive_accuracy", ["progressive", "eval"]),
        (None, "accuracy", ["progressive", "eval"]),  # nothing else is evaluated: it says that its metric is missing
    ],
)
def test_early_stopping_hears_of_the_evaluations_that_have_its_metric(
    strategy: str | None, metric: str, told: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    heard: list[str] = []

    def hears(self: Any, args: Any, state: Any, control: Any, metrics: Any, **_: Any) -> None:
        heard.append("eval" if "eval_accuracy" in metrics else "progressive")

    monkeypatch.setattr(EarlyStoppingCallback, "on_evaluate", hears)
    writes = Writes()
    given = SimpleNamespace(eval_strategy=strategy, metric_for_best_model=metric)
    driven = TransformersCallbacks([EarlyStoppingCallback(), writes], given)
    driven.args = CallbackArguments(given, defaults={"eval_strategy": "steps"}, settings={})
    driven._path = tmp_path
    driven.on_evaluation("progressive", {"accuracy": 0.5}, 1)
    driven.on_evaluation("eval", {"accuracy": 0.5}, 1)
    assert heard == told
    assert [event for event, _ in writes.events].count("on_evaluate") == 2, "others hear of all"
