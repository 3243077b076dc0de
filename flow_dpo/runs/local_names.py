"""Whether a name in settings is a path of this machine or one that means the same elsewhere, and a path's last part.

    is_local("/home/me/models/qwen"), is_local("data/x.jsonl")     True
    is_local("Qwen/Qwen2.5-0.5B-Instruct")                         False, unless such a folder is here
    last_part("/home/me/flows.py:Mine")                            "flows.py:Mine"

Invariant: what leaves this machine (`hub.scrub`, `report.viewer.export`) asks here: one rule tells the two apart.
"""

from __future__ import annotations

import re
from pathlib import Path

from flow_dpo.plugins.load import is_source

PATH = re.compile(r"(/|~|\.{1,2}[/\\]|[A-Za-z]:[/\\]|\\\\).*", re.DOTALL)
"""A path from the root, from home or from here."""
_FILE = re.compile(
    r".*[/\\].*\.(jsonl?|csv|tsv|txt|md|parquet|arrow|ya?ml|py|ipynb|jinja2?|safetensors|bin|gguf|pt|pth|gz|zst|zip|tar)",
    re.DOTALL | re.IGNORECASE,
)
"""A file in a folder, "data/x.jsonl", wherever one stands: no model and no data set of the hub is called so."""


def is_local(value: str, *roots: Path) -> bool:
    """Whether a setting is a path of this machine, or code in a file of it: absolute, from here or home, a file in a
    folder, or one of several parts at which there is something, here or from one of `roots`."""
    place = value.rpartition(":")[0] if is_source(value) else value
    if PATH.fullmatch(value) or _FILE.fullmatch(value) or (place is not value and place.endswith(".py")):
        return True
    return ("/" in value or "\\" in value) and (value.count("/") > 1 or exists(value, *roots))


def last_part(value: str) -> str:
    """A path's last part: "flows.py:Mine" of "/home/me/flows.py:Mine"."""
    return re.split(r"[/\\]", value.rstrip("/\\"))[-1] or value


def begun_in(folder: Path, output_dir: object) -> Path:
    """The folder that a command's relative paths begin at, by where its own folder is and the name it gave that: it may
    be read from another one. The present one where that cannot be told."""
    named = Path(output_dir) if isinstance(output_dir, str) else Path()
    place = folder.resolve()
    if named.is_absolute() or not named.parts or place.parts[-len(named.parts) :] != named.parts:
        return Path()
    return Path(*place.parts[: -len(named.parts)])


def exists(value: str, *roots: Path) -> bool:
    """Whether there is something at a path, from here or from one of `roots`; of what can be no path there is not."""
    try:
        place = Path(value).expanduser()
        return place.exists() or any((root / place).exists() for root in roots)
    except (OSError, ValueError, RuntimeError):  # too long, a null byte, no home
        return False
