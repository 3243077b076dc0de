"""The built-in trackers, each through its package's own client: begin, log, table, attach, end.

    tracker = make("wandb")
    id = tracker.begin(folder=path, project="flow-dpo", name="first", id=None, settings={"objective.beta": 0.1})
    tracker.log({"progressive/accuracy": 0.5}, step=16)

Your own tracker is a class without constructor arguments that has these five methods (`Tracker`). Invariant: `begin`
with the id that it returned continues the same curve; text that a model wrote is displayed, never interpreted.
"""

from __future__ import annotations

import time
import uuid
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

from flow_dpo.core.errors import ConfigError
from flow_dpo.plugins.load import load_object

COLUMNS = ("problem", "question", "gold", "verdict", "answer", "solution")
"""The columns of a table of solutions."""
TABLE = "solutions"
"""The table's name."""


class Tracker(Protocol):
    """Receives a run's metrics. Any error that it raises is reported once (`guard`)."""

    def begin(self, *, folder: Path, project: str, name: str, id: str | None, settings: Mapping[str, Any]) -> str:
        """Open the run with this id, or a new one if it is None. Returns the id with which to open the run again."""
        ...

    def log(self, numbers: Mapping[str, float], step: int) -> None:
        """Log metrics by name; `step` is the number of problems seen."""
        ...

    def table(self, rows: Sequence[Sequence[str]], step: int) -> None:
        """Log solutions, one per row (`COLUMNS`). Treat the text as untrusted: a model wrote it."""
        ...

    def attach(self, path: Path) -> None:
        """Store a file with the run."""
        ...

    def end(self, *, failed: bool) -> None:
        """Send what is pending, and close the run."""
        ...


def make(name: str) -> Tracker:
    """A built-in tracker, or one from a file or an installed plug-in. Raises `ConfigError` if a method is missing."""
    if name in _BUILT_IN:
        return _BUILT_IN[name]()
    made = load_object(name, kind="tracker")()
    missing = [each for each in ("begin", "log", "table", "attach", "end") if not callable(getattr(made, each, None))]
    if missing:
        raise ConfigError(f"expected the tracker {name} to have the methods {', '.join(missing)}, found {made!r:.80}")
    return made


class Trackio:
    """trackio: writes to an SQLite file in TRACKIO_DIR, or to a Space. A run is identified by its `name`."""

    def begin(self, *, folder: Path, project: str, name: str, id: str | None, settings: Mapping[str, Any]) -> str:
        import trackio  # pyright: ignore[reportMissingImports]

        self._trackio = trackio
        called = name if id is None else id
        trackio.init(
            project=project, name=called, resume="never" if id is None else "allow", config=dict(settings),
            embed=False, auto_log_gpu=False, auto_log_cpu=False,
        )  # fmt: skip
        return called

    def log(self, numbers: Mapping[str, float], step: int) -> None:
        self._trackio.log(dict(numbers), step=step)

    def table(self, rows: Sequence[Sequence[str]], step: int) -> None:
        cells = [[as_code(cell) for cell in row] for row in rows]  # trackio renders cells as Markdown
        self._trackio.log({TABLE: self._trackio.Table(columns=[*COLUMNS], data=cells)}, step=step)

    def attach(self, path: Path) -> None:
        self._trackio.log_artifact(path, name=path.stem, type="report")

    def end(self, *, failed: bool) -> None:
        self._trackio.finish()


class Wandb:
    """wandb: with WANDB_MODE=offline it writes to the run folder."""

    def begin(self, *, folder: Path, project: str, name: str, id: str | None, settings: Mapping[str, Any]) -> str:
        import wandb  # pyright: ignore[reportMissingImports]

        self._wandb = wandb
        id = uuid.uuid4().hex[:12] if id is None else id
        self._run = wandb.init(
            project=project,
            name=name,
            id=id,
            resume="allow",
            dir=str(folder),
            config=dict(settings),
            reinit="create_new",
        )
        return id

    def log(self, numbers: Mapping[str, float], step: int) -> None:
        self._run.log(dict(numbers), step=step)

    def table(self, rows: Sequence[Sequence[str]], step: int) -> None:
        table = self._wandb.Table(columns=[*COLUMNS], data=[[*row] for row in rows])
        self._run.log({TABLE: table}, step=step)

    def attach(self, path: Path) -> None:
        self._run.save(str(path), base_path=str(path.parent), policy="now")

    def end(self, *, failed: bool) -> None:
        self._run.finish(exit_code=int(failed))


class TensorBoard:
    """TensorBoard: event files in <run>/tensorboard."""

    def begin(self, *, folder: Path, project: str, name: str, id: str | None, settings: Mapping[str, Any]) -> str:
        from torch.utils.tensorboard import SummaryWriter

        self._writer = SummaryWriter(log_dir=str(folder / "tensorboard"))
        if id is None:
            self._writer.add_text("settings", as_code("\n".join(f"{key}: {value}" for key, value in settings.items())))
        return str(folder)

    def log(self, numbers: Mapping[str, float], step: int) -> None:
        for name, value in numbers.items():
            self._writer.add_scalar(name, value, step)
        self._writer.flush()

    def table(self, rows: Sequence[Sequence[str]], step: int) -> None:
        shown = ("\n".join(f"{name}: {cell}" for name, cell in zip(COLUMNS, row, strict=True)) for row in rows)
        self._writer.add_text(TABLE, as_code("\n\n".join(shown)), step)

    def attach(self, path: Path) -> None:
        """Does nothing: TensorBoard stores no files, and they are in the run folder already."""

    def end(self, *, failed: bool) -> None:
        self._writer.close()


class MLflow:
    """mlflow: writes to MLFLOW_TRACKING_URI, or to mlflow's default if that is not set. A project is an experiment."""

    def begin(self, *, folder: Path, project: str, name: str, id: str | None, settings: Mapping[str, Any]) -> str:
        import mlflow  # pyright: ignore[reportMissingImports]
        from mlflow import entities  # pyright: ignore[reportMissingImports]

        self._entities, self._client = entities, mlflow.MlflowClient()
        if id is not None:
            self._client.update_run(id, status="RUNNING")
            self._id = id
            return id
        known = self._client.get_experiment_by_name(project)
        experiment = self._client.create_experiment(project) if known is None else known.experiment_id
        self._id = self._client.create_run(experiment, run_name=name).info.run_id
        # mlflow accepts a hundred parameters at once, and limits their length.
        params = [entities.Param(key, str(value)[:500]) for key, value in settings.items()]
        for at in range(0, len(params), 100):
            self._client.log_batch(self._id, params=params[at : at + 100])
        return self._id

    def log(self, numbers: Mapping[str, float], step: int) -> None:
        now = int(time.time() * 1000)
        metrics = [self._entities.Metric(name, value, now, step) for name, value in numbers.items()]
        self._client.log_batch(self._id, metrics=metrics)

    def table(self, rows: Sequence[Sequence[str]], step: int) -> None:
        columns: dict[str, Any] = {name: [row[at] for row in rows] for at, name in enumerate(COLUMNS)}
        self._client.log_table(self._id, columns, f"{TABLE}/{step:08d}.json")

    def attach(self, path: Path) -> None:
        self._client.log_artifact(self._id, str(path))

    def end(self, *, failed: bool) -> None:
        self._client.set_terminated(self._id, "FAILED" if failed else "FINISHED")


_BUILT_IN: dict[str, type[Any]] = {"trackio": Trackio, "wandb": Wandb, "tensorboard": TensorBoard, "mlflow": MLflow}


def as_code(text: str) -> str:
    """A text as an indented block of Markdown, in which nothing is markup and nothing can end the block."""
    return "\n".join(f"    {line}" for line in text.splitlines())
