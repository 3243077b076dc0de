"""Put a comparison's table into a page, between the two lines that mark its place.

python studies/put_table.py studies/recipes.md studies/recipes/comparison.md
"""

from __future__ import annotations

import sys
from pathlib import Path

BEGIN, END = "<!-- table -->", "<!-- end of table -->"


def put(page: str, table: str) -> str:
    """The page with this table in it. Raises `ValueError` where it does not mark one place for it."""
    before, begin, rest = page.partition(BEGIN)
    _, end, after = rest.partition(END)
    if not begin or not end or BEGIN in after:
        raise ValueError(f"expected one {BEGIN} and one {END} behind it, found other marks")
    return f"{before}{BEGIN}\n\n{table.strip()}\n\n{END}{after}"


if __name__ == "__main__":
    page, table = map(Path, sys.argv[1:])
    page.write_text(put(page.read_text(encoding="utf-8"), table.read_text(encoding="utf-8")), encoding="utf-8")
