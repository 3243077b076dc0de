"""A copy of the page as files that opens from disk or any web space, with some of each source's items.

    with Library([Path("runs/train")]) as library:
        export(library, Path("site/view"), num_items=300)

    index.html  tree.js  style.css ...      the page's own files
    data/sources.js                         flowDpo.put("sources", {...});
    data/items-train.js                     the list of the items that were copied
    data/item-train-17.js                   one complete item, read when it is opened
    view.json                               marks the folder as such a copy

Invariant: files and values are those of the server, except for what was not copied; the copy contains no path and no
command of this machine. Names that can be paths are cut field by field, by the rule of `runs.local_names`; in notes,
which are free text, first the known folders are cut, then whatever looks like a path.
"""

from __future__ import annotations

import json
import re
import shutil
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib import resources
from pathlib import Path
from typing import Any, ClassVar
from urllib.parse import quote

from flow_dpo.core.errors import ConfigError, DataError, StorageError
from flow_dpo.report.viewer.library import Library
from flow_dpo.report.viewer.queries import MOST
from flow_dpo.runs import headers
from flow_dpo.runs.local_names import is_local, last_part
from flow_dpo.runs.writable import check_writable

MARK = "view.json"
_PART = ".flow-dpo-view-"
"""Beginning of the name of the folder, within the copy's, in which a new copy is made."""
_STATIC = '<meta name="flow-dpo-static" content="">'
_BEGIN = r"(?:(?:~|\.{1,2}|[A-Za-z]:)[/\\]|/|\\\\)"
"""Where a path begins: a single backslash is TeX's."""
_QUOTED = re.compile(rf"""(?P<quote>['"`]){_BEGIN}[^'"`\n]{{0,1000}}?(?P<last>[^'"`\n/\\]{{1,300}})[/\\]*(?P=quote)""")
"""A path in quotes, which can contain spaces."""
_FOLDERS = re.compile(rf"""(?:(?<![^\s=,;([{{'"`])|(?<=:)(?!//)){_BEGIN}(?:[^\s/\\,'"`]+[/\\])*(?=[^\s/\\,'"`])""")
"""The folders of an unquoted path; if it contains a space, its end cannot be known."""
_FREE = ("notes", "reason")
"""Fields of an item with free text written by a program: what could not be read, and the reason for a verdict."""


@dataclass(frozen=True, kw_only=True)
class ViewHeader:
    """view.json: what a copy contains."""

    SCHEMA: ClassVar[str] = "view/1"
    items: Mapping[str, int]
    """Number of items by source."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Copied:
    """What an export wrote."""

    items: Mapping[str, int]
    """Number of items by source."""
    num_bytes: int
    left_out: int = 0
    """Number of items that could not be read; the copy's notes say why."""


def refuse_export(folder: Path) -> None:
    """Raise `ConfigError` if `folder` cannot be written to, or holds something other than an earlier copy."""
    if folder.exists() and not folder.is_dir():
        raise ConfigError(f"expected --export to name a folder, found the file {folder}; name another")
    others = [each for each in folder.iterdir() if not each.name.startswith(_PART)] if folder.is_dir() else []
    if others and not (folder / MARK).is_file():
        raise ConfigError(f"{folder} is not empty and holds no earlier copy of the page; name another with --export")
    check_writable(folder, flag="--export")


def export(library: Library, folder: Path, *, num_items: int) -> Copied:
    """Write the page and up to `num_items` items of each source, evenly spaced in time.

    An earlier copy in the folder stays as it is until the new one is whole, and is replaced then. Raises `ConfigError`
    for a folder that holds something else, and `StorageError` if it cannot be written.
    """
    refuse_export(folder)
    library.wait()
    try:
        folder.mkdir(parents=True, exist_ok=True)
        for left in folder.glob(f"{_PART}*"):  # of an export that was killed
            shutil.rmtree(left)
        with tempfile.TemporaryDirectory(prefix=_PART, dir=folder) as part:
            copied = _write(library, Path(part), num_items)
            _put_in_place(Path(part), folder)
        return copied
    except OSError as error:
        raise StorageError(f"could not write the copy to {folder}: {error}; free space, or name another") from error


def _write(library: Library, folder: Path, num_items: int) -> Copied:
    data = folder / "data"
    data.mkdir()
    # 1. The page, marked as a copy.
    for each in (resources.files("flow_dpo.report.viewer") / "assets").iterdir():
        content = each.read_bytes()
        if each.name == "index.html":
            content = content.replace(b"<head>", f"<head>\n    {_STATIC}".encode(), 1)
        (folder / each.name).write_bytes(content)
    # 2. The items of each source, as far as they can be read.
    found = library.described(_without_folders)
    known = _known_folders(library)
    chosen = {source["id"]: _chosen(library, source["id"], num_items) for source in found["sources"]}
    items = _Items(library, data, known, chosen)
    written = items.write()
    for id, rows in chosen.items():
        more = library.searched(id, sorted(items.numbers[id]))
        there = [{**row, **_found_by(row["n"], more)} for row in rows if row["n"] in items.numbers[id]]
        answer = library.get("items", {"source": id, "limit": "0"})
        written += _put(data, ("items", id), {**answer, "rows": there, "total": len(there), "all": len(there)})
        written += _put(data, ("curves", id), library.get("curves", {"source": id}))
    # 3. What was copied.
    for source in found["sources"]:
        if "command" in source["facts"]:  # it can contain addresses and its author's names
            source["facts"]["command"] = None
        source |= {"copied": len(items.numbers[source["id"]]), "path": source["name"]}
    notes = [*found["notes"], *items.notes]
    found["notes"] = [{**note, "text": without_paths(note["text"], known)} for note in notes]
    written += _put(data, ("sources",), {**found, "static": True})
    counts = {id: len(numbers) for id, numbers in items.numbers.items()}
    headers.write_header(folder / MARK, ViewHeader, {"items": counts})
    return Copied(items=counts, num_bytes=written, left_out=len(items.notes))


def _put_in_place(part: Path, folder: Path) -> None:
    """Move a whole copy to where it belongs. The mark comes first: from then on the folder can be written again."""
    (part / MARK).replace(folder / MARK)
    if (folder / "data").exists():
        (folder / "data").rename(part / "earlier")
    (part / "data").rename(folder / "data")
    for each in part.iterdir():
        if each.is_file():
            each.replace(folder / each.name)


def _found_by(n: int, searched: Mapping[int, str]) -> dict[str, str]:
    return {"find": searched[n]} if n in searched else {}


def _chosen(library: Library, id: str, num_items: int) -> list[dict[str, Any]]:
    """Rows of the items to copy: evenly spaced, starting with the first."""
    total = library.get("items", {"source": id, "limit": "0"})["total"]
    num = min(total, num_items)
    places = {at * total // num for at in range(num)}
    rows: list[dict[str, Any]] = []
    for offset in range(0, total, MOST):
        page = library.get("items", {"source": id, "offset": str(offset), "limit": str(MOST)})["rows"]
        rows += [row for at, row in enumerate(page, start=offset) if at in places]
    return rows


_Key = tuple[str, int]
"""An item: the id of its source, and its number."""


class _Items:
    """The items of all sources on their way into a copy; one that cannot be read is left out, with a note."""

    def __init__(
        self, library: Library, data: Path, known: Sequence[str], chosen: Mapping[str, Sequence[Mapping[str, Any]]]
    ) -> None:
        self._library, self._data, self._known = library, data, known
        self.numbers = {id: {row["n"] for row in rows} for id, rows in chosen.items()}
        """The items of each source that are in the copy."""
        self.notes: list[dict[str, Any]] = []
        self._links: dict[_Key, set[_Key]] = {}
        self._sizes: dict[_Key, int] = {}

    def write(self) -> int:
        """Write them; returns their size in bytes."""
        waiting = [(id, n) for id, numbers in self.numbers.items() for n in sorted(numbers)]
        while waiting:
            lost = {key for key in waiting if not self._write(*key)}
            # Those with a link to one that turned out to be left out are written again, without it.
            waiting = [key for key, links in self._links.items() if links & lost]
        return sum(self._sizes.values())

    def _write(self, id: str, n: int) -> bool:
        key = id, n
        try:
            found = self._library.get("item", {"source": id, "n": str(n)})
        except DataError as error:
            text = f"number {n} is not in this copy: {error}"
            self.notes.append({"source": id, "file": None, "line": None, "text": text})
            self.numbers[id].discard(n)
            self._links.pop(key, None)
            self._sizes.pop(key, None)
            _file_of(self._data, ("item", id, str(n))).unlink(missing_ok=True)
            return False
        found["elsewhere"] = [each for each in found["elsewhere"] if each["n"] in self.numbers.get(each["source"], ())]
        self._links[key] = {(each["source"], each["n"]) for each in found["elsewhere"]}
        self._sizes[key] = _put(self._data, ("item", id, str(n)), _without_paths(found, self._known))
        return True


def _put(data: Path, key: Sequence[str], value: Any) -> int:
    """Write a value as the script that passes it to the page; returns its size in bytes."""
    # ASCII only: lone surrogates and line separators in hostile texts are escaped, and no encoding can be mistaken.
    text = f"flowDpo.put({json.dumps('/'.join(key))}, {json.dumps(value, separators=(',', ':'))});\n"
    return _file_of(data, key).write_bytes(text.encode("ascii"))


def _file_of(data: Path, key: Sequence[str]) -> Path:
    return data / f"{'-'.join(quote(part, safe='-_.~') for part in key)}.js"


def _without_folders(value: str, root: Path, *, is_path: bool = False) -> str:
    """A name that can leave this machine (`facts.Named`): a path by its last part, a hub id in full."""
    return last_part(value) if is_path or is_local(value, root) else value


def _known_folders(library: Library) -> list[str]:
    """Folders that notes can mention, longest first: those that were named, those of the sources, the home and current
    folders, and all their parents."""
    near = [folder for path in library.paths for folder in (path, path.absolute(), path.resolve())]
    near += [*(source.path for source in library.sources), Path.cwd(), Path.home()]
    found = {folder for path in near for folder in (path, *path.parents) if folder != folder.parent}
    return sorted(map(str, found), key=len, reverse=True)


def _without_paths(value: Any, folders: Sequence[str], *, free: bool = False) -> Any:
    """A copy of a value with `without_paths` applied to its notes and reasons; `free`: the value is one of them."""
    if isinstance(value, str):
        return without_paths(value, folders) if free else value
    if isinstance(value, Mapping):
        return {name: _without_paths(each, folders, free=name in _FREE) for name, each in value.items()}
    return [_without_paths(each, folders, free=free) for each in value] if isinstance(value, list) else value


def without_paths(words: str, folders: Sequence[str] = ()) -> str:
    """A free text with paths cut to their last parts: those in quotes, then those in these folders (longest first),
    then whatever else looks like a path."""
    words = _QUOTED.sub(r"\g<quote>\g<last>\g<quote>", words)
    for folder in folders:
        here = rf"(?<![\w.~/\\-]){re.escape(folder)}"
        words = re.sub(rf"{here}[/\\]+(?:[^\s/\\,'\"`]+[/\\]+)*(?=[^\s/\\])", "", words)
        name = last_part(folder).replace("\\", "\\\\")
        words = re.sub(rf"{here}(?![\w-])", name, words)
    return _FOLDERS.sub("", words)
