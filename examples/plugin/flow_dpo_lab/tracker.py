"""A tracker that writes a CSV file in the run folder, one line per number.

flow-dpo train --report_to csv --max_problems 32
"""

from __future__ import annotations

import csv
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any


class Csv:
    """Appends "step,name,value" to curves.csv."""

    path = Path()

    def begin(self, *, folder: Path, project: str, name: str, id: str | None, settings: Mapping[str, Any]) -> str:
        """Returns the file's path as the id, by which a resumed run finds it again."""
        self.path = Path(id or folder / "curves.csv")
        return str(self.path)

    def log(self, numbers: Mapping[str, float], step: int) -> None:
        with self.path.open("a", newline="", encoding="utf-8") as file:
            csv.writer(file).writerows((step, name, value) for name, value in numbers.items())

    def table(self, rows: Sequence[Sequence[str]], step: int) -> None:
        """Does nothing: solutions are in trees.jsonl."""

    def attach(self, path: Path) -> None:
        """Does nothing: the files are in the run folder already."""

    def end(self, *, failed: bool) -> None:
        """Does nothing: every line is written as it comes."""
