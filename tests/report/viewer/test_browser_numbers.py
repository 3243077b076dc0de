"""Are numbers, names and differences written as a report writes them, and only where there are any?"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from tests.report.viewer.conftest import Open, served
from tests.support.report_sources import run

pytestmark = pytest.mark.xdist_group("browser")

RIGHT = ("correct",) * 5


def test_a_run_has_no_value_beyond_its_end(tmp_path: Path, visit: Open) -> None:
    paths = [run(tmp_path / name, [RIGHT] * num) for name, num in (("long", 40), ("short", 8))]
    with served(paths, tmp_path / "cache") as (address, _):
        at = visit(f"{address}#/?y=progressive/accuracy")
        chart = at.page.locator(".big-chart")

        def read(*keys: str) -> list[list[str]]:
            chart.focus()
            for key in keys:
                at.page.keyboard.press(key)
            shown = at.page.locator(".chart-tip:not([hidden]) li").all()
            return [[one.inner_text() for one in line.locator(".tip-name, strong").all()] for line in shown]

        whole = "100.0\u00a0%"
        assert read("Home") == [["long", whole], ["short", whole]]
        assert read("ArrowRight", "ArrowRight") == [["long", whole], ["short", whole]], "one batch beyond its end"
        assert read("ArrowRight") == [["long", whole], ["short", "\u2013"]]
        assert at.page.locator(".cross .dot").count() == 1
        assert at.page.locator(".chart-legend li strong").all_inner_texts() == [whole, "\u2013"]
        assert read("End", "ArrowDown") == [["long", whole], ["short", whole]], "at the end of the shorter one"


def test_the_reading_of_a_line(tmp_path: Path, visit: Open) -> None:
    with served([run(tmp_path / "one", [RIGHT])], tmp_path / "cache") as (address, _):
        page = visit(address).page

        def reading(points: list[Any], x: float) -> Any:
            found = page.evaluate("([points, x]) => flowDpo.charts.reading(points, x)", [points, x])
            return None if found is None else found["y"]

        line = [{"x": 10, "y": None}, {"x": 20, "y": 2}, {"x": 30, "y": None}, {"x": 40, "y": 4}, {"x": 50, "y": None}]
        assert [reading(line, x) for x in (-1, 0, 10, 20, 29, 31, 40, 50, 60, 61)] == [
            None, 2, 2, 2, 2, 4, 4, 4, 4, None
        ]  # fmt: skip
        assert [reading([{"x": 5, "y": 1}], x) for x in (4, 5, 6)] == [None, 1, None]
        assert reading([], 1) is None
