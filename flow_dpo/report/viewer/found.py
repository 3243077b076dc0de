"""What is at the paths that were named: runs, traces, evaluations and judgements, in folders of any depth.

    find_sources([Path("runs")])      ViewSource(id="team-seed0-flow", name="team/seed0/flow", kind="run"), ...

Folders are recognised by their files, and nothing is read. Invariant: anything else costs only a note, except that a
path with nothing at it is refused; no symbolic link inside a source leads out of it.
"""

from __future__ import annotations

import difflib
import os
import re
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from flow_dpo.core.errors import DataError

KINDS = {"run": "a run", "traces": "traces", "evaluation": "an evaluation", "judgements": "judgements"}
_MARKS = (
    ("judgements", ("judge.json", "judgements.jsonl")),
    ("run", ("trees.jsonl", "metrics.jsonl")),
    ("evaluation", ("predictions.jsonl", "summary.json")),
    ("traces", ("traces.jsonl", "traces.json")),
)
"""Kinds by files, of which one is enough; the first match counts. `sampled.jsonl` and `config.yaml` are of several."""
_NOT_ENTERED = frozenset({"adapters", "checkpoints", "served"})
"""Folders of a run that contain no sources."""
_DEEPEST = 8
_MOST_FOLDERS = 20_000
_MOST_SOURCES = 1_000


@dataclass(frozen=True, slots=True, kw_only=True)
class ViewSource:
    """One source of items."""

    id: str
    """Used in addresses: letters, digits, "-", "_" and "."; unique."""
    name: str
    """Shown to people: the path below the folder that was named, or that folder's own name."""
    kind: str
    """A key of `KINDS`."""
    path: Path


@dataclass(frozen=True, slots=True, kw_only=True)
class Note:
    """Something that could not be read, and what it cost."""

    text: str
    source: str | None = None
    """The id of the source."""
    file: str | None = None
    line: int | None = None


def find_sources(paths: Sequence[Path]) -> tuple[list[ViewSource], list[Note]]:
    """All sources at these paths and below them. Raises `DataError` for a path with nothing at it."""
    found: dict[Path, tuple[str, str]] = {}
    notes: list[Note] = []
    for path in paths:
        try:
            there = path.exists()
        except OSError as error:
            raise DataError(f"expected a path that can be read, found {path}: {error.strerror}") from error
        if not there:
            raise DataError(f"expected a run, traces, an evaluation, judgements or a folder of them at {path}, found "
                            f"nothing{_near(path)}")  # fmt: skip
        top = path.parent if path.is_file() else path
        before = len(found)
        _walk(top, top, found, notes)
        if len(found) == before and not any(top.resolve() == known for known in found):
            notes.append(Note(text=f"{path}: expected a run, traces, an evaluation or judgements, found {_held(top)}"))
    return _named(found), notes


def opened(source: ViewSource, name: str) -> Path:
    """The path of a source's file. Raises `DataError` if it is a link that leads out of the source, or not a file
    (reading a pipe would block), or if the system does not tell."""
    path = source.path / name
    try:
        if path.is_symlink() and not path.resolve().is_relative_to(source.path.resolve()):
            raise DataError(f"{name} is a link to a file outside {source.name}, which is not followed")
        if not path.is_file() and path.exists():
            raise DataError(f"expected a file, found something else named {name}")
    except OSError as error:
        raise DataError(f"{name} cannot be read: {error.strerror}") from error
    except RuntimeError as error:  # of Path.resolve
        raise DataError(f"{name} is a link that leads in a circle") from error
    return path


def _kind(names: Iterable[str]) -> str | None:
    names = set(names)
    if "comparison.json" in names and not {"trees.jsonl", "metrics.jsonl"} & names:
        return None  # its config.yaml is the comparison's
    for kind, marks in _MARKS:
        if any(mark in names for mark in marks) and not (kind == "run" and "adapter_config.json" in names):
            return kind
    if {"config.yaml", "run.json"} <= names and "adapter_config.json" not in names:
        return "run"  # before its first batch
    return "evaluation" if "sampled.jsonl" in names and "config.yaml" not in names else None


def _walk(top: Path, root: Path, found: dict[Path, tuple[str, str]], notes: list[Note]) -> None:
    """Add the sources in `top` and below to `found`: their kind and their place below `root`, by path."""
    waiting, num_folders = [(top, 0)], 0
    while waiting:
        folder, depth = waiting.pop(0)
        num_folders += 1
        if num_folders > _MOST_FOLDERS or len(found) >= _MOST_SOURCES:
            notes.append(Note(text=f"{root} holds more than can be shown; name a folder inside it"))
            return
        try:
            with os.scandir(folder) as entries:
                inside = sorted(entries, key=lambda entry: _natural(entry.name))
        except OSError as error:
            notes.append(Note(text=f"{folder} cannot be read: {error.strerror}"))
            continue
        kind = _kind(entry.name for entry in inside if _is(entry.is_file))
        resolved = folder.resolve()
        if kind is not None and resolved not in found:
            below = folder.relative_to(root).as_posix()
            found[resolved] = (kind, root.resolve().name if below == "." else below)
        for entry in inside if depth < _DEEPEST else ():
            skipped = entry.name.startswith(".") or (kind == "run" and entry.name in _NOT_ENTERED)
            if not skipped and _is(partial(entry.is_dir, follow_symlinks=False)):
                waiting.append((folder / entry.name, depth + 1))


def _is(asked: Callable[[], bool]) -> bool:
    """Whether an entry is what is asked. One of which the system does not tell (a link in a circle, or into a folder
    without permission) is nothing that can be shown."""
    try:
        return asked()
    except OSError:
        return False


def _natural(name: str) -> list[tuple[int, str]]:
    """A sort key that puts seed2 before seed10."""
    return [(int(part), "") if part.isdecimal() else (-1, part) for part in re.split(r"(\d{1,18})", name)]


def _named(found: dict[Path, tuple[str, str]]) -> list[ViewSource]:
    """The sources, with unique names and ids."""
    counts = Counter(name for _, name in found.values())
    sources: list[ViewSource] = []
    taken: set[str] = set()
    for path, (kind, name) in found.items():
        above = path.parts[: len(path.parts) - name.count("/") - 1]
        name = f"{above[-1]}/{name}" if counts[name] > 1 and above[-1:] else name
        stem = re.sub(r"[^A-Za-z0-9_.]+", "-", name).strip("-.")[:80] or kind
        slug, number = stem, 1
        while slug in taken:
            number += 1
            slug = f"{stem}-{number}"
        taken.add(slug)
        sources.append(ViewSource(id=slug, name=name, kind=kind, path=path))
    return sources


def _near(path: Path) -> str:
    """What to name instead."""
    folder = path.parent
    while not folder.is_dir() and folder != folder.parent:
        folder = folder.parent
    try:
        names = [entry.name for entry in folder.iterdir() if entry.is_dir() and not entry.name.startswith(".")]
    except OSError as error:
        return f"; {folder} cannot be read: {error.strerror}"
    near = difflib.get_close_matches(path.name, names, n=3, cutoff=0.4) or sorted(names, key=_natural)[:5]
    return f"; in {folder} there is {', '.join(near)}" if near else f"; {folder} has no folders"


def _held(folder: Path) -> str:
    try:
        names = sorted((entry.name for entry in folder.iterdir()), key=_natural) if folder.is_dir() else []
    except OSError as error:
        return f"a folder that cannot be read: {error.strerror}"
    if names == [".lock"]:
        return "only a lock: what was started there has not written anything yet"
    return f"{', '.join(names[:6])}{', ...' if len(names) > 6 else ''}" if names else "nothing in it"
