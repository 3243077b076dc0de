"""Are numbers, names and differences written as a report writes them, and only where there are any?"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from filelock import FileLock

from flow_dpo.report import formatting
from flow_dpo.report.viewer.export import export
from tests.report.viewer.conftest import Open, served
from tests.support.report_sources import evaluation, run

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


def test_numbers_are_written_as_in_a_report(tmp_path: Path, visit: Open) -> None:
    """Also exactly between two decimals: 13 of 80."""
    values = [n / 80 for n in range(81)] + [n / 7 for n in range(8)] + [n / 16_000 for n in range(40)]
    with served([run(tmp_path / "one", [RIGHT])], tmp_path / "cache") as (address, _):
        page = visit(address).page

        def written(call: str, given: list[float]) -> list[str]:
            found = page.evaluate(f"(values) => values.map((value) => flowDpo.fmt.{call})", given)
            return [text.replace("\u00a0", " ").replace("\u2212", "-") for text in found]

        assert written("share(value)", values) == [formatting.share(value) for value in values]
        assert written("interval(value, value)", values) == [formatting.interval((value, value)) for value in values]
        for sign in (1, -1):
            given = [sign * value for value in values if value > 0.001]
            assert written("points(value)", given) == [formatting.points(value) for value in given]
            tenths = [100 * value for value in given]
            assert written("decimal(value)", tenths) == [formatting.decimal(value) for value in tenths]
        seconds = [value * 300 for value in values]
        assert written("seconds(value)", seconds) == [formatting.seconds(value) for value in seconds]


def test_a_path_keeps_what_it_is_known_by(tmp_path: Path, visit: Open) -> None:
    data = {"dataset_name": "/home/me/data/gsm8k", "dataset_config": "main", "dataset_split": "train"}
    one = run(tmp_path / "runs" / "a_long_name_of_a_run" / "seed0", [RIGHT], facts={"model": "/home/me/models/small"},
              config={"data": data})  # fmt: skip
    two = evaluation(tmp_path / "evaluation", run="/home/me/runs/train")
    summary = json.loads((two / "summary.json").read_text())
    (two / "summary.json").write_text(json.dumps(summary | {"dataset": "/home/me/gsm8k/test"}))
    with served([one, two], tmp_path / "cache") as (address, _):
        at = visit(address, width=700)
        cells = at.page.locator(".sources-table .path").all_inner_texts()
        assert cells == ["seed0", "\u2026/models/small", "\u2026/gsm8k/main/train", "evaluation",
                         "flow, adapters of \u2026/runs/train", "greedy", "\u2026/gsm8k/test"]  # fmt: skip
        broken = """[...document.querySelectorAll('.path .text')].filter((one) => one.getClientRects().length > 1)
            .map((one) => one.textContent)"""
        for width in (720, 900, 970, 1400):
            at.page.set_viewport_size({"width": width, "height": 900})
            assert at.page.evaluate(broken) == [], "no part of a path is broken in two"
            wide = "document.documentElement.scrollWidth - document.documentElement.clientWidth"
            assert at.page.evaluate(wide) <= 0, f"the tables fit into {width} px"
        at.go("#/s/seed0")
        text = at.page.inner_text(".page-head")
        assert text.endswith("\u2026/models/small \u00b7 \u2026/gsm8k/main/train")


def test_texts_of_two_vocabularies(tmp_path: Path, visit: Open) -> None:
    for name, words, model, by in (("one", "6 + 8 = 14", "a", 0), ("two", "6 + 8 = 14", "b", 1),
                                   ("three", "6 + 8 = 15", "b", 2), ("four", "6 + 8 = 14", "a", 2)):  # fmt: skip
        made = run(tmp_path / "all" / name, [RIGHT], words=words, facts={"model": model})
        row = json.loads((made / "trees.jsonl").read_text())
        for node in row["nodes"]:
            node["token_ids"] = [id + by for id in node["token_ids"]]
        (made / "trees.jsonl").write_text(json.dumps(row) + "\n")
    with served([tmp_path / "all"], tmp_path / "cache") as (address, _):
        at = visit(f"{address}#/compare/one/0/two/0")
        said = at.page.locator(".differences p").last
        assert said.inner_text() == "Both texts are the same, in other tokens."
        at.go("#/compare/one/0/three/0")
        at.until(lambda: said.inner_text() == "They differ after 9\u00a0equal characters.")
        at.go("#/compare/two/0/three/0")
        at.until(lambda: said.inner_text() == "They first differ at token 1, after 9\u00a0equal characters.")
        at.go("#/compare/one/0/one/0")
        at.until(lambda: said.inner_text() == "Both texts are the same.")


def test_a_copy_of_a_run_in_progress_does_not_run(tmp_path: Path, visit: Open) -> None:
    one = run(tmp_path / "one", [RIGHT] * 4, facts={"num_problems": 100})
    with FileLock(one / ".lock"), served([one], tmp_path / "cache") as (address, library):
        assert visit(address).page.locator(".live-dot").count() == 1
        export(library, tmp_path / "site", num_items=3)
    page = visit((tmp_path / "site" / "index.html").as_uri()).page
    assert page.locator(".source-state").inner_text() == "running when copied"
    assert page.locator(".live-dot").count() == 0
