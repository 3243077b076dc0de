"""The pictures of docs/viewer.md: screenshots of the viewer on the quick start, taken in a real browser.

    python -m tools.viewer_pictures [RUN]      rewrites docs/pictures/viewer-*.png (extra "dev", and Chromium)

RUN is a finished quick start (default: runs/quickstart).
"""

from __future__ import annotations

import sys
import tempfile
from pathlib import Path

from playwright.sync_api import sync_playwright

from flow_dpo.report.viewer.export import export
from flow_dpo.report.viewer.library import Library

FOLDER = Path(__file__).resolve().parents[1] / "docs" / "pictures"
CHROMIUM = "/usr/bin/chromium"
PICTURES = {"viewer-problems.png": "#/s/{id}?sort=-margin&flipped=1", "viewer-tree.png": "#/s/{id}/{n}"}


def draw(run: Path) -> None:
    """Take all pictures of a run: the list of flipped problems, and the first of them with pairs."""
    with tempfile.TemporaryDirectory() as folder, Library([run]) as library, sync_playwright() as playwright:
        export(library, Path(folder) / "copy", num_items=10_000)
        id = library.sources[0].id
        found = library.get("items", {"source": id, "flipped": "1", "examples": "pair", "sort": "tokens", "limit": "1"})
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox", "--disable-gpu"])
        page = browser.new_page(viewport={"width": 1200, "height": 760}, color_scheme="light")
        for name, route in PICTURES.items():
            address = (Path(folder) / "copy" / "index.html").as_uri()
            page.goto(address + route.format(id=id, n=found["rows"][0]["n"]))
            page.reload()
            page.wait_for_load_state("networkidle")
            page.wait_for_timeout(500)
            page.screenshot(path=FOLDER / name)
        browser.close()


if __name__ == "__main__":
    draw(Path(sys.argv[1] if len(sys.argv) > 1 else "runs/quickstart"))
