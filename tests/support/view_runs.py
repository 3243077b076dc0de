"""A run of the seed model for tests of the viewer, and what an index holds of it."""

from __future__ import annotations

import json
import sqlite3
from contextlib import closing
from pathlib import Path
from typing import Any

from flow_dpo.cli import train
from flow_dpo.report.viewer.found import ViewSource
from flow_dpo.report.viewer.index import Index

FILES = ("trees.jsonl", "pairs.jsonl", "scored.jsonl", "learned.jsonl")


def seed_run(path: Path) -> Path:
    """Twelve problems in three batches, with pairs, scored completions and what was learned of them."""
    words = ["--max_problems", "12", "--problems_per_batch", "4", "--examples_per_update", "8"]
    assert train.train([*words, "--output_dir", str(path)]) == 0
    return path


def rows(path: Path) -> list[dict[str, Any]]:
    """The rows of a file."""
    return [json.loads(line) for line in path.read_text().splitlines()]


def source(path: Path, kind: str = "run") -> ViewSource:
    """A source at a path."""
    return ViewSource(id=path.name, name=path.name, kind=kind, path=path)


def indexed(path: Path, cache: Path, kind: str = "run") -> Index:
    """Its index, whole."""
    index = Index(source(path, kind), cache)
    while index.step():
        pass
    return index


def content(index: Index) -> dict[str, list[Any]]:
    """Every row of every table, without what differs from one copy of a file to another."""
    with index.reading() as database:
        found = {
            table: sorted(map(repr, database.execute(f"SELECT * FROM {table}")))
            for table in ("items", "texts", "examples", "learned", "notes")
        }
        found["files"] = sorted(
            map(repr, database.execute("SELECT name, offset, line, head, tail, wrong FROM files ORDER BY name"))
        )
    return found


def database_of(cache: Path) -> Path:
    """The one index in a cache."""
    [path] = cache.glob("*.sqlite")
    return path


def revision(path: Path) -> int:
    """How often an index was written to."""
    with closing(sqlite3.connect(path)) as database:
        return database.execute("SELECT revision FROM meta").fetchone()[0]
