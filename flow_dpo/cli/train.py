"""`flow-dpo train` and `flow-dpo quickstart`: learn from a stream of problems.

flow-dpo train --model_name_or_path Qwen/Qwen2.5-0.5B-Instruct --dataset_name openai/gsm8k --dataset_config main
flow-dpo quickstart                             the embedded seed, fewer problems, in a new folder
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from rich.console import Console

from flow_dpo.cli.loading import loading
from flow_dpo.evaluate.while_training import WhileTrainingSettings
from flow_dpo.ranks import environment
from flow_dpo.ranks.environment import usable_processors
from flow_dpo.runs import run_folder
from flow_dpo.runs.resolve import Given, Sections, resolve
from flow_dpo.runs.settings import RunSettings, TrainSettings, named_settings
from flow_dpo.workers.fork_server import warm_up
from flow_dpo.workers.settings import WorkersSettings

_QUICKSTART_PROBLEMS = 512
_QUICKSTART_WORKERS = WorkersSettings(kind="processes", num=2, shard=16)
_QUICKSTART = "runs/quickstart"
"""The folder of a quickstart run, or the first free one of "runs/quickstart-2", ..."""


def train(argv: Sequence[str]) -> int:
    """`flow-dpo train`."""
    return _run(*_parse("flow-dpo train", argv, {}))


def quickstart(argv: Sequence[str]) -> int:
    """`flow-dpo quickstart`."""
    data = {"max_problems": _QUICKSTART_PROBLEMS}
    given, watching = _parse("flow-dpo quickstart", argv, data, output_dir=_QUICKSTART, workers=_workers_of_quickstart)
    if given.run.output_dir == _QUICKSTART and not given.run.resume:
        given = replace(given, run=replace(given.run, output_dir=run_folder.free_folder(_QUICKSTART, "config.yaml")))
    return _run(given, watching)


def _workers_of_quickstart(engine_kind: str, device: str) -> WorkersSettings:
    """Two worker processes if the local engine samples on CPU and there are at least two processors; otherwise this
    process, in shards of the same size."""
    on_processors = engine_kind == "local" and (device == "cpu" or (device == "auto" and not _has_gpu()))
    several = on_processors and environment.place().num == 1 and usable_processors() >= _QUICKSTART_WORKERS.num
    return _QUICKSTART_WORKERS if several else replace(_QUICKSTART_WORKERS, kind="here", num=1)


def _has_gpu() -> bool:
    """Whether the system can have an accelerator for torch, checked without importing torch."""
    devices = Path("/dev")
    return (
        sys.platform != "linux"
        or any(devices.glob("nvidia[0-9]*"))
        or any((devices / name).exists() for name in ("kfd", "dxg"))
    )


def _run(settings: TrainSettings, watching: WhileTrainingSettings) -> int:
    if settings.runtime.workers.kind == "processes":
        warm_up()  # worker processes import their libraries while this one imports its own
    with loading():
        from flow_dpo.evaluate.during import watchers  # loads torch, once the arguments are parsed
        from flow_dpo.report.page_of_run import page_of_run
        from flow_dpo.runs import training
        from flow_dpo.runs.given_objects import GivenObjects

    made = watchers(settings.runtime.data, watching, settings.runtime.grading)
    training.run(settings, Console(), GivenObjects(watchers=made, report=page_of_run))
    return 0


def parse_train(
    prog: str, argv: Sequence[str], data: Mapping[str, Any], *, output_dir: str = RunSettings.output_dir
) -> TrainSettings:
    """The settings of a training command. `data` and `output_dir` are its own defaults for the data and the folder.

    With `--resume` the resumed run's settings are the defaults, and flags override them. The run is the user's own, so
    its code is trusted.
    """
    return _parse(prog, argv, data, output_dir=output_dir)[0]


def _parse(
    prog: str,
    argv: Sequence[str],
    data: Mapping[str, Any],
    *,
    output_dir: str = RunSettings.output_dir,
    workers: Callable[[str, str], WorkersSettings] | None = None,
) -> tuple[TrainSettings, WhileTrainingSettings]:
    def sections(given: Given) -> Sections:
        found = named_settings(given).sections()
        own = {"data": replace(found["data"], **data), "run": replace(found["run"], output_dir=output_dir)}
        own |= {} if workers is None else {"workers": workers(found["engine_kind"], given.text("model.device", "auto"))}
        return found | own | {"while_training": WhileTrainingSettings()}

    def resumed(given: Given) -> tuple[dict[str, Any], str]:
        """The settings in the config.yaml of the run to resume, with its path; empty without `--resume`."""
        if str(given.find("run.resume")[0]).lower() != "true":
            return {}, ""
        folder = Path(given.text("run.output_dir", output_dir))
        found = run_folder.resumed_settings(folder)
        run_folder.refuse_other_recipe(folder, found.get("recipe"), given.find("recipe")[0], given.find("run.allow")[0])
        return found, str(folder / "config.yaml")

    what = "Learn from a stream of problems by Flow-DPO (arXiv 2410.22304)."
    parsed = resolve(prog, what, argv, sections, brings=resumed, trusted=True, doc=__doc__ or "")
    return TrainSettings.from_sections(parsed), parsed["while_training"]
