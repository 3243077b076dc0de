"""Lists of items: the filters, orders and counts that the page requests from an index.

    wanted = Wanted.of({"role": "answer", "flipped": "1", "sort": "-accuracy", "limit": "100"})
    total(database, wanted)        1_204
    numbers(database, wanted)      [17, 3, 250, ...]                the items to show
    rows(database, [17, 3, 250])   [{"n": 17, "id": "gsm8k/17", "status": "wrong", "by_role": {"answer": 2}, ...}, ...]

The page of a static copy filters by the same rules in JavaScript. Invariant: an order is total (ties by time, items
without a value last in both directions), and an unknown parameter is refused.
"""

from __future__ import annotations

import json
import re
import sqlite3
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from flow_dpo.core.errors import DataError
from flow_dpo.report.viewer.columns import SHOWN
from flow_dpo.report.viewer.tables import COLUMNS, TEXTS, place_of

MOST = 500
"""Most rows of one answer."""
_SORTS = {
    "time": "n",
    "accuracy": "accuracy",
    "examples": "pairs + scored",
    "tokens": "tokens",
    "margin": "margin",
}
"""The column of each order; with "-" before its name, the largest come first."""
_EXAMPLES = {"pair": "pairs > 0", "scored": "scored > 0", "none": "coalesce(pairs, 0) + coalesce(scored, 0) = 0"}
_NUMBER = re.compile(r"[0-9]{1,15}")
_RANGE = re.compile(r"([0-9]{0,15})(?:(-)([0-9]{0,15}))?")
_FACETS = 60
"""Most values of a level or subject that are listed; the most frequent ones."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Wanted:
    """Which items are wanted, in which order, and which part of that list."""

    where: str = "1"
    values: tuple[Any, ...] = ()
    order: str = "n"
    offset: int = 0
    limit: int = 100

    @classmethod
    def of(cls, params: Mapping[str, str]) -> Wanted:
        """The query for these parameters. Raises `DataError` for one that is wrong or unknown."""
        refuse_unknown(params, _PARAMS)
        conditions: list[str] = []
        values: list[Any] = []
        for name, value in params.items():
            for condition, own in _condition(name, value, params) if value else ():
                conditions.append(condition)
                values += own
        limit = integer(params, "limit", 100)
        if limit > MOST:
            raise DataError(f"expected a limit of at most {MOST}, found {limit}")
        return cls(
            where=" AND ".join(conditions) or "1",
            values=tuple(values),
            order=_order(params.get("sort") or "time"),
            offset=integer(params, "offset", 0),
            limit=limit,
        )


def _order(sort: str) -> str:
    what = _SORTS.get(sort.removeprefix("-"))
    if what is None:
        raise DataError(
            f"expected sort to be one of {', '.join(_SORTS)}, or that with a - before it, found {sort!r:.40}"
        )
    direction = " DESC" if sort.startswith("-") else ""
    return f"n{direction}" if what == "n" else f"{what} IS NULL, {what}{direction}, n"


def _condition(name: str, value: str, params: Mapping[str, str]) -> list[tuple[str, Sequence[Any]]]:
    """The SQL conditions of one parameter, with their values."""
    if name == "q":
        return [("n IN (SELECT n FROM texts WHERE instr(find, ?))", [value.strip().lower()])]
    if name in ("status", "level", "subject"):
        return [(f"{name} = ?", [value])]
    if name in ("role", "depth"):
        if name == "depth" and params.get("role"):
            return []  # both are one condition, added once
        depth = f"{integer(params, 'depth', 0)} " if params.get("depth") else ""
        role = place_of(params["role"], None)[:-1] if params.get("role") else '":'
        return [("instr(places, ?)", [role + depth])]
    if name == "examples":
        if value not in _EXAMPLES:
            raise DataError(f"expected examples to be one of {', '.join(_EXAMPLES)}, found {value!r:.40}")
        return [(_EXAMPLES[value], [])]
    if name in ("flipped", "ungraded"):
        if value not in ("0", "1"):
            raise DataError(f"expected {name} to be 1, found {value!r:.40}")
        condition = "flipped = 1" if name == "flipped" else "ungraded > 0"
        return [(condition, [])] if value == "1" else []
    if name == "version":
        found = _RANGE.fullmatch(value)
        if found is None or value == "-":
            raise DataError(f"expected version to be a number or a range, such as 3, 3-9 or 3-, found {value!r:.40}")
        low, dash, high = found.groups()
        return [("version BETWEEN ? AND ?", [int(low or 0), int(high or 2**53) if dash else int(low)])]
    if name == "from":
        return [("n >= ?", [integer(params, "from", 0)])]
    return [("n < ?", [integer(params, "to", 0)])] if name == "to" else []


_PARAMS = frozenset({"source", "offset", "limit", "sort", "q", "role", "depth", "status", "flipped", "examples",
                     "ungraded", "version", "from", "to", "level", "subject"})  # fmt: skip


def refuse_unknown(params: Mapping[str, str], known: frozenset[str]) -> None:
    """Raise `DataError` for an unknown parameter, or for one that is not valid text."""
    for name, value in params.items():
        if name not in known:
            raise DataError(f"expected one of {', '.join(sorted(known))}, found the parameter {name!r:.40}")
        if any("\ud800" <= char <= "\udfff" for char in value):
            raise DataError(f"expected {name} to be Unicode text, found half a surrogate pair in it")


def integer(params: Mapping[str, str], name: str, default: int) -> int:
    """A parameter as a whole number from 0, read strictly. Raises `DataError`."""
    value = params.get(name)
    if value is None or value == "":
        return default
    if not (value.isascii() and _NUMBER.fullmatch(value)):
        raise DataError(f"expected {name} to be a whole number from 0, found {value!r:.40}")
    return int(value)


# ---- answers ---------------------------------------------------------------------------------------------------------


def total(database: sqlite3.Connection, wanted: Wanted) -> int:
    """The number of wanted items."""
    return database.execute(f"SELECT count(*) FROM items WHERE {wanted.where}", wanted.values).fetchone()[0]


def numbers(database: sqlite3.Connection, wanted: Wanted) -> list[int]:
    """The numbers of the wanted items, at most `limit` from `offset` on, in order."""
    found = database.execute(
        f"SELECT n FROM items WHERE {wanted.where} ORDER BY {wanted.order} LIMIT ? OFFSET ?",
        (*wanted.values, wanted.limit, wanted.offset),
    )
    return [n for (n,) in found]


def rows(database: sqlite3.Connection, wanted: Sequence[int]) -> list[dict[str, Any]]:
    """The facts of these items, in this order."""
    names = [*TEXTS, *COLUMNS]
    query = f"""SELECT n, {", ".join(f'"{name}"' for name in names)} FROM items JOIN texts USING (n)
        WHERE n IN ({", ".join("?" * len(wanted))})"""
    found: dict[int, dict[str, Any]] = {}
    for n, *facts in database.execute(query, wanted):
        row: dict[str, Any] = {"n": n, **dict(zip(names, facts, strict=True))}
        row["flipped"] = None if row["flipped"] is None else bool(row["flipped"])
        row["places"] = own = _places(row["places"] or "")
        row["by_role"] = {role: len(depths) for role, depths in own.items()}
        found[n] = row
    return [found[n] for n in wanted if n in found]


def searched(database: sqlite3.Connection, wanted: Sequence[int]) -> dict[int, str]:
    """The text that a search covers, in lower case, of those of these items that show only the beginning of it."""
    found: dict[int, str] = {}
    for start in range(0, len(wanted), MOST):
        some = wanted[start : start + MOST]
        query = f"SELECT n, find FROM texts WHERE length(question) = ? AND n IN ({', '.join('?' * len(some))})"
        found |= dict(database.execute(query, (SHOWN, *some)))
    return found


_PLACE = re.compile(r'("(?:[^"\\]|\\.)*"):(\d*) ')


def _places(text: str) -> dict[str, list[int | None]]:
    """The depths of an item's examples, by role."""
    found: dict[str, list[int | None]] = {}
    for role, depth in _PLACE.findall(text):
        found.setdefault(json.loads(role), []).append(int(depth) if depth else None)
    return {role: sorted(found[role], key=lambda depth: -1 if depth is None else depth) for role in sorted(found)}


def facets(database: sqlite3.Connection) -> dict[str, Any]:
    """What can be filtered by, over all items: examples by role; items by status, level and subject; the versions; and
    the deepest example."""
    roles = dict(database.execute("SELECT role, count(*) FROM examples GROUP BY role ORDER BY role"))
    [(first, last, deepest)] = database.execute("SELECT min(version), max(version), max(depth) FROM items")
    return {
        "roles": roles,
        "statuses": _counts(database, "status"),
        "levels": _counts(database, "level"),
        "subjects": _counts(database, "subject"),
        "versions": None if first is None else [first, last],
        "max_depth": deepest,
    }


def _counts(database: sqlite3.Connection, name: str) -> dict[str, int]:
    query = f"SELECT {name}, count(*) FROM items WHERE {name} IS NOT NULL GROUP BY {name} ORDER BY 2 DESC, 1 LIMIT ?"
    return dict(database.execute(query, (_FACETS,)))


@dataclass(frozen=True, slots=True, kw_only=True)
class Place:
    """Where the line of an item is, and the lines that belong to it."""

    n: int
    id: str
    offset: int
    length: int
    lines: Sequence[tuple[str, int, int]]
    """The file's kind ("pair", "scored", "learned"), offset and length, in order."""


def place(database: sqlite3.Connection, n: int) -> Place | None:
    """Where an item is; None if there is none with this number."""
    query = "SELECT id, offset, length FROM items JOIN texts USING (n) WHERE n = ?"
    row = database.execute(query, (n,)).fetchone()
    if row is None:
        return None
    lines = database.execute(
        "SELECT kind, offset, length FROM (SELECT kind, line, offset, length FROM examples WHERE n = ?1 "
        "UNION ALL SELECT 'learned', line, offset, length FROM learned WHERE n = ?1) ORDER BY kind, line",
        (n,),
    )
    return Place(n=n, id=row[0], offset=row[1], length=row[2], lines=lines.fetchall())


def same_problem(database: sqlite3.Connection, name: str, most: int = 20) -> list[tuple[int, str, int | None]]:
    """The items of a problem: number, status and version."""
    query = "SELECT n, status, version FROM texts JOIN items USING (n) WHERE id = ? ORDER BY n LIMIT ?"
    return database.execute(query, (name, most)).fetchall()


def wrong_line(database: sqlite3.Connection, file: str, line: int) -> str:
    """What is wrong with a line that could not be read; "" if nothing is known."""
    query = "SELECT text FROM notes WHERE file = ? AND line = ?"
    row = database.execute(query, (file, line)).fetchone()
    return "" if row is None else f"{file}, line {line}: {row[0]}"
