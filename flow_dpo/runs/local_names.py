"""Whether a name in settings is a path on this machine or means the same elsewhere, and the last part of a path.

    is_local("/home/me/models/qwen"), is_local("data/x.jsonl")     True
    is_local("Qwen/Qwen2.5-0.5B-Instruct")                         False, unless that folder exists here
    last_part("/home/me/flows.py:Mine")                            "flows.py:Mine"

Invariant: whatever leaves this machine (`hub.scrub`, `report.viewer.export`) uses this one rule to tell the two apart.
"""

from __future__ import annotations

import re
from pathlib import Path

from flow_dpo.plugins.load import is_source

PATH = re.compile(r"(/|~|\.{1,2}[/\\]|[A-Za-z]:[/\\]|\\\\).*", re.DOTALL)
"""A path from the root, the home folder or the current folder."""
_FILE = re.compile(
    r".*[/\\].*\.(jsonl?|csv|tsv|txt|md|parquet|arrow|ya?ml|py|ipynb|jinja2?|safetensors|bin|gguf|pt|pth|gz|zst|zip|tar)",
    re.DOTALL | re.IGNORECASE,
)
"""A file in a folder, "data/x.jsonl", existing or not: no model and no data set on the hub has such a name."""


def is_local(value: str, *roots: Path) -> bool:
    """Whether a setting is a path on this machine, or code in a file on it: absolute, from here or home, a file in a
    folder, three or more parts, or two parts that exist as a path, from here or from one of `roots`."""
    place = value.rpartition(":")[0] if is_source(value) else value
    if PATH.fullmatch(value) or _FILE.fullmatch(value) or (place is not value and place.endswith(".py")):
        return True
    return ("/" in value or "\\" in value) and (value.count("/") > 1 or exists(value, *roots))


def last_part(value: str) -> str:
    """The last part of a path: "flows.py:Mine" of "/home/me/flows.py:Mine"."""
    return re.split(r"[/\\]", value.rstrip("/\\"))[-1] or value


def begun_in(folder: Path, output_dir: object) -> Path:
    """The folder that a command's relative paths start from, inferred from where its `folder` lies and the name that it
    had for it (`output_dir`), since the reader can be elsewhere. The current folder if that cannot be inferred."""
    named = Path(output_dir) if isinstance(output_dir, str) else Path()
    place = folder.resolve()
    if named.is_absolute() or not named.parts or place.parts[-len(named.parts) :] != named.parts:
        return Path()
    return Path(*place.parts[: -len(named.parts)])


def exists(value: str, *roots: Path) -> bool:
    """Whether a path exists, from here or from one of `roots`; False for what cannot be a path."""
    try:
        place = Path(value).expanduser()
        return place.exists() or any((root / place).exists() for root in roots)
    except (OSError, ValueError, RuntimeError):  # too long, a null byte, no home
        return False
