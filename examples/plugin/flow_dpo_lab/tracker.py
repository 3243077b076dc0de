"""A tracker in a file: one line of CSV a number, in the run folder.

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
        """The file is found again by its path."""
        self.path = Path(id or folder / "curves.csv")
        return str(self.path)

    def log(self, numbers: Mapping[str, float], step: int) -> None:
        with self.path.open("a", newline="", encoding="utf-8") as file:
            csv.writer(file).writerows((step, name, value) for name, value in numbers.items())

    def table(self, rows: Sequence[Sequence[str]], step: int) -> None:
        """Solutions are in trees.jsonl."""

    def attach(self, path: Path) -> None:
        """Files lie in the run folder already."""

    def end(self, *, failed: bool) -> None:
        """Every line is written when it comes."""
