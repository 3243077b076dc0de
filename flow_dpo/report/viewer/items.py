"""One complete item: read from its file by seeking, drawn by the view models, with links to the same problem elsewhere.

    item(shelf, 17, shelves)     {"kind": "tree", "source": "train", "n": 17, "total": 512, "elsewhere": [...], ...}

Invariant: an item is shown as its file holds it now. If that is no longer what was indexed, it is refused, and the
index soon follows.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

from flow_dpo.core.errors import DataError
from flow_dpo.report.viewer import item_views, queries, tree_view
from flow_dpo.report.viewer.columns import COMPANIONS, KEY, MAIN
from flow_dpo.report.viewer.found import opened
from flow_dpo.report.viewer.lines import mapping, parse_line, read_at, text
from flow_dpo.report.viewer.shelf import Shelf

_FILES = {kind: name for name, kind in COMPANIONS.items()}
_MOST_LINES = 2_000
"""Most rows of examples that are read for one tree."""


class Missing(DataError):
    """There is no such source, item or resource."""


def item(shelf: Shelf, n: int, shelves: Sequence[Shelf]) -> dict[str, Any]:
    """One item of a source. Raises `Missing` if there is none with this number, `DataError` if it cannot be read."""
    source = shelf.source
    main, schema = MAIN[source.kind]
    place = _place(shelf, n, main)
    where = f"{main}, line {n + 1}"
    notes: list[str] = []
    [row] = _rows(shelf, main, [(place.offset, place.length)], notes)
    if row is None:
        raise DataError(f"{where}: {'; '.join(notes)}")
    if _problem_of(schema, row) != place.id:
        raise DataError(f"{where}: expected the row that was indexed, found another; ask again in a moment")
    if schema == "tree":
        own = {kind: _own_rows(shelf, kind, place, notes) for kind in _FILES}
        examples = [*own["pair"], *own["scored"]]
        found = _drawn(where, lambda: tree_view.tree_view(row, examples, own["learned"], shelf.token_texts()))
    else:
        found = _drawn(where, lambda: item_views.item_view(source.kind, row))
        if source.kind == "judgements":
            found |= _compared(shelf, place.id, shelves, notes)
    elsewhere = _elsewhere(place, shelf, shelves, notes)
    found["notes"] = [*found.get("notes", ()), *notes]
    facts = {"source": source.id, "n": n, "total": shelf.num_items, "batch": shelf.batch_of(n), "stamp": shelf.stamp}
    return {**found, **facts, "elsewhere": elsewhere}


def _place(shelf: Shelf, n: int, main: str) -> queries.Place:
    """Where an item is. Raises `Missing` if there is none, with the fault of its line if that is known."""
    reason = ""
    if shelf.index.ready:
        with shelf.index.reading() as database:
            place = queries.place(database, n)
            if place is not None:
                return place
            reason = queries.wrong_line(database, main, n + 1)
    raise Missing(f"expected an item of {shelf.source.name}, found none with the number {n}{reason and f': {reason}'}")


def _problem_of(schema: str, row: Mapping[str, Any]) -> str:
    holder, name = {
        "tree": (mapping(row.get("problem")), "id"), "prediction": (row, "id"),
    }.get(schema, (row, "problem_id"))  # fmt: skip
    return text(holder.get(name), KEY) or ""


def _own_rows(shelf: Shelf, kind: str, place: queries.Place, notes: list[str]) -> list[Mapping[str, Any]]:
    """The rows of examples that belong to an item; an unreadable one is left out, with a note."""
    lines = [(offset, length) for each, offset, length in place.lines if each == kind]
    if len(lines) > _MOST_LINES:
        notes.append(f"{_FILES[kind]}: {len(lines) - _MOST_LINES:,} more rows are not shown")
        lines = lines[:_MOST_LINES]
    if not lines:
        return []
    try:
        rows = _rows(shelf, _FILES[kind], lines, notes)
    except DataError as error:
        notes.append(str(error))
        return []
    own = [row for row in rows if row is not None and text(row.get("problem_id"), KEY) == place.id]
    if len(own) < len([row for row in rows if row is not None]):
        notes.append(f"{_FILES[kind]}: expected the rows that were indexed, found others; ask again in a moment")
    return own


def _rows(
    shelf: Shelf, name: str, lines: Sequence[tuple[int, int]], notes: list[str]
) -> list[Mapping[str, Any] | None]:
    """The rows at these positions of a file; None for an unreadable one, with a note. Raises `DataError` if the file
    cannot be read."""
    found: list[Mapping[str, Any] | None] = []
    try:
        with opened(shelf.source, name).open("rb") as file:
            for offset, length in lines:
                try:
                    content = read_at(file, offset, length)
                    if len(content) < length:
                        raise DataError(
                            "expected the row that was indexed, found a shorter file; ask again in a moment"
                        )
                    found.append(parse_line(content))
                except DataError as error:
                    notes.append(f"{name}: {error}")
                    found.append(None)
    except OSError as error:
        raise DataError(
            f"expected {name} of {shelf.source.name}, found that it cannot be read: {error.strerror}"
        ) from error
    return found


def _compared(shelf: Shelf, problem: str, shelves: Sequence[Shelf], notes: list[str]) -> dict[str, Any]:
    """The two solutions that a judgement compares, and their problem, if the traces are among the sources; otherwise
    nothing, since no other file is read. Traces that cannot be read are left out, with a note."""
    traces = {other.source.path: other for other in shelves if other.source.kind == "traces" and other.index.ready}
    texts: dict[str, str | None] = {}
    found: dict[str, Any] = {}
    for name, path in zip("ab", shelf.side_paths, strict=False):
        other = traces.get(path) or traces.get(path.parent)
        row = None
        if other is not None:
            with _left_out(notes, "the solutions are not shown"):
                row = _trace_of(other, problem)
        texts[name] = None if row is None else text(row.get("solution"))
        if row is not None:
            found["problem"] = item_views.item_view("traces", row)["problem"]
    return found | {"texts": texts if any(texts.values()) else None}


def _trace_of(shelf: Shelf, problem: str) -> Mapping[str, Any] | None:
    """The first trace of a problem."""
    with shelf.index.reading() as database:
        same = queries.same_problem(database, problem, 1)
        place = queries.place(database, same[0][0]) if same else None
    if place is None:
        return None
    [row] = _rows(shelf, MAIN["traces"][0], [(place.offset, place.length)], [])
    return row if row is not None and row.get("problem_id") == problem else None


@contextmanager
def _left_out(notes: list[str], what: str) -> Iterator[None]:
    """Turns what cannot be read of another source into a note."""
    try:
        yield
    except DataError as error:
        notes.append(f"{what}: {error}")


_BROKEN = (KeyError, TypeError, ValueError, AttributeError, IndexError, OverflowError, RecursionError)


def _drawn(where: str, draw: Callable[[], dict[str, Any]]) -> dict[str, Any]:
    """What a view model makes of a row. A row of an unforeseen shape is refused."""
    try:
        return draw()
    except DataError as error:
        raise DataError(f"{where}: {error}") from error
    except _BROKEN as error:
        raise DataError(f"{where}: expected a row that can be drawn, found {type(error).__name__}: {error}") from error


def _elsewhere(place: queries.Place, own: Shelf, shelves: Sequence[Shelf], notes: list[str]) -> list[dict[str, Any]]:
    """The same problem in other sources, and further occurrences in this one. A source whose index cannot be read is
    left out, with a note."""
    found: list[dict[str, Any]] = []
    for shelf in shelves if place.id else ():
        if not shelf.index.ready:
            continue
        with _left_out(notes, "the same problem was not looked for everywhere"), shelf.index.reading() as database:
            for n, status, version in queries.same_problem(database, place.id):
                if shelf is not own or n != place.n:
                    facts = {"source": shelf.source.id, "name": shelf.source.name, "kind": shelf.source.kind}
                    found.append({**facts, "n": n, "status": status, "version": version})
    return found
