"""The index of one source: an SQLite file with the position of each row and the columns by which it is listed.

    index = Index(source, folder)        nothing is read yet
    while index.step(): ...              a few thousand more lines each time; False if there is nothing new
    with index.reading() as database: ...

It is in the user's cache, never in a run, and is extended as the files grow. Several viewers can share one: each step
is a transaction that first checks how far the index is. Invariant: after any sequence of steps, its content is what one
pass over the current files would give; files that were changed, replaced or shortened are read again.
"""

from __future__ import annotations

import hashlib
import os
import sqlite3
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

from flow_dpo.core.errors import DataError, StorageError
from flow_dpo.report.viewer.columns import COMPANIONS, MAIN
from flow_dpo.report.viewer.found import ViewSource, opened
from flow_dpo.report.viewer.lines import Line, read_lines
from flow_dpo.report.viewer.tables import TABLES, VERSION, add_companions, add_items

STEP = 4 * 2**20
"""Bytes of a file that are read in one transaction."""
_BLOCK = 4096
"""Bytes at the beginning of a file, and before the position read so far, by which the file is recognised."""
_TRIES = 3
_NOTES = 100
"""Most notes kept for one file."""


@dataclass(frozen=True, slots=True, kw_only=True)
class _Seen:
    """A file as it is, or as it was when the index last read it."""

    device: int
    inode: int
    size: int
    changed: int
    """When its content, name or permissions last changed, in nanoseconds."""


@dataclass(slots=True, kw_only=True)
class _Read:
    """How much of a file is indexed; a row of `files`."""

    seen: _Seen
    offset: int = 0
    line: int = 0
    head: bytes = b""
    tail: bytes = b""
    wrong: int = 0
    """Lines that could not be read."""


class Index:
    """The index of one source, in `folder`."""

    def __init__(self, source: ViewSource, folder: Path, *, yield_to: Callable[[], None] = lambda: None) -> None:
        """`yield_to` is called at every line, and returns when nobody waits for an answer."""
        self.source = source
        self._main, self._schema = MAIN[source.kind]
        self.folder = folder
        self.names = (self._main, *(COMPANIONS if source.kind == "run" else ()))
        digest = hashlib.sha256(os.fsencode(source.path.resolve())).hexdigest()[:32]
        self._path = folder / f"{digest}-{VERSION}.sqlite"
        self._yield_to = yield_to
        self._known: dict[str, _Seen | None] = {}
        """The state of the files when everything in them was indexed."""
        self._writer: sqlite3.Connection | None = None
        self._opened: tuple[int, int] | None = None
        """Device and inode of the file that `_writer` writes."""
        self._failures = 0
        self.ready = False
        """Whether it can be queried."""
        self.progress = 0.0
        """Share of the bytes that are indexed; 1.0 if there are none."""

    # ---- reading -----------------------------------------------------------------------------------------------------

    @contextmanager
    def reading(self) -> Iterator[sqlite3.Connection]:
        """A connection for queries, which sees the index as the last step left it. Raises `DataError` if the index
        cannot be read."""
        try:
            address = f"{self._path.absolute().as_uri()}?mode=ro"
            with closing(sqlite3.connect(address, timeout=10, isolation_level=None, uri=True)) as database:
                database.execute("PRAGMA query_only = 1")
                database.execute("BEGIN")
                yield database
        except sqlite3.Error as error:
            raise DataError(
                f"expected the index of {self.source.name}, found {error}; ask again in a moment"
            ) from error

    # ---- writing -----------------------------------------------------------------------------------------------------

    def is_behind(self) -> bool:
        """Whether there is something new to index."""
        return self._writer is None or self._is_gone() or self._look_at_all() != self._known

    def step(self) -> bool:
        """Index some of what is new; returns False if there is nothing. Raises `StorageError` if the index cannot be
        written."""
        seen = self._look_at_all()
        if self._writer is not None and self._is_gone():
            self.close()
            self._known = {}
        if self._writer is not None and seen == self._known:
            return False
        try:
            return self._step(seen)
        except OSError as error:
            self.close()
            raise StorageError(f"could not write the index {self._path}: {error.strerror}") from error
        except sqlite3.DatabaseError as error:
            self.close()
            self._failures += 1
            if self._failures > _TRIES:
                raise StorageError(f"could not write the index {self._path}: {error}; free some space") from error
            operational = isinstance(error, sqlite3.OperationalError) and error.sqlite_errorcode != sqlite3.SQLITE_ERROR
            if not operational:  # it is damaged, is not an index, or lacks a table
                self._throw_away()
            return True

    def close(self) -> None:
        """Close the file."""
        if self._writer is not None:
            self._writer.close()
            self._writer = None

    def _step(self, seen: dict[str, _Seen | None]) -> bool:
        database = self._open()
        with database:  # commits, or rolls back
            database.execute("BEGIN IMMEDIATE")
            read = self._validated(database, seen)
            whole = True
            for name in self.names:  # rows that belong to a tree are read after all trees
                state = seen[name]
                if state is not None and whole:
                    whole = self._read_file(database, name, read.setdefault(name, _Read(seen=state)), state)
            self._keep(database, read, seen, whole=whole)
        self._known = seen if whole else {}
        self._failures = 0
        self.ready = True
        return not whole

    def _look_at_all(self) -> dict[str, _Seen | None]:
        # The main file last: it is written first, so the tree of every example that is seen is seen as well.
        return {name: self._look(name) for name in reversed(self.names)}

    def _look(self, name: str) -> _Seen | None:
        try:
            found = opened(self.source, name).stat()
        except (OSError, DataError):
            return None
        return _Seen(device=found.st_dev, inode=found.st_ino, size=found.st_size, changed=found.st_ctime_ns)

    def _is_gone(self) -> bool:
        """Whether somebody removed or replaced the file that is being written."""
        try:
            return _identity(self._path) != self._opened
        except OSError:
            return True  # opening it again finds out why

    def _open(self) -> sqlite3.Connection:
        if self._writer is None:
            self._path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
            self._writer = database = sqlite3.connect(
                self._path, timeout=30, isolation_level=None, check_same_thread=False
            )
            database.execute("PRAGMA journal_mode = WAL")
            database.execute("PRAGMA synchronous = NORMAL")
            database.execute("PRAGMA cache_size = -16384")
            with database:
                database.execute("BEGIN IMMEDIATE")
                tables = {name for (name,) in database.execute("SELECT name FROM sqlite_master WHERE type = 'table'")}
                if "meta" not in tables or database.execute("SELECT version FROM meta").fetchone() != (VERSION,):
                    _make(database, tables)
            self._opened = _identity(self._path)
        return self._writer

    def _throw_away(self) -> None:
        for suffix in ("", "-wal", "-shm"):
            self._path.with_name(self._path.name + suffix).unlink(missing_ok=True)
        self._known = {}

    def _validated(self, database: sqlite3.Connection, seen: dict[str, _Seen | None]) -> dict[str, _Read]:
        """How far each file was read; empty, with emptied tables, if one of them is no longer what was read."""
        rows = database.execute("SELECT * FROM files").fetchall()
        read = {
            name: _Read(
                seen=_Seen(device=int(device), inode=int(inode), size=size, changed=int(changed)),
                offset=offset, line=line, head=head, tail=tail, wrong=wrong,
            )
            for name, device, inode, size, changed, offset, line, head, tail, wrong in rows
        }  # fmt: skip
        if all(self._grew(name, one, seen.get(name)) for name, one in read.items()):
            return read
        for table in ("files", "notes", "items", "texts", "examples", "learned"):
            database.execute(f"DELETE FROM {table}")
        return {}

    def _grew(self, name: str, read: _Read, seen: _Seen | None) -> bool:
        """Whether a file is unchanged, except perhaps for more at its end."""
        was = read.seen
        if seen is None or (seen.device, seen.inode) != (was.device, was.inode) or seen.size < read.offset:
            return False
        if seen.size <= was.size and seen.changed != was.changed:
            return False  # overwritten
        try:
            with opened(self.source, name).open("rb") as file:
                return _marks(file, read.offset) == (read.head, read.tail)
        except (OSError, DataError):
            return False

    def _read_file(self, database: sqlite3.Connection, name: str, read: _Read, seen: _Seen) -> bool:
        """Index the next lines of one file; returns whether it was read to its end."""
        end = min(seen.size, read.offset + STEP)
        try:
            with opened(self.source, name).open("rb") as file:
                lines = self._lines(file, read, end, seen.size)
                writer = add_items if name == self._main else add_companions
                noted = writer(database, self._schema if name == self._main else COMPANIONS[name], lines)
                read.head, read.tail = _marks(file, read.offset)
        except (OSError, DataError) as error:
            words = error.strerror if isinstance(error, OSError) else error
            noted = [(None, f"expected rows, found that the file cannot be read: {words}")]
            database.execute("DELETE FROM notes WHERE file = ? AND line IS NULL", (name,))
            read.offset = seen.size
        kept = noted[: max(0, _NOTES - read.wrong)]
        database.executemany("INSERT INTO notes VALUES (?, ?, ?)", [(name, line, words) for line, words in kept])
        read.wrong += len(noted)
        return read.offset >= seen.size or end >= seen.size

    def _lines(self, file: BinaryIO, read: _Read, end: int, size: int) -> Iterator[Line]:
        """The lines from the last position to `end`; at least one if there is one before `size`."""
        while True:
            found = False
            for line in read_lines(file, start=read.offset, number=read.line, end=end):
                self._yield_to()
                yield line
                read.offset, read.line = line.offset + line.length, line.number
                found = True
            if found or end >= size:
                return
            end = min(size, end + 16 * STEP)

    def _keep(
        self, database: sqlite3.Connection, read: dict[str, _Read], seen: dict[str, _Seen | None], *, whole: bool
    ) -> None:
        """Record how far the files were read."""
        total = done = 0
        for name, one in read.items():
            state = seen[name]
            assert state is not None, name
            database.execute(
                "INSERT OR REPLACE INTO files VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?)",
                (name, str(state.device), str(state.inode), state.size, str(state.changed), one.offset, one.line,
                 one.head, one.tail, one.wrong),
            )  # fmt: skip
        for name, state in seen.items():
            total += state.size if state else 0
            done += read[name].offset if name in read else 0
        self.progress = 1.0 if whole or not total else min(0.999, done / total)
        database.execute("UPDATE meta SET revision = revision + 1")


def _identity(path: Path) -> tuple[int, int]:
    found = path.stat()
    return found.st_dev, found.st_ino


def _make(database: sqlite3.Connection, tables: set[str]) -> None:
    for table in tables:
        if not table.startswith("sqlite_"):
            database.execute(f'DROP TABLE IF EXISTS "{table}"')
    for statement in TABLES.split(";"):
        database.execute(statement)
    database.execute("INSERT INTO meta VALUES (?, 0)", (VERSION,))


def _marks(file: BinaryIO, offset: int) -> tuple[bytes, bytes]:
    """Digests of the first block, and of the last one before `offset`."""
    found: list[bytes] = []
    for start in (0, max(0, offset - _BLOCK)):
        file.seek(start)
        found.append(hashlib.blake2b(file.read(min(_BLOCK, offset - start)), digest_size=16).digest())
    return found[0], found[1]
