"""What does each command do?

Every function takes the words behind its command, and composes what `build` makes: settings first, then work, then
what a person wants to know at the end.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from rich.console import Console

from flow_dpo.runs import resolve, run_folder, training
from flow_dpo.runs.settings import RunSettings, TrainSettings, defaults_of, of_its_engine


def train(argv: Sequence[str]) -> int:
    """`flow-dpo train`."""
    settings = parse_train("flow-dpo train", argv, {})
    training.run(settings, Console())
    return 0


def quickstart(argv: Sequence[str]) -> int:
    """`flow-dpo quickstart`: training on the embedded seed with fewer problems, in a folder that is free."""
    given = parse_train("flow-dpo quickstart", argv, {"max_problems": _QUICKSTART_PROBLEMS})
    if given.run.output_dir == RunSettings().output_dir:
        given = replace(given, run=replace(given.run, output_dir=_free_folder("runs/quickstart")))
    training.run(given, Console())
    return 0


_QUICKSTART_PROBLEMS = 512


def parse_train(prog: str, argv: Sequence[str], overrides: dict[str, Any]) -> TrainSettings:
    """The settings of a training command, the preset's and the command's own defaults first.

    With `--resume` the settings of the run that is resumed come before the flags.
    """
    folder = Path(resolve.peek(argv, "run.output_dir", RunSettings().output_dir))
    base, origin = _settings_to_resume(argv, folder), str(folder / "config.yaml")
    argv, defaults = defaults_of(argv, base, origin=origin, trusted=True)  # one's own run goes on
    base = of_its_engine(base, defaults)
    if "max_problems" in overrides:
        data = replace(defaults.runtime.data, max_problems=overrides["max_problems"])
        defaults = replace(defaults, runtime=replace(defaults.runtime, data=data))
    what = "Learn from a stream of problems by Flow-DPO (arXiv 2410.22304)."
    parsed = resolve.parse(prog, what, defaults.sections(), argv, base=base, origin=origin)
    return TrainSettings.from_sections(parsed)


def _settings_to_resume(argv: Sequence[str], folder: Path) -> dict[str, Any]:
    """What config.yaml of the run to be resumed says; nothing where none is."""
    wanted = any(word in ("--resume", "--run.resume") or word.endswith("resume=true") for word in argv)
    if not wanted or not (folder / "config.yaml").exists():
        return {}
    run_folder.read_facts(folder)  # refuses a run of another version, whose settings may have other names
    return resolve.read_settings(folder / "config.yaml")


def _free_folder(name: str) -> str:
    """`name`, or the first of `name`-2, `name`-3, ... that holds no run."""
    free, number = name, 1
    while (Path(free) / "config.yaml").exists():
        number += 1
        free = f"{name}-{number}"
    return free
