"""Everything that the page shows, from the sources at some paths: the one place that both server and export read.

    with Library([Path("runs")]) as library:
        library.get("sources", {})                                 every source, with its facts
        library.get("curves", {"source": "train"})                 every number of a run, batch by batch
        library.get("items", {"source": "train", "flipped": "1"})  a list of problems
        library.get("item", {"source": "train", "n": "17"})        one complete problem

Its own thread follows the files and extends the indexes, and pauses while a request is answered. Invariant: nothing is
written into a source, and whatever its files hold, an answer is valid JSON, or a `DataError`.
"""

from __future__ import annotations

import logging
import os
import sqlite3
import tempfile
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from flow_dpo.core.errors import DataError, StorageError, visible
from flow_dpo.report.viewer import queries
from flow_dpo.report.viewer.facts import Named, as_it_stands
from flow_dpo.report.viewer.found import Note, ViewSource, find_sources
from flow_dpo.report.viewer.index import Index
from flow_dpo.report.viewer.items import Missing, item
from flow_dpo.report.viewer.shelf import Shelf

_PAUSE_S = 1.0
"""Seconds between two looks at the files."""
_SCAN_S = 5.0
"""Seconds between two walks through the folders."""
_PATIENCE_S = 1.0
"""Most seconds for which the indexing thread pauses."""
_FAULTS = (ArithmeticError, AttributeError, LookupError, OSError, RuntimeError, sqlite3.Error, TypeError, ValueError)
"""What a source, or a fault of this package, can make the indexing thread fail with."""
_logger = logging.getLogger(__name__)


def cache_folder() -> Path:
    """Where indexes are kept, in the user's cache."""
    base = os.environ.get("XDG_CACHE_HOME", "")
    return (Path(base) if os.path.isabs(base) else Path.home() / ".cache") / "flow-dpo" / "view"


class Library:
    """The sources at some paths, with their indexes."""

    def __init__(self, paths: Sequence[Path], *, cache: Path | None = None) -> None:
        """Raises `DataError` for a path with nothing at it, and if there is no source at all."""
        self._paths = [Path(path) for path in paths]
        sources, self._notes = find_sources(self._paths)
        if not sources:
            raise DataError("; ".join(note.text for note in self._notes) or "expected a path, found none")
        self._cache_notes: list[Note] = []
        """What is kept apart from the notes of a look for sources, which replace one another."""
        self._temporary: tempfile.TemporaryDirectory[str] | None = None
        self._folder = self._writable(cache_folder() if cache is None else cache)
        self._asked = 0
        self._free = threading.Condition()
        self._closing = threading.Event()
        self._shelves = {source.id: self._shelf(source) for source in sources}
        self._thread: threading.Thread | None = None

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self.close()

    def start(self) -> None:
        """Start following the files."""
        self._thread = threading.Thread(target=self._follow, name="index", daemon=True)
        self._thread.start()

    def close(self) -> None:
        """Stop following the files, and close the indexes."""
        self._closing.set()
        if self._thread is not None:
            self._thread.join(timeout=10)
        for shelf in self._shelves.values():
            shelf.index.close()
        if self._temporary is not None:
            self._temporary.cleanup()

    @property
    def paths(self) -> list[Path]:
        """The paths that were named."""
        return list(self._paths)

    @property
    def sources(self) -> list[ViewSource]:
        """The sources, in display order."""
        return [shelf.source for shelf in self._shelves.values()]

    def wait(self, timeout_s: float = 600.0) -> None:
        """Wait until everything is indexed. Raises `StorageError` if that takes too long."""
        end = time.monotonic() + timeout_s
        while any(shelf.behind for shelf in list(self._shelves.values())):
            alive = self._thread is not None and self._thread.is_alive()
            if not alive or time.monotonic() > end or self._closing.wait(0.01):
                raise StorageError(f"expected the indexes within {timeout_s:.0f} s, found them unfinished")

    # ---- requests ----------------------------------------------------------------------------------------------------

    def get(self, kind: str, params: Mapping[str, str]) -> dict[str, Any]:
        """A resource in the form of JSON. Raises `DataError` for wrong parameters, `Missing` for something that does
        not exist."""
        answer = {"sources": self._sources, "curves": self._curves, "items": self._items, "item": self._item}.get(kind)
        if answer is None:
            raise Missing(f"expected sources, curves, items or item, found {kind!r:.40}")
        with self._in_front():
            return answer(params)

    def _sources(self, params: Mapping[str, str]) -> dict[str, Any]:
        queries.refuse_unknown(params, frozenset())
        return self.described()

    def described(self, named: Named = as_it_stands) -> dict[str, Any]:
        """The answer of `get` for "sources"; `named` says how to show names that can be paths."""
        with self._in_front():
            shelves = list(self._shelves.values())
            notes = [*self._cache_notes, *self._notes, *(note for shelf in shelves for note in shelf.notes())]
            if self._thread is not None and not self._thread.is_alive() and not self._closing.is_set():
                notes.append(Note(text="new rows are no longer read; the terminal says why: start the viewer again"))
            return {
                "title": ", ".join(dict.fromkeys(path.resolve().name or str(path) for path in self._paths)),
                "static": False,
                "sources": [shelf.value(named) for shelf in shelves],
                "notes": [
                    {"source": note.source, "file": note.file, "line": note.line, "text": note.text} for note in notes
                ],
            }

    def searched(self, source: str, numbers: Sequence[int]) -> dict[int, str]:
        """What a search covers of these items of a source, where that is more than their row in "items"."""
        with self._in_front():
            return self._named({"source": source}).searched(numbers)

    def _curves(self, params: Mapping[str, str]) -> dict[str, Any]:
        queries.refuse_unknown(params, frozenset({"source"}))
        return self._named(params).curves()

    def _items(self, params: Mapping[str, str]) -> dict[str, Any]:
        shelf, wanted = self._named(params), queries.Wanted.of(params)
        return shelf.items(wanted)

    def _item(self, params: Mapping[str, str]) -> dict[str, Any]:
        queries.refuse_unknown(params, frozenset({"source", "n"}))
        return item(self._named(params), queries.integer(params, "n", 0), list(self._shelves.values()))

    def _named(self, params: Mapping[str, str]) -> Shelf:
        shelf = self._shelves.get(params.get("source", ""))
        if shelf is None:
            raise Missing(f"expected the id of a source, found {params.get('source', '')!r:.80}")
        return shelf

    # ---- the thread that follows -------------------------------------------------------------------------------------

    def _follow(self) -> None:
        scanned = time.monotonic()
        while not self._closing.is_set():
            waiting = [shelf for shelf in list(self._shelves.values()) if shelf.is_followed and self._is_behind(shelf)]
            for shelf in waiting:
                self._step(shelf)
                if self._closing.is_set():
                    return
            if time.monotonic() - scanned > _SCAN_S:
                self._scan()
                scanned = time.monotonic()
            if not waiting:
                self._closing.wait(_PAUSE_S)

    # A source that shows a fault of this package is given up in words; the thread continues with the others.

    def _is_behind(self, shelf: Shelf) -> bool:
        try:
            return shelf.follow()
        except _FAULTS as error:
            _give_up(shelf, "can no longer be followed", error, wholly=True)
            return False

    def _step(self, shelf: Shelf) -> None:
        try:
            self._extend(shelf)
        except _FAULTS as error:
            _give_up(shelf, "can no longer be indexed", error)

    def _extend(self, shelf: Shelf) -> None:
        try:
            shelf.step()
        except StorageError as error:
            if self._temporary is None:
                self._folder = self._writable(None)
            if shelf.index.folder == self._folder:
                shelf.give_up(str(error))
            else:
                shelf.index = Index(shelf.source, self._folder, yield_to=self._stand_back)

    def _scan(self) -> None:
        """Look for new sources."""
        known = {shelf.source.path: shelf.source.id for shelf in self._shelves.values()}
        try:
            found, notes = find_sources(self._paths, known)
        except DataError as error:  # a path that existed is gone
            self._notes = [Note(text=str(error))]
            return
        except _FAULTS as error:
            note = Note(text=_in_words("new sources cannot be looked for", error))
            if note not in self._notes:  # it is met again at every look
                _logger.error("%s", note.text, exc_info=error)
            self._notes = [note]
            return
        self._notes = notes
        for source in found:
            if source.path not in known:
                self._shelves[source.id] = self._shelf(source)

    def _shelf(self, source: ViewSource) -> Shelf:
        return Shelf(source, Index(source, self._folder, yield_to=self._stand_back))

    def _writable(self, folder: Path | None) -> Path:
        """`folder` if it can be written to, otherwise a temporary one."""
        try:
            if folder is not None:
                folder.mkdir(mode=0o700, parents=True, exist_ok=True)
                _tidy(folder)
                with tempfile.TemporaryFile(dir=folder):
                    return folder
        except OSError as error:
            words = f"indexes are only kept for this session: {folder} cannot be written to ({error.strerror})"
            self._cache_notes.append(Note(text=words))
        self._temporary = tempfile.TemporaryDirectory(prefix="flow-dpo-view-")
        return Path(self._temporary.name)

    @contextmanager
    def _in_front(self) -> Iterator[None]:
        """A context in which the indexing thread pauses; otherwise two busy threads would wait for each other at every
        row."""
        with self._free:
            self._asked += 1
        try:
            yield
        finally:
            with self._free:
                self._asked -= 1
                self._free.notify_all()

    def _stand_back(self) -> None:
        if self._asked and threading.current_thread() is self._thread:
            with self._free:
                self._free.wait_for(lambda: not self._asked, timeout=_PATIENCE_S)


def _in_words(what: str, error: BaseException) -> str:
    return visible(f"{what}: {type(error).__name__}: {error}")


def _give_up(shelf: Shelf, what: str, error: Exception, *, wholly: bool = False) -> None:
    words = _in_words(f"{shelf.source.name} {what}", error)
    _logger.error("%s", words, exc_info=error)
    shelf.give_up(words, wholly=wholly)


def _tidy(folder: Path) -> None:
    """Remove indexes that were not used for a month."""
    oldest = time.time() - 30 * 86_400
    for path in folder.glob("*.sqlite*"):
        with suppress(OSError):  # another viewer was faster
            if path.stat().st_mtime < oldest:
                path.unlink()
