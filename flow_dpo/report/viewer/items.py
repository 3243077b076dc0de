"""One item, whole: read from its file by seeks alone, drawn by the view models, with its neighbours.

    item(shelf, 17, shelves)     {"kind": "tree", "source": "train", "n": 17, "total": 512, "elsewhere": [...], ...}

Invariant: what is shown of an item is what its file holds now; where that is no longer what was indexed, it is refused,
and the index soon follows.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from flow_dpo.core.errors import DataError
from flow_dpo.report.viewer import item_views, queries, tree_view
from flow_dpo.report.viewer.columns import MAIN
from flow_dpo.report.viewer.found import opened
from flow_dpo.report.viewer.lines import parse_line, read_at
from flow_dpo.report.viewer.shelf import Shelf

_FILES = {"pair": "pairs.jsonl", "scored": "scored.jsonl", "learned": "learned.jsonl"}
_MOST_LINES = 2_000
"""Rows of examples of one tree that are read."""


class Missing(DataError):
    """There is no such source, item or resource."""


def item(shelf: Shelf, n: int, shelves: Sequence[Shelf]) -> dict[str, Any]:
    """One item of a source. Raises `Missing` where there is none of this number, `DataError` where it cannot be
    read."""
    source = shelf.source
    main, schema = MAIN[source.kind]
    place = None
    if shelf.index.ready:
        with shelf.index.reading() as database:
            place = queries.place(database, n)
    if place is None:
        raise Missing(f"expected an item of {source.name}, found none with the number {n}")
    row = _row(shelf, main, place.offset, place.length)
    where = f"{main}, line {n + 1}"
    if schema == "tree":
        examples = [
            _row(shelf, _FILES[kind], offset, length)
            for kind, offset, length in place.lines[:_MOST_LINES]
            if kind != "learned"
        ]
        learned = [
            _row(shelf, _FILES[kind], offset, length)
            for kind, offset, length in place.lines[:_MOST_LINES]
            if kind == "learned"
        ]
        found = _drawn(where, lambda: tree_view.tree_view(row, examples, learned, shelf.token_texts()))
    else:
        found = _drawn(where, lambda: item_views.item_view(source.kind, row))
    total = shelf.value()["num_items"]
    own = {"source": source.id, "n": n, "total": total, "batch": shelf.batch_of(n), "stamp": shelf.stamp}
    return {**found, **own, "elsewhere": _elsewhere(place, shelf, shelves)}


def _row(shelf: Shelf, name: str, offset: int, length: int) -> Mapping[str, Any]:
    try:
        with opened(shelf.source, name).open("rb") as file:
            return parse_line(read_at(file, offset, length))
    except OSError as error:
        raise DataError(
            f"expected {name} of {shelf.source.name}, found that it cannot be read: {error.strerror}"
        ) from error
    except DataError as error:
        raise DataError(f"{name}: {error}") from error


_BROKEN = (KeyError, TypeError, ValueError, AttributeError, IndexError, OverflowError, RecursionError)


def _drawn(where: str, draw: Callable[[], dict[str, Any]]) -> dict[str, Any]:
    """What a view model makes of a row. A row of unforeseen shape is refused."""
    try:
        return draw()
    except _BROKEN as error:
        raise DataError(f"{where}: expected a row that can be drawn, found {type(error).__name__}: {error}") from error


def _elsewhere(place: queries.Place, own: Shelf, shelves: Sequence[Shelf]) -> list[dict[str, Any]]:
    """The same problem in other sources, and a second time in this one."""
    found: list[dict[str, Any]] = []
    for shelf in shelves if place.id else ():
        if not shelf.index.ready:
            continue
        with shelf.index.reading() as database:
            for n, status, version in queries.same_problem(database, place.id):
                if shelf is not own or n != place.n:
                    facts = {"source": shelf.source.id, "name": shelf.source.name, "kind": shelf.source.kind}
                    found.append({**facts, "n": n, "status": status, "version": version})
    return found
