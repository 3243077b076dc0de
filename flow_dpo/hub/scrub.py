"""Settings and facts of a run as they may leave this machine: no path, no address, no command line, no prompt's text.

    published_config({"model": {"model_name_or_path": "/home/me/llama"}, "run": {"output_dir": "runs/x", "seed": 0}})
    -> {"model": {"model_name_or_path": "llama"}, "run": {"seed": 0}}

Invariant: sections and facts travel only where they are listed here, so that what a later version adds stays at home
until somebody decides. A path is cut to its last part, which still says which file it was.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from flow_dpo.runs import local_names
from flow_dpo.runs.adapters import calibration
from flow_dpo.runs.local_names import PATH, exists, is_local, last_part

_SECTIONS = (
    "recipe", "preset", "flow_source", "flow", "explore_source", "explore", "credit", "objective", "model", "lora",
    "data", "grading", "learner", "run",
)  # fmt: skip
_NOT_OF_RUN = ("output_dir", "resume", "reuse_sampled", "allow", "tracking")
_NOT_OF_LORA = ("init_from", "init_roles")
"""Where the adapters began: they hold all of it."""
_FACTS = (
    "versions", "python", "commit", "code", "recipe_file", "flow_file", "model", "device", "dtype", "adapter_share",
    "num_problems", "num_skipped_rows", "data_fingerprint", "given",
)  # fmt: skip
_TEXTS = ("flow", "chat_template", "template_kwargs", "question_template", "stop_strings", "end_tokens")
"""Names under which texts stand that may begin with a slash ("/no_think") and are no paths."""
_FOLDERS = re.compile(r"(/|~/|[A-Za-z]:[/\\])[^\s/\\]+[/\\]\S*")
"""What is a path even there: one word, absolute, of several parts."""
_ADDRESS = re.compile(r"[a-z][a-z0-9+.-]*://\S+", re.IGNORECASE)


def published_config(config: Mapping[str, Any], run: Path, *, base_model: str = "") -> dict[str, Any]:
    """The content of config.yaml as it is pushed, with what the run has calibrated in place of what it began with."""
    kept, root = {name: config[name] for name in _SECTIONS if name in config}, begun_in(run, config)
    for group, left_out in (("run", _NOT_OF_RUN), ("lora", _NOT_OF_LORA)):
        kept[group] = {name: value for name, value in dict(kept.get(group) or {}).items() if name not in left_out}
    found = {name: scrubbed(value, name, root=root) for name, value in kept.items()}
    flow = found.get("flow")
    for name, value in calibration(run).items() if isinstance(flow, dict) else ():
        *parts, last = name.split(".")
        into: Any = flow
        for part in parts:
            into = into.setdefault(part, {})
        into[last] = value
    found["model"] = {**dict(found.get("model") or {}), "device": "auto", "num_threads": 0}
    if base_model:
        found["model"]["model_name_or_path"] = base_model
    return found


def published_facts(facts: Mapping[str, Any], *, base_model: str) -> dict[str, Any]:
    """The content of run.json as it is pushed: versions, model and data's fingerprint; no command, no prompts."""
    return {name: scrubbed(facts[name], name) for name in _FACTS if name in facts} | {"model": base_model}


def begun_in(run: Path, config: Mapping[str, Any]) -> Path:
    """The folder that a run's relative paths begin at, as its own does: it may be pushed from another one."""
    settings = config.get("run")
    return local_names.begun_in(run, settings.get("output_dir") if isinstance(settings, Mapping) else None)


def scrubbed(value: Any, name: str = "", *, text: bool = False, root: Path = Path()) -> Any:
    """Nested settings with every path, in names too, cut to its last part, and every address left out. Relative paths
    are looked up here and from `root`."""
    text = text or name in _TEXTS
    if isinstance(value, Mapping):
        return {
            scrubbed(str(key), text=text, root=root): scrubbed(item, str(key), text=text, root=root)
            for key, item in value.items()
        }
    if isinstance(value, list | tuple):
        return [scrubbed(item, text=text, root=root) for item in value]
    if not isinstance(value, str):
        return value
    if text:
        return (
            last_part(value) if _FOLDERS.fullmatch(value) or (PATH.fullmatch(value) and exists(value, root)) else value
        )
    return "" if _ADDRESS.fullmatch(value) else last_part(value) if is_local(value, root) else value


def scrubbed_dataset(value: str, root: Path = Path()) -> str:
    """A data set with its split as it may leave this machine: "openai/gsm8k/test", "x.jsonl/train"."""
    name, slash, split = value.rpartition("/")
    return f"{scrubbed(name, root=root)}{slash}{split}"
