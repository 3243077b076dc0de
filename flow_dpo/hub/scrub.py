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

from flow_dpo.plugins.load import is_source
from flow_dpo.runs.adapters import calibration

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
_PATH = re.compile(r"(/|~|\.{1,2}[/\\]|[A-Za-z]:[/\\]|\\\\).*", re.DOTALL)
_FILE = re.compile(
    r".*[/\\].*\.(jsonl?|csv|tsv|txt|md|parquet|arrow|ya?ml|py|ipynb|jinja2?|safetensors|bin|gguf|pt|pth|gz|zst|zip|tar)",
    re.DOTALL | re.IGNORECASE,
)
"""A file in a folder, "data/x.jsonl", wherever one stands: no model and no data set of the hub is called so."""
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
    named = Path(str(settings.get("output_dir") or "")) if isinstance(settings, Mapping) else Path()
    folder = run.resolve()
    if named.is_absolute() or not named.parts or folder.parts[-len(named.parts) :] != named.parts:
        return Path()
    return Path(*folder.parts[: -len(named.parts)])


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
            last_part(value)
            if _FOLDERS.fullmatch(value) or (_PATH.fullmatch(value) and _exists(value, root))
            else value
        )
    return "" if _ADDRESS.fullmatch(value) else last_part(value) if is_local(value, root) else value


def scrubbed_dataset(value: str, root: Path = Path()) -> str:
    """A data set with its split as it may leave this machine: "openai/gsm8k/test", "x.jsonl/train"."""
    name, slash, split = value.rpartition("/")
    return f"{scrubbed(name, root=root)}{slash}{split}"


def is_local(value: str, root: Path = Path()) -> bool:
    """Whether a setting is a path of this machine, or code in a file of it: absolute, from here or home, a file in a
    folder, or one of several parts at which there is something, here or from `root`."""
    place = value.rpartition(":")[0] if is_source(value) else value
    if _PATH.fullmatch(value) or _FILE.fullmatch(value) or (place is not value and place.endswith(".py")):
        return True
    return ("/" in value or "\\" in value) and (value.count("/") > 1 or _exists(value, root))


def last_part(value: str) -> str:
    """A path's last part: "flows.py:Mine" of "/home/me/flows.py:Mine"."""
    return re.split(r"[/\\]", value.rstrip("/\\"))[-1] or value


def _exists(value: str, root: Path) -> bool:
    try:
        place = Path(value).expanduser()
        return place.exists() or (root / place).exists()
    except (OSError, ValueError, RuntimeError):  # too long, a null byte, no home
        return False
