"""What a run's settings and facts look like when published: no paths, addresses, command lines or prompt texts.

    published_config({"model": {"model_name_or_path": "/home/me/llama"}, "run": {"output_dir": "runs/x", "seed": 0}})
    -> {"model": {"model_name_or_path": "llama"}, "run": {"seed": 0}}

Invariant: only the sections and facts listed here are published, so a field added in a later version stays local until
somebody decides otherwise. A path is cut to its last part, which still says which file it was.
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
"""What the adapters started from: their weights already contain it."""
_FACTS = (
    "versions", "python", "commit", "code", "recipe_file", "flow_file", "model", "device", "dtype", "adapter_share",
    "num_problems", "num_skipped_rows", "data_fingerprint", "given",
)  # fmt: skip
_TEXTS = ("flow", "chat_template", "template_kwargs", "question_template", "stop_strings", "end_tokens")
"""Names of settings whose texts can begin with a slash ("/no_think") without being paths."""
_FOLDERS = re.compile(r"(/|~/|[A-Za-z]:[/\\])[^\s/\\]+[/\\]\S*")
"""What is a path even there: one word, absolute, with several parts."""
_ADDRESS = re.compile(r"[a-z][a-z0-9+.-]*://\S+", re.IGNORECASE)


def published_config(config: Mapping[str, Any], run: Path, *, base_model: str = "") -> dict[str, Any]:
    """config.yaml as it is pushed, with the values that the run calibrated in place of the initial ones."""
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
    """run.json as it is pushed: versions, model and data fingerprint; no command and no prompts."""
    return {name: scrubbed(facts[name], name) for name in _FACTS if name in facts} | {"model": base_model}


def begun_in(run: Path, config: Mapping[str, Any]) -> Path:
    """The folder that a run's relative paths start from; it can be pushed from another one."""
    settings = config.get("run")
    return local_names.begun_in(run, settings.get("output_dir") if isinstance(settings, Mapping) else None)


def scrubbed(value: Any, name: str = "", *, text: bool = False, root: Path = Path()) -> Any:
    """Nested settings with every path, also in names, cut to its last part, and every address removed. Relative paths
    are looked up here and in `root`."""
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
    """A data set with its split, as it is published: "openai/gsm8k/test", "x.jsonl/train"."""
    name, slash, split = value.rpartition("/")
    return f"{scrubbed(name, root=root)}{slash}{split}"
