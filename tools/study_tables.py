"""The tables of a published study's README.md, written from its comparison.json between the two lines that mark them.

    python -m tools.study_tables studies/recipes

Invariant: the numbers are those of `flow-dpo report`, written by its own formatters.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

from flow_dpo.report.comparison_section import summary_tables
from flow_dpo.report.document import Table

BEGIN, END = "<!-- tables -->", "<!-- end of tables -->"


def to_markdown(table: Table) -> str:
    """The table as Markdown; a bar in a cell is escaped."""
    marks = ["---" if column in table.wordy else "---:" for column in range(len(table.columns))]
    rows = [[cell.replace("|", "\\|") for cell in row] for row in (table.columns, *table.rows)]
    lines = [f"| {' | '.join(row)} |" for row in (rows[0], marks, *rows[1:])]
    return f"**{table.caption}**\n\n" + "\n".join(lines)


def insert_tables(page: str, folder: Path) -> str:
    """The page with the folder's tables in it. Raises `ValueError` unless it marks exactly one place for them."""
    before, begin, rest = page.partition(BEGIN)
    _, end, after = rest.partition(END)
    if not begin or not end or BEGIN in after:
        raise ValueError(f"expected one {BEGIN} and one {END} after it, found other marks")
    found = json.loads((folder / "comparison.json").read_text(encoding="utf-8"))
    tables = "\n\n".join(to_markdown(table) for table in summary_tables(found))
    return f"{before}{BEGIN}\n\n{tables}\n\n{END}{after}"


if __name__ == "__main__":
    study = Path(sys.argv[1])
    page = study / "README.md"
    page.write_text(insert_tables(page.read_text(encoding="utf-8"), study), encoding="utf-8")
