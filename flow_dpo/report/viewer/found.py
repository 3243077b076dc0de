"""What is at the paths that were named: runs, traces, evaluations and judgements, in folders of any depth.

    find_sources([Path("runs")])      ViewSource(id="team-seed0-flow", name="team/seed0/flow", kind="run"), ...

Folders are recognised by their files, and nothing is read. Invariant: anything else costs only a note, except that a
path with nothing at it is refused; no symbolic link inside a source leads out of it.
"""

from __future__ import annotations

import difflib
import hashlib
import os
import re
from collections import Counter
from collections.abc import Callable, Container, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import NamedTuple

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
    """Shown to people: the path below the folder that was named, or that folder's own name; with the folders above it
    where that would be the name of several."""
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


class _Found(NamedTuple):
    """A folder that is a source."""

    kind: str
    root: Path
    """The folder that was named."""
    size: int
    """How many of the last parts of its path are its name."""


def find_sources(paths: Sequence[Path], known: Mapping[Path, str] | None = None) -> tuple[list[ViewSource], list[Note]]:
    """All sources at these paths and below them; `known` are ids that were given before, by path. Raises `DataError`
    for a path with nothing at it."""
    found: dict[Path, _Found] = {}
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
        _walk(top, found, notes)
        if len(found) == before and not any(top.resolve() == known for known in found):
            notes.append(Note(text=f"{path}: expected a run, traces, an evaluation or judgements, found {_held(top)}"))
    return _named(found, known or {}), notes


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


def _walk(top: Path, found: dict[Path, _Found], notes: list[Note]) -> None:
    """Add the sources in `top` and below to `found`, by path."""
    root = top.resolve()
    waiting, num_folders = [(top, 0)], 0
    while waiting:
        folder, depth = waiting.pop(0)
        num_folders += 1
        if num_folders > _MOST_FOLDERS or len(found) >= _MOST_SOURCES:
            notes.append(Note(text=f"{top} holds more than can be shown; name a folder inside it"))
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
            found[resolved] = _Found(kind, root, max(1, len(folder.relative_to(top).parts)))
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


def _named(found: Mapping[Path, _Found], known: Mapping[Path, str]) -> list[ViewSource]:
    """The sources, with unique names and ids."""
    names = _names(found)
    sources: list[ViewSource] = []
    taken = set(known.values())
    for path, (kind, _, _) in found.items():
        id = known.get(path) or _free_id(names[path], kind, taken)
        taken.add(id)
        sources.append(ViewSource(id=id, name=names[path], kind=kind, path=path))
    return sources


def _names(found: Mapping[Path, _Found]) -> dict[Path, str]:
    """The place of each source below its root. Where two of them are alike, all sources of these roots are named with
    the folders above them, as many as it takes."""
    above: Counter[Path] = Counter()
    while True:
        names = {path: "/".join(path.parts[-(size + above[root]) :]) for path, (_, root, size) in found.items()}
        counts = Counter(names.values())
        longer = {root for path, (_, root, size) in found.items()
                  if counts[names[path]] > 1 and size + above[root] < len(path.parts) - 1}  # fmt: skip
        if not longer:
            return names
        above.update(longer)


def _free_id(name: str, kind: str, taken: Container[str]) -> str:
    """An id that is not taken. A name that an id cannot hold has its digest in it, so that it is the same in every
    session, whatever other sources there are."""
    stem = re.sub(r"[^A-Za-z0-9_.]+", "-", name).strip("-.")
    id = stem[:80] or kind
    if not stem or len(stem) > 80 or re.search(r"[^A-Za-z0-9_./-]", name):
        id = f"{id}-{hashlib.sha256(os.fsencode(name)).hexdigest()[:6]}"
    stem, number = id, 1
    while id in taken:
        number += 1
        id = f"{stem}-{number}"
    return id


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
