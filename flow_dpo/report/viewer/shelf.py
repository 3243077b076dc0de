"""The present state of one source: its index, its curves, its facts, and whether it is still being written.

    shelf = Shelf(source, index)
    if shelf.follow(): shelf.step()       look at the files, and index some of what is new
    shelf.value()                         {"id": "train", "kind": "run", "state": "going on", "indexed": 0.4, ...}

Invariant: `value`, `items` and `curves` answer from what was read so far, at any time and from any thread.
"""

from __future__ import annotations

import sqlite3
import sys
import threading
import time
from bisect import bisect_right
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from flow_dpo.core.errors import DataError, StorageError
from flow_dpo.report.budgets import is_spent
from flow_dpo.report.viewer import queries
from flow_dpo.report.viewer.curves import Batches
from flow_dpo.report.viewer.facts import (
    HEADERS,
    STARTED,
    Named,
    Totals,
    as_it_stands,
    facts_of,
    first_row,
    read_headers,
)
from flow_dpo.report.viewer.followed import SampledProblems, TokenTable
from flow_dpo.report.viewer.found import Note, ViewSource, opened
from flow_dpo.report.viewer.index import Index
from flow_dpo.report.viewer.lines import mapping, text

_GROWING_S = 60.0
"""Seconds after which a file that has grown no longer shows that somebody writes to it."""
_COUNTED_S = 0.5
"""Least seconds between two counts of the items while an index is built."""
_MOST_NOTES = 200
_TRIES = 3
_STARTED = f"{time.time_ns():x}"


class Shelf:
    """Everything known about one source."""

    def __init__(self, source: ViewSource, index: Index) -> None:
        self.source = source
        self.index = index
        self.behind = True
        """Whether there is something that is not indexed yet."""
        self.batches = Batches(lambda: opened(source, "metrics.jsonl"))
        self._tokens = TokenTable(lambda: opened(source, "tokens.jsonl"))
        self._sampled = SampledProblems(lambda: opened(source, "sampled.jsonl"))
        self.state = ""
        self._lock = threading.Lock()
        self._headers: dict[str, Mapping[str, Any]] = {name: {} for name in HEADERS[source.kind]}
        self._header_notes: list[tuple[str, str]] = []
        self._seen_headers: object = None
        self._counted = _Counted()
        self._count_after = float("-inf")
        self._sizes: dict[str, int] = {}
        self._grew = float("-inf")
        self._changes = 0
        self._total: tuple[object, int] = None, 0
        """The last filter and its number of items, since a list is requested page by page."""
        self._failed = ""
        self.is_followed = True
        """Whether the files are looked at."""
        self._misses = 0
        """Consecutive steps after which the index could not be read."""

    # ---- following ---------------------------------------------------------------------------------------------------

    def follow(self) -> bool:
        """Check everything except the rows; returns whether there are rows to index."""
        stats = tuple(_stat(self.source.path / name) for name in HEADERS[self.source.kind])
        changed = False
        if stats != self._seen_headers:
            headers, notes = read_headers(self.source)
            if self.source.kind == "run":
                headers[STARTED] = first_row(self.source, STARTED)
            self._headers, self._header_notes, self._seen_headers, changed = headers, notes, stats, True
        if self.source.kind == "run":
            with self._lock:
                grew = self.batches.refresh()
            if grew and not self._headers.get(STARTED):
                self._headers = {**self._headers, STARTED: first_row(self.source, STARTED)}
            changed |= grew
        if self.source.kind == "evaluation" and not self._headers["summary.json"]:
            changed |= self._sampled.refresh()
        sizes = {name: size for name in self.index.names if (size := _size(self.source.path / name)) is not None}
        if self._sizes and any(size > self._sizes.get(name, 0) for name, size in sizes.items()):
            self._grew = time.monotonic()
        self._sizes = sizes
        state = self._state()
        changed |= state != self.state
        self.state = state
        if changed:
            self._changes += 1
        self.behind = not self._failed and self.index.is_behind()
        return self.behind

    def step(self) -> None:
        """Index some of what is new. Raises `StorageError`."""
        more = self.index.step()
        if not more or time.monotonic() > self._count_after:
            started = time.monotonic()
            try:
                with self.index.reading() as database:
                    self._counted = _count(database, whole=not more)
            except DataError as error:  # another viewer replaced the file; the next step opens the new one
                self.index.close()
                self._misses += 1
                if self._misses > _TRIES:
                    raise StorageError(str(error)) from error
                return
            self._misses = 0
            taken = time.monotonic() - started
            self._count_after = started + max(_COUNTED_S, 20 * taken)  # a count reads all items
            self._changes += 1

    def give_up(self, reason: str, *, wholly: bool = False) -> None:
        """Stop indexing, for this reason; `wholly`: also stop looking at the files."""
        self._failed = reason
        self.behind = False
        self.is_followed = not wholly
        self._changes += 1

    def _state(self) -> str:
        """Whether the source is complete, is being written, or was interrupted."""
        if self._complete():
            return "finished"
        growing = time.monotonic() - self._grew < _GROWING_S
        return "going on" if growing or is_locked(self.source.path / ".lock") else "interrupted"

    def _complete(self) -> bool:
        headers = self._headers
        if self.source.kind == "run":
            return self._has_enough() and not is_locked(self.source.path / ".lock")
        if self.source.kind == "traces":
            return headers["traces.json"].get("complete") is not False
        return bool(headers["summary.json"]) or _stat(self.source.path / "summary.json") is not None

    def _has_enough(self) -> bool:
        """Whether a run has processed its problems, or spent its budget."""
        wanted = self._headers["run.json"].get("num_problems")
        if isinstance(wanted, int) and self.batches.ends and self.batches.ends[-1] >= wanted:
            return True
        return is_spent(self._headers["config.yaml"], self.batches.spent())

    # ---- answers -----------------------------------------------------------------------------------------------------

    def value(self, named: Named = as_it_stands) -> dict[str, Any]:
        """The source's row in the table of sources; `named` says how to show names that can be paths."""
        counted, index = self._counted, self.index
        with self._lock:
            totals = replace(counted.totals, sampled=self._sampled.num)
            if not counted.whole:  # a partial sum would be taken for the total
                totals = replace(totals, pairs=None, scored=None, tokens=None)
            facts = facts_of(self.source, self._headers, self.batches, totals, named)
        return {
            "id": self.source.id,
            "name": self.source.name,
            "kind": self.source.kind,
            "path": str(self.source.path),
            "state": self.state,
            "indexed": 1.0 if self._failed or not self.behind else index.progress,
            "num_items": self.num_items,
            "stamp": self.stamp,
            "facts": facts,
        }

    @property
    def side_paths(self) -> list[Path]:
        """For judgements: where the traces of each side were."""
        sides = self._headers.get("judge.json", {}).get("traces")
        named = [text(mapping(side).get("path")) for side in sides] if isinstance(sides, list) else []
        return [Path(path).absolute() for path in named if path and "\x00" not in path]

    @property
    def num_items(self) -> int:
        """Number of indexed items."""
        return self._counted.totals.num

    @property
    def stamp(self) -> str:
        """Changes whenever anything in the source does."""
        return f"{_STARTED}-{self._changes}"

    def curves(self) -> dict[str, Any]:
        """Every number of the run, batch by batch."""
        with self._lock:
            return dict(self.batches.value())

    def items(self, wanted: queries.Wanted) -> dict[str, Any]:
        """A list of items. Raises `DataError` if the index cannot be read."""
        if not self.index.ready:
            return {"total": 0, "all": 0, "rows": [], "facets": _NO_FACETS}
        key = (self._changes, wanted.where, wanted.values)
        with self.index.reading() as database:
            total = self._total[1] if self._total[0] == key else queries.total(database, wanted)
            rows = queries.rows(database, queries.numbers(database, wanted))
        self._total = key, total
        for row in rows:
            row["batch"] = self.batch_of(row["n"])
        return {"total": total, "all": self._counted.totals.num, "rows": rows, "facets": self._counted.facets}

    def searched(self, numbers: Sequence[int]) -> dict[int, str]:
        """What a search covers of these items, where that is more than their row. Raises `DataError`."""
        if not self.index.ready:
            return {}
        with self.index.reading() as database:
            return queries.searched(database, numbers)

    def batch_of(self, n: int) -> int | None:
        """The batch, from 0, in which an item was sampled."""
        with self._lock:
            at = bisect_right(self.batches.ends, n)
            return at if at < len(self.batches.ends) and self.batches.starts[at] <= n else None

    def token_texts(self) -> dict[int, tuple[str, bool]]:
        """The text of each token in a run, and whether it is special; empty for older runs."""
        with self._lock:
            self._tokens.refresh()
            return self._tokens.texts

    def notes(self) -> list[Note]:
        """What could not be read."""
        found: list[tuple[str | None, int | None, str]] = [(name, None, words) for name, words in self._header_notes]
        with self._lock:
            found += [("metrics.jsonl", line, words) for line, words in self.batches.notes]
            found += [("tokens.jsonl", line, words) for line, words in self._tokens.notes]
        found += self._counted.notes
        if self.state != "going on":
            found += [(name, line, "the last line has no end: it was torn off") for name, line in self._counted.torn]
        found += self._missing()
        if self._failed:
            found.append((None, None, self._failed))
        shown = [Note(source=self.source.id, file=name, line=line, text=words) for name, line, words in found]
        if len(shown) > _MOST_NOTES:
            more = Note(source=self.source.id, text=f"{len(shown) - _MOST_NOTES} more of this kind")
            shown = [*shown[:_MOST_NOTES], more]
        return shown

    def _missing(self) -> list[tuple[str | None, int | None, str]]:
        """Notes on files that are not read or do not exist."""
        if _stat(self.source.path) is None:
            return [(None, None, f"{self.source.path} no longer exists")]
        found: list[tuple[str | None, int | None, str]] = []
        for name in self.index.names:
            try:
                there = _stat(opened(self.source, name)) is not None
            except DataError as error:
                found.append((name, None, str(error)))
                continue
            if name == self.index.names[0] and not there and (self.state == "finished" or self.batches.ends):
                found.append((name, None, "the file is missing: there is nothing to list"))
        return found


class _Counted:
    """The result of one count over the index."""

    def __init__(self, *, whole: bool = False) -> None:
        self.whole = whole
        """Whether the files were read to their ends."""
        self.totals = Totals()
        self.facets: dict[str, Any] = _NO_FACETS
        self.notes: list[tuple[str | None, int | None, str]] = []
        self.torn: list[tuple[str, int]] = []


_NO_FACETS: dict[str, Any] = {
    "roles": {}, "statuses": {}, "levels": {}, "subjects": {}, "versions": None, "max_depth": None,
}  # fmt: skip


def _count(database: sqlite3.Connection, *, whole: bool) -> _Counted:
    counted = _Counted(whole=whole)
    counted.facets = facets = queries.facets(database)
    query = "SELECT count(*), coalesce(sum(pairs), 0), coalesce(sum(scored), 0), coalesce(sum(tokens), 0) FROM items"
    [(num, pairs, scored, tokens)] = database.execute(query)
    counted.totals = Totals(num=num, pairs=pairs, scored=scored, tokens=tokens, roles=facets["roles"])
    counted.notes = database.execute("SELECT file, line, text FROM notes ORDER BY file, line").fetchall()
    for name, size, offset, line, wrong in database.execute("SELECT name, size, offset, line, wrong FROM files"):
        if whole and offset < size:
            counted.torn.append((name, line + 1))
        kept = sum(1 for file, _, _ in counted.notes if file == name)
        if wrong > kept:
            counted.notes.append((name, None, f"{wrong - kept} more lines could not be read"))
    return counted


def is_locked(lock: Path) -> bool:
    """Whether a process on this machine holds a run's lock, if the system can tell without touching it."""
    try:
        found = lock.stat()
        locks = Path("/proc/locks").read_text(encoding="ascii").splitlines() if sys.platform == "linux" else []
    except (OSError, UnicodeDecodeError):
        return False
    # "1: FLOCK  ADVISORY  WRITE 812 fd:01:5678 0 EOF"
    return any(len(words := line.split()) > 5 and words[5].endswith(f":{found.st_ino}") for line in locks)


def _stat(path: Path) -> tuple[int, int, int] | None:
    try:
        found = path.stat()
    except OSError:
        return None
    return found.st_ino, found.st_size, found.st_mtime_ns


def _size(path: Path) -> int | None:
    found = _stat(path)
    return None if found is None else found[1]
