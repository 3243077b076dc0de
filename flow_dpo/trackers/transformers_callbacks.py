"""transformers' callbacks (`TrainerCallback`), unmodified, driven by a run of flow-dpo.

    flow_dpo.train("seed", callbacks=[TransformersCallbacks([WandbCallback(), EarlyStoppingCallback(3)])])

They are called with a real `TrainerState` and `TrainerControl`:

    on_init_end, on_train_begin, on_epoch_begin   the run begins
    on_step_begin, on_step_end                    once an update; `state.global_step` is the learner's version
    on_log                                        once a batch that made an update: loss, reward, ... and our own names
    on_log, on_evaluate                           an evaluation: "eval_<name>_<metric>", such as
                                                  eval_progressive_accuracy whenever a window of problems is full
    on_epoch_end, on_save, on_train_end           the run ends and is saved

`control.should_training_stop` ends the run after the batch. `state.best_metric` follows `args.metric_for_best_model`,
updated after `on_evaluate` as in `Trainer`. The counts of `EarlyStoppingCallback` are saved in trainer_state.jsonl for
a resumed run. Invariant: a failing callback of `transformers.integrations` never ends a run (`guard`); others do.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from flow_dpo.core.errors import ConfigError
from flow_dpo.core.protocols import Row
from flow_dpo.core.tree import Tree
from flow_dpo.core.types import Example
from flow_dpo.data import strict_json
from flow_dpo.trackers.guard import Guard
from flow_dpo.trackers.transformers_args import CallbackArguments
from flow_dpo.trackers.usual_names import numbers, usual

if TYPE_CHECKING:
    from flow_dpo.runs.callbacks.lifecycle import RunInfo

STATE = "trainer_state.jsonl"
"""One line for each evaluation: the trainer's state after it, and the state of each callback that has one."""
_KEPT = ("best_metric", "best_global_step")


class TransformersCallbacks:
    """A callback of flow-dpo that drives callbacks of transformers."""

    def __init__(self, callbacks: Sequence[Any], args: object = None, processing_class: Any = None) -> None:
        """`callbacks` are `TrainerCallback`s or their classes; `args` is any object with fields of `TrainingArguments`.

        Raises `ConfigError` for any other object among the callbacks.
        """
        from transformers import TrainerCallback, TrainerControl, TrainerState

        made = [callback() if isinstance(callback, type) else callback for callback in callbacks]
        for callback in made:
            if not isinstance(callback, TrainerCallback):
                raise ConfigError(
                    "expected callbacks of transformers (TrainerCallback), or of flow-dpo, with "
                    f"on_batch(row, trees, examples); found {callback!r:.80}"
                )
        self._callbacks = [(callback, _guard_of(callback)) for callback in made]
        self._given, self._processing_class = args, processing_class
        self.running = ""
        """The callback and event that were called last, to which an error belongs."""
        self._model: Any = None
        self._path = Path()
        self._num_problems = self._seen = 0
        self.state, self.control = TrainerState(), TrainerControl()
        self.args: CallbackArguments | None = None

    @property
    def wants_stop(self) -> bool:
        """Whether a callback has set `control.should_training_stop`."""
        return self.control.should_training_stop

    def on_run_begin(self, run: RunInfo) -> None:
        """Create the run's args and state, and send the first events."""
        self._path, self._num_problems, self._seen = run.path, run.num_problems, run.problems_seen
        self._model = run.model
        if self._processing_class is None:
            self._processing_class = run.tokenizer
        state, learner = self.state, run.settings["learner"]
        self.args = CallbackArguments(
            self._given,
            defaults={
                "output_dir": str(run.path),
                "run_name": run.path.name,
                "project": "flow-dpo",
                "learning_rate": learner["learning_rate"],
                "seed": run.settings["run"]["seed"],
                "eval_strategy": "steps",
                "logging_steps": 1,
                "metric_for_best_model": "progressive_accuracy",
            },
            settings={**dict(flat(run.settings)), "model": run.facts.get("model")},
        )
        rows = run.rows() if run.resumed else []
        state.global_step = int(rows[-1]["learn/version"] + rows[-1]["learn/updates"]) if rows else 0
        state.max_steps = max(run.settings["run"]["budget"]["budget_updates"], 0)
        state.num_train_epochs, state.epoch = 1, run.problems_seen / max(run.num_problems, 1)
        state.logging_steps = max(1, int(self.args.logging_steps or 1))
        if run.resumed:
            self._take_up()
        else:
            (run.path / STATE).unlink(missing_ok=True)
        self.control.should_training_stop = False
        for event in ("on_init_end", "on_train_begin", "on_epoch_begin"):
            self._tell(event)

    def on_batch(self, row: Row, trees: Sequence[Tree], examples: Sequence[Example]) -> None:
        """Report the batch's updates, and log its row if there were any."""
        self._seen = int(row["problems_seen"])
        self.state.epoch = self._seen / max(self._num_problems, 1)
        before = self.state.global_step
        for step in range(int(row["learn/version"]), int(row["learn/version"]) + int(row["learn/updates"])):
            if step < before:  # before the checkpoint that the run continues from
                continue
            self._tell("on_step_begin")
            self.state.global_step = step + 1
            self._tell("on_step_end")
        if self.state.global_step > before:
            verdicts = [tree.trunk.verdict for tree in trees]
            rewards = [verdict.reward for verdict in verdicts if verdict is not None and verdict.reward is not None]
            self._log(usual(row, rewards=rewards, num_problems=self._num_problems) | numbers(row))

    def on_evaluation(self, name: str, metrics: Mapping[str, Any], version: int) -> None:
        """Report an evaluation, and keep the best value of `metric_for_best_model`."""
        args = self.args
        if args is None or getattr(args.eval_strategy, "value", args.eval_strategy) == "no":
            return
        prefix = "eval_" if name in ("", "eval") else f"eval_{name}_"
        found = {f"{prefix}{key}": value for key, value in metrics.items() if isinstance(value, (int, float))}
        self._log({**found, "epoch": self.state.epoch})
        self._tell("on_evaluate", but=self._waiting(name, found), metrics=found)
        self._keep_best(found)
        rows = [{"problems_seen": self._seen, **{name: getattr(self.state, name) for name in _KEPT}}]
        rows[0]["callbacks"] = [each.state() if hasattr(each, "state") else None for each, _ in self._callbacks]
        with (self._path / STATE).open("a", encoding="utf-8") as file:
            file.writelines(json.dumps(row) + "\n" for row in rows)

    def _waiting(self, name: str, metrics: Mapping[str, float]) -> tuple[type, ...]:
        """The callbacks that skip an evaluation: early stopping skips progressive accuracies if it follows a metric of
        the held-out problems. It would take them for evaluations that lack the metric, and warn."""
        from transformers import EarlyStoppingCallback

        given = getattr(self._given, "eval_strategy", None)
        others = getattr(given, "value", given) in ("steps", "epoch")
        return (EarlyStoppingCallback,) if name == "progressive" and others and self._best not in metrics else ()

    def on_run_end(self, run: RunInfo, error: BaseException | None) -> None:
        """Send the last events, however the run ended."""
        if self.args is None:
            return
        self._tell("on_epoch_end")
        if error is None:
            self._tell("on_save")
        self._tell("on_train_end")

    def _keep_best(self, metrics: Mapping[str, float]) -> None:
        assert self.args is not None
        value = metrics.get(self._best)
        if value is None:
            return
        best = self.state.best_metric
        if best is None or (value > best if self.args.greater_is_better else value < best):
            self.state.best_metric, self.state.best_global_step = value, self.state.global_step

    @property
    def _best(self) -> str:
        """The metric that decides which version is best, by its name in evaluations."""
        name = str(getattr(self.args, "metric_for_best_model", None))
        return name if name.startswith("eval_") else f"eval_{name}"

    def _take_up(self) -> None:
        """Restore state and callbacks as the last evaluation before the resumed run's checkpoint left them."""
        path = self._path / STATE
        lines = path.read_bytes().splitlines(keepends=True) if path.exists() else []
        whole = [line for line in lines if line.endswith(b"\n")]
        rows = [strict_json.parse_object(line, f"{path}, line {at}") for at, line in enumerate(whole, 1)]
        past = [row for row in rows if row["problems_seen"] <= self._seen]
        path.write_text("".join(json.dumps(row) + "\n" for row in past), encoding="utf-8")
        if not past:
            return
        for name in _KEPT:
            setattr(self.state, name, past[-1][name])
        for (callback, _), kept in zip(self._callbacks, past[-1]["callbacks"], strict=False):
            for name, value in (kept or {}).get("attributes", {}).items():
                setattr(callback, name, value)

    def _log(self, logs: Mapping[str, float]) -> None:
        finite = {name: value for name, value in logs.items() if math.isfinite(value)}
        self.state.log_history.append({**finite, "step": self.state.global_step})
        self._tell("on_log", logs=finite)

    def _tell(self, event: str, *, but: tuple[type, ...] = (), **more: Any) -> None:
        """Call an event of every callback, except instances of `but`, with the keywords that `Trainer` passes. Each
        callback gets a copy of `more`."""
        for callback, guard in self._callbacks:
            if isinstance(callback, but):
                continue
            own = {name: dict(value) for name, value in more.items()}
            given = {"model": self._model, "processing_class": self._processing_class, **own}
            for name in ("optimizer", "lr_scheduler", "train_dataloader", "eval_dataloader"):
                given[name] = None
            if guard is None:
                self.running = f"{type(callback).__name__}.{event}"
                self._take(getattr(callback, event)(self.args, self.state, self.control, **given))
            elif not guard.failed:
                with guard:
                    self._take(getattr(callback, event)(self.args, self.state, self.control, **given))

    def _take(self, control: Any) -> None:
        """Callbacks can return another control, or nothing."""
        if control is not None:
            self.control = control


def _guard_of(callback: object) -> Guard | None:
    """A guard for one of transformers' own trackers, otherwise None."""
    own = type(callback).__module__.startswith("transformers.integrations")
    return Guard(type(callback).__name__) if own else None


def flat(values: Mapping[str, Any], prefix: str = "") -> list[tuple[str, Any]]:
    """Nested settings as a flat list of dotted names and values."""
    found: list[tuple[str, Any]] = []
    for name, value in values.items():
        inner = flat(value, f"{prefix}{name}.") if isinstance(value, Mapping) else [(f"{prefix}{name}", value)]
        found += inner
    return found
