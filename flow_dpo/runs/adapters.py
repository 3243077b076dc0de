"""Adapters of a run or a folder, loaded into the policy by role, and the settings that come with them.

    --run runs/train                    the run's newest adapters; its flow, model and data columns are the defaults
    --run me/name                       the same for a run that was pushed to the hub
    --run runs/train --roles [answer]   Answer's adapter alone; the other roles use the base model
    --run runs/a --role_runs '{stop: runs/b}'    Answer of one run, Stop of another
    --adapter runs/sft                  one adapter in PEFT's layout, for the Answer role

Invariant: a setting that the user gives overrides what a run or an adapter brings along.
"""

from __future__ import annotations

import logging
from dataclasses import fields, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, TypeVar

from flow_dpo.core.answer_stop import ANSWER, AnswerStop, RolePrompts
from flow_dpo.core.errors import ConfigError
from flow_dpo.core.flow import Flow
from flow_dpo.core.types import Adapter, Role
from flow_dpo.data.problems import CHOICE, DataSettings
from flow_dpo.data.strict_json import OBJECT, check
from flow_dpo.recipes.flow_dpo.attempts import Attempts, AttemptsPrompts
from flow_dpo.recipes.single import Single
from flow_dpo.runs import run_folder
from flow_dpo.runs.published import is_published, local_run, refuse_missing, without_machine
from flow_dpo.runs.records import read_metrics, rows_up_to
from flow_dpo.runs.resolve import Given, read_settings
from flow_dpo.runs.settings import SpeakingSettings
from flow_dpo.runs.starting_adapters import ADAPTER_CONFIG, adapter_shape

if TYPE_CHECKING:
    from flow_dpo.learner.policy import Policy

log = logging.getLogger("flow_dpo")

_METHOD_SETTINGS = (
    "recipe", "preset", "flow_source", "flow", "explore_source", "explore", "model", "lora", "grading", "engine_kind",
    "engine",
)  # fmt: skip
_DATA_SETTINGS = tuple(each.name for each in fields(DataSettings) if each.name not in CHOICE)


def source_settings(given: Given) -> tuple[dict[str, Any], str]:
    """The settings that come with the given run or adapter, and the file that they come from; empty if neither is
    given.

    Raises `ConfigError` if both are given, `DataError` if a folder is not what it should be.
    """
    run, adapter = given.text("speaking.run"), given.text("speaking.adapter")
    for name, value in (("run", run), ("adapter", adapter)):
        if not value and given.find(f"speaking.{name}")[0] is not None:  # such as from an unset shell variable
            raise ConfigError(f"expected a folder in --{name}, found none; leave it out for the model without adapters")
    if run and adapter:
        raise ConfigError(f"expected a run or an adapter, found both: {run} and {adapter}; leave one out")
    if adapter:
        beside = Path(adapter) / "config.yaml"
        return adapter_settings(Path(adapter)), str(beside if beside.exists() else Path(adapter) / ADAPTER_CONFIG)
    return (run_settings(local_run(run), of_hub=is_published(run)), f"{run}/config.yaml") if run else ({}, "")


def run_settings(run: Path, *, of_adapter: bool = False, of_hub: bool = False) -> dict[str, Any]:
    """Settings from a run's config.yaml, except those of its problems and its learning, with what it has calibrated.
    `of_adapter`: the file lies beside a fine-tuned adapter, whose log is not a run's, so nothing is calibrated. A run
    from the hub brings no engine along: a stranger's settings could have requests sent elsewhere."""
    refuse_missing(run)
    facts = run_folder.read_facts(run)  # refuses a run of another version, whose settings may have other names
    found = read_settings(run / "config.yaml")
    found = without_machine(found) if of_hub or "published" in facts else found
    kept = {name: found[name] for name in _METHOD_SETTINGS if name in found}
    if isinstance(kept.get("lora"), dict):  # the run's own adapters include what it began with
        kept["lora"] = {name: value for name, value in kept["lora"].items() if name not in ("init_from", "init_roles")}
    data = found.get("data", {})
    check({"data": data}, {"data": OBJECT}, str(run / "config.yaml"))
    flow = kept.get("flow")
    # A flow that was passed as an object is only named in the file: it must be passed again, and then counts as it is.
    for name, value in calibration(run).items() if isinstance(flow, dict) and not of_adapter else ():
        *parts, last = name.split(".")
        into: Any = flow
        for part in parts:
            into = into.setdefault(part, {})
            check({part: into}, {part: OBJECT}, str(run / "config.yaml"))
        into[last] = value
    return kept | {"data": {name: data[name] for name in _DATA_SETTINGS if data.get(name) is not None}}


def calibration(run: Path) -> dict[str, float]:
    """The flow settings that a run has calibrated, by name, as they were for the last batch that its newest saved
    adapters have learned from; an unfinished run may have sampled later batches. Empty for a run without adapters, and
    for a folder with a fine-tuned adapter, whose metrics are those of the fine-tuning."""
    path = run / "metrics.jsonl"
    if not path.exists() or (run / ADAPTER_CONFIG).exists() or not (run / "adapters").is_dir():
        return {}
    version = max(int(folder.name) for folder in run_folder.latest_adapters(run).values())
    rows = rows_up_to(read_metrics(path), version)
    last = rows[-1] if rows else {}
    return {name.removeprefix("flow/"): value for name, value in last.items() if name.startswith("flow/")}


def adapter_settings(folder: Path) -> dict[str, Any]:
    """The shape of an adapter, and the model, flow and data settings of the config.yaml beside it, if there is one."""
    shape = adapter_shape(folder)
    beside = run_settings(folder, of_adapter=True) if (folder / "config.yaml").exists() else {}
    return beside | {"lora": shape}


def load_adapters(policy: Policy, settings: SpeakingSettings) -> dict[Role, Adapter]:
    """Load the named adapters into the policy, and return them by role."""
    folders: dict[Role, Path] = {}
    if settings.run:
        latest = run_folder.latest_adapters(local_run(settings.run))
        folders = {role: path for role, path in latest.items() if not settings.roles or role in settings.roles}
        unknown = sorted(set(settings.roles) - set(latest))
        if unknown:
            raise ConfigError(
                f"expected roles that {settings.run} has adapters for ({', '.join(latest)}), found {', '.join(unknown)}"
            )
    elif settings.adapter:
        folders = {ANSWER: Path(settings.adapter)}
    folders |= _of_other_runs(policy, settings)
    for role, folder in folders.items():
        policy.load_adapter(role, folder)
    loaded = {role: Adapter(role=role, version=0, path=str(folder)) for role, folder in folders.items()}
    if untrained := [adapter.path for adapter in loaded.values() if not is_trained(adapter)]:
        log.warning("%s: no update was made, so this is the unchanged base model", " and ".join(untrained))
    return loaded


def _of_other_runs(policy: Policy, settings: SpeakingSettings) -> dict[Role, Path]:
    """The adapters of roles from other runs. Raises `ConfigError` for a run without one, or with another base."""
    found: dict[Role, Path] = {}
    base = _base_of(settings.run or settings.adapter)
    for role, run in settings.role_runs.items():
        latest = run_folder.latest_adapters(local_run(run))
        if role not in latest or role not in policy.roles:
            raise ConfigError(
                f"expected role_runs to name a role of the flow ({', '.join(policy.roles)}) for which {run} has an "
                f"adapter ({', '.join(latest)}), found {role!r}"
            )
        if base and _base_of(run) != base:
            raise ConfigError(f"expected a run with the base {base} for {role}, found {_base_of(run)} in {run}")
        found[role] = latest[role]
    return found


def _base_of(folder: str | None) -> str:
    """The model that a run's or an adapter's settings name; "" if there are none."""
    path = None if folder is None else local_run(folder) / "config.yaml"
    model = read_settings(path).get("model") if path is not None and path.exists() else None
    return str(model.get("model_name_or_path", "")) if isinstance(model, dict) else ""


def is_trained(adapter: Adapter) -> bool:
    """Whether a loaded adapter has learned something: those of a run's version 0 have not."""
    path = Path(adapter.path)
    return not (path.name == "0" and path.parent.name == adapter.role and path.parent.parent.name == "adapters")


def one_pass(flow: Flow[Any]) -> Single:
    """A flow of one pass of Answer, with this flow's prompts and the token limit of one of its attempts.

    Raises `ConfigError` for a flow that has no such pass.
    """
    if isinstance(flow, Single):
        return flow
    if isinstance(flow, AnswerStop | Attempts):
        return Single(max_tokens=flow.chunk_tokens * flow.max_chunks, prompts=_prompts(flow.prompts, RolePrompts))
    raise ConfigError(f"--mode single needs a flow with an Answer role, found {type(flow).__name__}")


def has_one_pass(flow: Flow[Any]) -> bool:
    """Whether `one_pass` accepts this flow."""
    return isinstance(flow, Single | AnswerStop | Attempts)


def one_attempt(flow: Flow[Any]) -> Attempts:
    """A flow of one attempt of Answer, which Stop judges when it has ended; Stop's choice is scored and ends the flow.

    Chunk length, cap and prompts are this flow's. Yes is chosen as in this flow: above its threshold, or drawn if it
    has none, as in the paper. Raises `ConfigError` for a flow that has no such attempt.
    """
    if isinstance(flow, Attempts):
        return replace(flow, max_attempts=1)
    if isinstance(flow, AnswerStop):
        prompts = _prompts(flow.prompts, AttemptsPrompts)
        return Attempts(
            chunk_tokens=flow.chunk_tokens, max_chunks=flow.max_chunks, max_attempts=1, threshold=None, prompts=prompts
        )
    raise ConfigError(
        f"expected a flow in which Stop judges attempts of Answer (AnswerStop, Attempts), found "
        f"{type(flow).__name__}; evaluate it without --draws and --candidates"
    )


P = TypeVar("P", bound=RolePrompts)


def _prompts(prompts: RolePrompts, kind: type[P]) -> P:
    """The prompts as another flow's kind of prompts: shared fields are copied, the others keep their defaults."""
    if type(prompts) is kind:
        return prompts
    known = {field.name for field in fields(kind)}
    return kind(**{each.name: getattr(prompts, each.name) for each in fields(prompts) if each.name in known})


def trace_pass(flow: Flow[Any]) -> Single:
    """The single pass whose chat a flow's traces are written for; a plain pass if the flow has none."""
    return one_pass(flow) if has_one_pass(flow) else Single(max_tokens=getattr(flow, "max_tokens", Single().max_tokens))


def sampled_flow(flow: Flow[Any], mode: Literal["flow", "single", "ground_truth"]) -> Flow[Any]:
    """The flow itself, or one pass of its Answer role, whose prompt a data set's own solutions answer, too."""
    return flow if mode == "flow" else one_pass(flow)
