"""Tables of the measured speeds, wins and misses alike, written from benchmarks/results.json.

    python -m tools.speed_table        rewrites README.md and benchmarks/RESULTS.md between the two comments

benchmarks/speed.json lists the rows of README.md, each with one figure or several, and explains figures, by name, in
one line each. benchmarks/RESULTS.md has every figure. Invariants: no number in these tables is typed by hand, and every
miss has its reason; a test compares both pages with this program's output.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from benchmarks import measuring

ROOT = Path(__file__).resolve().parents[1]
ROWS = ROOT / "benchmarks" / "speed.json"
PAGES = {"short": ROOT / "README.md", "full": ROOT / "benchmarks" / "RESULTS.md"}
BEGIN, END = "<!-- speed: python -m tools.speed_table -->", "<!-- end of speed -->"

Row = Mapping[str, Any]
"""A figure as `measuring.keep` stores it."""


def short(rows: Sequence[Row], speed: Mapping[str, Any]) -> str:
    """README's table: what, target, found, met, why."""
    known = {row["name"]: row for row in rows}
    lines = ["| speed | target | found | | why |", "|---|---|---|---|---|"]
    for line in speed["rows"]:
        if not (found := [known[name] for name in line["figures"] if name in known]):
            continue  # measured on another machine, or not yet
        reaches = [*dict.fromkeys(row["reach"] for row in found)]
        whys = [*dict.fromkeys(speed["why"][name] for name in line["figures"] if name in speed["why"])]
        cells = [line["what"], ", ".join(reaches), ", ".join(f"{row['ratio']:.3g}" for row in found)]
        lines.append(_line(*cells, _verdict(found), "; ".join(whys)))
    return "\n".join(lines)


def full(rows: Sequence[Row], speed: Mapping[str, Any]) -> str:
    """The table of every figure, with its spread and the date of its measurement."""
    lines = ["| what | target | found (least to greatest) | | measured | why |", "|---|---|---|---|---|---|"]
    for row in rows:
        cells = (row["name"], row["reach"], measuring.found(row), _verdict([row]), row["date"])
        lines.append(_line(*cells, speed["why"].get(row["name"], "")))
    return "\n".join(lines)


def unexplained(rows: Sequence[Row], speed: Mapping[str, Any]) -> list[str]:
    """Figures that miss their target without a reason."""
    return [row["name"] for row in rows if row["met"] is False and not speed["why"].get(row["name"])]


def insert(page: str, table: str) -> str:
    """The page with this table between its comments. Raises `ValueError` unless it marks exactly one place for it."""
    if page.count(BEGIN) != 1 or page.count(END) != 1:
        raise ValueError(f"expected one {BEGIN} and one {END}, found {page.count(BEGIN)} and {page.count(END)}")
    marked = f"{re.escape(BEGIN)}.*?{re.escape(END)}"
    return re.sub(marked, lambda _: f"{BEGIN}\n\n{table}\n\n{END}", page, flags=re.DOTALL)


def written() -> dict[Path, str]:
    """The text of both pages, with the stored figures. Raises `ValueError` for a miss without a reason."""
    rows = json.loads(measuring.RESULTS.read_text(encoding="utf-8"))
    speed = json.loads(ROWS.read_text(encoding="utf-8"))
    if silent := unexplained(rows, speed):
        raise ValueError(f"expected a reason in {ROWS.name} for every miss, found none for {silent}; write one there")
    tables = {"short": short(rows, speed), "full": full(rows, speed)}
    return {page: insert(page.read_text(encoding="utf-8"), tables[kind]) for kind, page in PAGES.items()}


def _verdict(rows: Sequence[Row]) -> str:
    missed = sum(row["met"] is False for row in rows)
    if missed:
        return "**missed**" if missed == len(rows) else f"**missed** {missed} of {len(rows)}"
    return "met" if any(row["met"] for row in rows) else ""


def _line(*cells: str) -> str:
    return f"| {' | '.join(cell.replace('|', chr(92) + '|') for cell in cells)} |"


if __name__ == "__main__":
    for path, text in written().items():
        path.write_text(text, encoding="utf-8")
