"""The tables of an index, and how the lines of a file become their rows.

    add_items(database, "tree", lines)        one row of `items` and of `texts` for each line of trees.jsonl
    add_companions(database, "pair", lines)   one row of `examples` for each line of pairs.jsonl, counted at its tree

Invariant: a line that cannot be read adds nothing but what is returned about it: its number and its fault.
"""

from __future__ import annotations

import json
import sqlite3
from collections.abc import Iterator, Sequence
from typing import Any

from flow_dpo.core.errors import DataError
from flow_dpo.report.viewer.columns import SHOWN, Example, columns, example, row_of
from flow_dpo.report.viewer.lines import Line

VERSION = 4
"""Version of the tables and their contents; an index with another one is discarded."""
TABLES = """
CREATE TABLE meta (version INTEGER, revision INTEGER);
CREATE TABLE files (name TEXT PRIMARY KEY, device TEXT, inode TEXT, size INTEGER, changed TEXT, offset INTEGER,
    line INTEGER, head BLOB, tail BLOB, wrong INTEGER);
CREATE TABLE notes (file TEXT, line INTEGER, text TEXT);
CREATE TABLE items (n INTEGER PRIMARY KEY, offset INTEGER, length INTEGER, status TEXT, rollouts INTEGER,
    "right" INTEGER, wrong INTEGER, ungraded INTEGER, accuracy REAL, flipped INTEGER, pairs INTEGER, scored INTEGER,
    depth INTEGER, tokens INTEGER, version INTEGER, attempts INTEGER, yes REAL, margin REAL, draw INTEGER, level TEXT,
    subject TEXT, places TEXT);
CREATE TABLE texts (n INTEGER PRIMARY KEY, id TEXT, question TEXT, answer TEXT, gold TEXT, find TEXT);
CREATE INDEX texts_by_id ON texts (id);
CREATE TABLE examples (n INTEGER, kind TEXT, line INTEGER, offset INTEGER, length INTEGER, role TEXT,
    PRIMARY KEY (n, kind, line)) WITHOUT ROWID;
CREATE TABLE learned (n INTEGER, line INTEGER, offset INTEGER, length INTEGER, PRIMARY KEY (n, line)) WITHOUT ROWID;
"""
"""Numbers that a file system chooses are text: some need all 64 bits, and SQLite's integers have a sign."""
COLUMNS = (
    "status", "rollouts", "right", "wrong", "ungraded", "accuracy", "flipped", "pairs", "scored", "depth", "tokens",
    "version", "attempts", "yes", "margin", "draw", "level", "subject", "places",
)  # fmt: skip
"""The facts of an item in `items`, in order, after n, offset and length; searchable texts are in another table."""
TEXTS = ("id", "question", "answer", "gold")
_ITEM = f"INSERT INTO items VALUES ({', '.join('?' * (len(COLUMNS) + 3))})"

Noted = list[tuple[int | None, str]]
"""Lines and their faults."""


def add_items(database: sqlite3.Connection, schema: str, lines: Iterator[Line]) -> Noted:
    """Add these lines to `items` and `texts`; returns the faults of those that cannot be read."""
    noted: Noted = []
    items: list[Sequence[Any]] = []
    texts: list[Sequence[Any]] = []
    for line in lines:
        try:
            found = columns(schema, row_of(schema, line.content))
        except DataError as error:
            noted.append((line.number, str(error)))
            continue
        n = line.number - 1
        question = found.get("question")
        if schema == "tree":
            found |= {"pairs": 0, "scored": 0, "places": ""}
        items.append((n, line.offset, line.length, *map(found.get, COLUMNS)))
        shown = None if question is None else question[:SHOWN]
        others = (found.get("answer"), found.get("gold"))
        searched = "\n".join(each for each in (found["id"], question, *others) if each)
        texts.append((n, found["id"], shown, *others, searched.lower()))
    database.executemany(_ITEM, items)
    database.executemany("INSERT INTO texts VALUES (?, ?, ?, ?, ?, ?)", texts)
    return noted


def add_companions(database: sqlite3.Connection, schema: str, lines: Iterator[Line]) -> Noted:
    """Add these lines to `examples` or `learned`, and count them at their trees; returns the faults."""
    noted: Noted = []
    found: list[tuple[int, int, int, Example]] = []
    for line in lines:
        try:
            # The content is not kept: the lines of a step together are megabytes.
            found.append((line.number, line.offset, line.length, example(schema, line.content)))
        except DataError as error:
            noted.append((line.number, str(error)))
    items = _items_of(database, {one.problem for *_, one in found})
    rows: list[Sequence[Any]] = []
    changes: dict[int, list[Any]] = {}
    alone: list[tuple[int, str]] = []
    for number, offset, length, one in found:
        n = _item_of(one, items.get(one.problem, ()))
        if n is None:
            alone.append((number, one.problem))
        elif schema == "learned":
            rows.append((n, number, offset, length))
        else:
            rows.append((n, schema, number, offset, length, one.role))
            change = changes.setdefault(n, [0, None, None, ""])
            change[0] += 1
            change[1] = _larger(change[1], one.depth)
            change[2] = _larger(change[2], one.margin)
            change[3] += place_of(one.role, one.depth)
    if alone:  # otherwise a lost tree would cost one note per row
        more = f", and {len(alone) - 1:,} more such rows" if len(alone) > 1 else ""
        noted.append((alone[0][0], f"expected a problem that trees.jsonl has, found {alone[0][1]!r:.80}{more}"))
    if schema == "learned":
        database.executemany("INSERT INTO learned VALUES (?, ?, ?, ?)", rows)
        return noted
    database.executemany("INSERT INTO examples VALUES (?, ?, ?, ?, ?, ?)", rows)
    count = {"pair": "pairs", "scored": "scored"}[schema]
    database.executemany(
        f"UPDATE items SET {count} = {count} + ?1, depth = coalesce(max(depth, ?2), depth, ?2), "
        "margin = coalesce(max(margin, ?3), margin, ?3), places = places || ?4 WHERE n = ?5",
        [(*change, n) for n, change in changes.items()],
    )
    return noted


def place_of(role: str, depth: int | None) -> str:
    """A role and a depth as written in `places`: in quotes, so no role is part of another."""
    return f"{json.dumps(role)}:{'' if depth is None else depth} "


def _larger(one: Any, other: Any) -> Any:
    return other if one is None else one if other is None else max(one, other)


def _items_of(database: sqlite3.Connection, names: set[str]) -> dict[str, list[tuple[int, int | None]]]:
    """The items of each of these problems, with their versions, in order."""
    found: dict[str, list[tuple[int, int | None]]] = {}
    wanted = sorted(names)
    for start in range(0, len(wanted), 500):
        some = wanted[start : start + 500]
        marks = ", ".join("?" * len(some))
        query = f"SELECT id, n, version FROM texts JOIN items USING (n) WHERE id IN ({marks}) ORDER BY n"
        for name, n, version in database.execute(query, some):
            found.setdefault(name, []).append((n, version))
    return found


def _item_of(one: Example, items: Sequence[tuple[int, int | None]]) -> int | None:
    """The tree of an example: the problem's own or, if there are several, the first that its policy sampled."""
    if len(items) > 1:
        for n, version in items:
            if version == one.version:
                return n
    return items[0][0] if items else None
