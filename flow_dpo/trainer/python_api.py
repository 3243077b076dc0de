"""`flow_dpo.train`: a training run from Python, with names, settings and objects as arguments.

    result = train("seed", max_problems=64, output_dir="runs/seed", callbacks=[my_callback])

Invariant: the same settings give the same run folder, to the byte, as `flow-dpo train` with the same flags.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from rich.console import Console

from flow_dpo.core.flow import Flow
from flow_dpo.core.protocols import Callback
from flow_dpo.core.recipe import Recipe
from flow_dpo.engines.settings import EngineSettings
from flow_dpo.ranks import environment
from flow_dpo.runs import following, run_folder, training
from flow_dpo.runs.given_objects import OBJECT, GivenObjects, Rows, Watcher, grader_of, problem_set, train_settings
from flow_dpo.runs.runtime import EngineOpener, GraderSource
from flow_dpo.runs.training import TrainResult
from flow_dpo.workers.grading import grades_by_rewards


def train(
    model: str | None = None,
    dataset: Rows | None = None,
    *,
    recipe: str | Recipe | None = None,
    preset: str | None = None,
    output_dir: str | Path = "runs/train",
    flow: Flow[Any] | None = None,
    callbacks: Sequence[Callback] = (),
    watchers: Sequence[Watcher] = (),
    grader: GraderSource | None = None,
    reward_funcs: Any = None,
    reward_weights: Sequence[float] | None = None,
    engine: str | EngineSettings | EngineOpener | None = None,
    max_problems: int | None = None,
    report_to: str | Sequence[str] | None = None,
    resume: bool = False,
    quiet: bool = False,
    settings: Mapping[str, Any] | None = None,
    **more: Any,
) -> TrainResult:
    """Train a model's adapters on a stream of problems, as `flow-dpo train` does, into the same run folder.

    `model` and `dataset` are folders, hub ids or "seed" (the default of both); `dataset` can also be problems, or rows
    with columns (a list of mappings, a `datasets.Dataset`). `recipe` ("flow-dpo" by default) and `engine` are names or
    objects. `flow`, `callbacks` and `grader` (or its class, which is called with the renderer) are objects that are
    used as they are. `watchers` make callbacks from the runtime, once it is open. `reward_funcs`, one reward
    function as in TRL or several with `reward_weights`, grade in place of the verifier (`verify.rewards`). `report_to`
    names trackers (docs/trackers.md). `settings` holds any other setting by its name on the command line, such as
    {"learner.learning_rate": 1e-3}; a short name can be a keyword: `train(beta=0.5)`. `resume` continues the run in
    `output_dir` with its settings; those given here that differ are refused by name. Under torchrun all processes but
    rank 0 follow rank 0 and end here.
    """
    follow_rank_0()
    path = Path(output_dir)
    if resume and max_problems is None and dataset is not None:
        max_problems = (run_folder.resumed_settings(path).get("data") or {}).get("max_problems")
    by_name = dataset is None or isinstance(dataset, str)
    given = GivenObjects(
        callbacks=callbacks, watchers=watchers, grader=grader_of(grader, reward_funcs, reward_weights), engine=engine,
        recipe=recipe if isinstance(recipe, Recipe) else None, flow=flow, report=_page,
    )  # fmt: skip
    values = {
        "model.model_name_or_path": model,
        "data.dataset_name": dataset if by_name else OBJECT,
        "data.max_problems": max_problems,
        "run.tracking.report_to": ",".join(report_to) if isinstance(report_to, (list, tuple)) else report_to,
        "preset": preset,
        "run.output_dir": str(output_dir),
        "run.resume": resume,
        **(settings or {}),
        **more,
    }
    named = recipe if isinstance(recipe, str) else None
    resolved = train_settings(values, given, recipe=named, resumed=path if resume else None)
    columns = grades_by_rewards(resolved.runtime.grading, given.grader)
    given = replace(given, problems=problem_set(dataset, resolved.runtime.data, columns=columns))
    return training.run(resolved, Console(quiet=quiet, force_jupyter=False), given)


def _page(path: Path) -> list[Path]:
    """Write the report on the run, for trackers. Imported only when needed."""
    from flow_dpo.report.page_of_run import page_of_run

    return page_of_run(path)


def follow_rank_0() -> None:
    """If this process is a rank other than 0, do its share of rank 0's run, then raise `SystemExit`."""
    if environment.place().follows:
        following.follow()
        raise SystemExit(0)  # only rank 0 has a result, so only it runs the rest of the script
