"""Comparison of a resumed run with what it was, and the checks that come before any folder is touched.

    compare(path, settings, given, facts)     {"data.max_problems": [20, 28]} if --allow names it, else an error

Invariant: whatever could make a resumed run a different one (settings, code, versions, device, data) is compared at
once, and a difference is refused by name unless the user allows it by name.
"""

from __future__ import annotations

import difflib
import logging
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import fields, replace
from pathlib import Path
from typing import Any

from flow_dpo.core.answer_stop import AnswerStop
from flow_dpo.core.credit import OutcomePairs
from flow_dpo.core.errors import ConfigError, DataError
from flow_dpo.core.types import Problem
from flow_dpo.models.load import load_renderer
from flow_dpo.models.prompt_preview import first_difference, prompt_facts
from flow_dpo.recipes.state_values import refuse_without_siblings
from flow_dpo.runs import run_folder
from flow_dpo.runs.given_objects import GivenObjects
from flow_dpo.runs.resolve import read_settings, refuse_unknown
from flow_dpo.runs.settings import OWN_PARTS, TrainSettings
from flow_dpo.runs.writable import check_writable
from flow_dpo.trackers import settings as trackers
from flow_dpo.trackers.settings import TrackingSettings
from flow_dpo.workers.settings import TIMING_ONLY, with_shards_in_force

_logger = logging.getLogger(__name__)
_OF_RUN = ("output_dir", "resume", "allow", "reuse_sampled", "save_updates", "checkpoint_batches")
_RUN_ONLY = {"run.tracking", *(f"run.tracking.{each.name}" for each in fields(TrackingSettings))}
_RUN_ONLY |= {f"run.{name}" for name in _OF_RUN} | TIMING_ONLY
_RUN_ONLY |= {"learner.rows.shard_base", "learner.max_logprob_drift"}
"""Settings that change no result."""
_FACTS = ("code", "recipe_file", "flow_file", "reward_files", "plugins", "versions", "device", "dtype",
          "data_fingerprint", "given", "starting_adapters")  # fmt: skip
"""What a result depends on besides the settings, as run.json names it."""
_OTHER_CAUSES = (*(name.removesuffix("_fingerprint") for name in _FACTS), "prompts")
_CHECKSUM = re.compile("[0-9a-f]{64}")


def check(settings: TrainSettings, given: GivenObjects, path: Path) -> None:
    """Raise `ConfigError` for whatever can be refused before the folder is touched."""
    for callback in given.callbacks:
        if not callable(getattr(callback, "on_batch", None)):
            raise ConfigError(f"expected callbacks with on_batch(row, trees, examples), found {callback!r:.80}")
    trackers.check(settings.run.tracking)
    refuse_unknown(_allowed(settings), settings.sections(), _OTHER_CAUSES, flag="--allow")
    flow, credit = settings.recipe.flow, settings.recipe.credit
    _refuse_strange("learner.roles", settings.learner.roles, flow.roles, "roles")
    for name in ("roles", "sft_roles", "pair_roles"):
        _refuse_strange(f"credit.{name}", getattr(credit, name, ()), flow.roles, "roles")
    for part in ("explore", "credit"):
        by = getattr(getattr(settings.recipe, part), "valued_by", "")
        _refuse_strange(f"{part}.valued_by", (by,) if by else (), flow.roles, "roles")
    if isinstance(flow, AnswerStop):  # the tags of other flows are not known
        _refuse_strange("credit.tag_weights", getattr(credit, "tag_weights", {}), ("finished", "unfinished"), "tags")
    pairs = getattr(credit, "pairs", None)  # a credit within a credit
    _refuse_strange("credit.pairs.roles", getattr(pairs, "roles", ()), flow.roles, "roles")
    if isinstance(flow, AnswerStop):
        _refuse_strange(
            "credit.pairs.tag_weights", getattr(pairs, "tag_weights", {}), ("finished", "unfinished"), "tags"
        )
    if refuse := getattr(credit, "refuse", None):
        refuse(settings.recipe, settings.run.problems_per_batch)
    if isinstance(credit, OutcomePairs):
        refuse_without_siblings(settings.recipe)
    if settings.run.resume:
        run_folder.refuse_unbegun(path)
    else:
        check_writable(path)
        run_folder.refuse_used(path, resumes=True)


def _refuse_strange(setting: str, names: Iterable[str], known: Sequence[str], what: str) -> None:
    """Raise `ConfigError` if a setting names something that the flow does not have: it would be silently ignored."""
    for name in names:
        if name not in known:
            near = difflib.get_close_matches(name, known, n=1, cutoff=0.5)
            raise ConfigError(
                f"expected {what} of the flow ({', '.join(known)}) in {setting}, found {name!r}"
                f"{f'; did you mean {near[0]}?' if near else ''}"
            )


def at_its_date(settings: TrainSettings, path: Path) -> TrainSettings:
    """The settings with the time at which the run at `path` began, for a chat template that asks for the time."""
    if not settings.run.resume or settings.runtime.model.template_date or not (path / "config.yaml").exists():
        return settings
    model = read_settings(path / "config.yaml").get("model")
    return dated(settings, str(model.get("template_date") or "") if isinstance(model, dict) else "")


def dated(settings: TrainSettings, date: str) -> TrainSettings:
    """The settings with this time for a chat template that asks for the time."""
    model = replace(settings.runtime.model, template_date=date)
    return replace(settings, runtime=replace(settings.runtime, model=model))


def compare(
    path: Path, settings: TrainSettings, given: GivenObjects, facts: Mapping[str, Any], problems: Sequence[Problem]
) -> dict[str, Any]:
    """The allowed differences from the run at `path`. Raises `ConfigError` for any other difference, and `DataError`
    if config.yaml is incomplete."""
    now = given.sections(settings)
    later = {name: "" for name in OWN_PARTS if name in now}
    then = {"engine_kind": "local", "workers": {}} | later | read_settings(path / "config.yaml")
    if missing := [name for name in now if name not in then]:
        raise DataError(
            f"expected {', '.join(missing)} among the settings in {path / 'config.yaml'}, found none: the file is "
            "incomplete; restore it, or start a new run in another folder"
        )
    then, now = (with_shards_in_force(sections) for sections in (then, now))
    found = {name: values for name, values in run_folder.differences(then, now).items() if name not in _RUN_ONLY}
    before, present = run_folder.read_facts(path), {**run_folder.environment(), **facts}
    if not before:
        _logger.warning("%s is missing: code, versions, device and data are not compared", path / "run.json")
    for name in _FACTS if before else ():
        # A run that ended while it loaded has not recorded its device, precision and data yet.
        if before.get(name) != present.get(name) and (
            name in before or name not in ("device", "dtype", "data_fingerprint")
        ):
            found[name.removesuffix("_fingerprint")] = (before.get(name), present.get(name))
    if before.get("dtype") == present.get("dtype"):  # "auto" and the precision that it stands for are equal
        found.pop("model.dtype", None)
    # Prompts can still differ for the same problems and settings: a chat template can read what no setting holds.
    if before.get("prompts") and not any(name.startswith(("data", "model.", "flow", "recipe")) for name in found):
        _, renderer = load_renderer(settings.runtime.model)
        prompts = prompt_facts(settings.recipe.flow, renderer, problems)
        if prompts != before["prompts"]:
            found["prompts"] = first_difference(before["prompts"], prompts)
    allowed = _allowed(settings)
    refused = {name: values for name, values in found.items() if name not in allowed}
    if refused:
        lines = "".join(f"\n  {name}: {_shown(old, new)}" for name, (old, new) in refused.items())
        names = ",".join([*allowed, *refused])
        raise ConfigError(
            f"{path} was started with other settings; to continue all the same, add "
            f"--allow {names}{lines}\n  (from Python: settings={{'run.allow': '{names}'}})"
        )
    return {name: list(values) for name, values in found.items()}


def _shown(old: Any, new: Any) -> str:
    """How two values differ, in short: for mappings only the entries that do, for checksums only the beginning."""
    if isinstance(old, Mapping) and isinstance(new, Mapping):
        parts = run_folder.differences(old, new)
        return "; ".join(f"{name} {_shown(*values)}" for name, values in parts.items())
    short = (value[:12] if isinstance(value, str) and _CHECKSUM.fullmatch(value) else value for value in (old, new))
    return "{} then, {} now".format(*short)


def _allowed(settings: TrainSettings) -> list[str]:
    """The names in `--allow`, each once."""
    return list(dict.fromkeys(name.strip() for name in settings.run.allow.split(",") if name.strip()))
