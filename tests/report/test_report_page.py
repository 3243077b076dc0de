"""Can a person read the page: at a phone's, a laptop's and a wide screen's width, and does it lead to the solutions?"""

from __future__ import annotations

import itertools
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from flow_dpo.cli import main
from flow_dpo.core.errors import DataError
from flow_dpo.report.compose import compose
from flow_dpo.report.document import Effect, Forest
from flow_dpo.report.html import render_page
from flow_dpo.report.plots import Scale, lay_out_forest
from flow_dpo.report.sources import read_sources
from flow_dpo.report.view_links import ViewCopy
from tests.report.test_report import RIGHT, WRONG, sources, words
from tests.support import report_sources
from tests.support.comparison_runs import comparison

CHROMIUM = Path("/usr/bin/chromium")
WIDTHS = (390, 1000, 1600)
LONG = "an_arm_whose_name_is_as_long_as_those_of_studies_are_and_longer_than_a_phone_is_wide"


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    playwright = pytest.importorskip("playwright.sync_api", reason="playwright is not installed")
    if not CHROMIUM.exists():
        pytest.skip(f"no browser at {CHROMIUM}")
    with playwright.sync_playwright() as driver:
        made = driver.chromium.launch(executable_path=str(CHROMIUM), args=["--no-sandbox", "--disable-gpu"])
        yield made
        made.close()


@pytest.fixture(scope="module")
def pages(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """A page of a run and evaluations, and one of a comparison with a long name."""
    folder = tmp_path_factory.mktemp("pages")
    run = report_sources.run(folder / "run", [RIGHT, WRONG] * 64, batch=16)
    found = comparison()
    found["arms"][3]["name"] = LONG
    found["arms"][3]["contrasts"] = [
        {"against": "zero_shot", "differences": {"held_out/greedy": found["arms"][0]["difference_to_self"]}}
    ]
    (folder / "comparison.json").write_text(json.dumps(found))
    made = {"run": [run, report_sources.evaluation(folder / LONG)], "comparison": [folder / "comparison.json"]}
    for name, paths in made.items():
        page = render_page(compose(read_sources(paths), command="flow-dpo report"))
        (folder / f"{name}.html").write_text(page, encoding="utf-8")
    return {name: folder / f"{name}.html" for name in made}


_BOXES = """() => [...document.querySelectorAll('.forest [role=row]')].map(row => [...row.querySelectorAll(
    '[role=rowheader], [role=columnheader], .n, .axis text')].filter(one => one.getClientRects().length).map(one => {
  const range = document.createRange(); range.selectNodeContents(one);
  const box = range.getBoundingClientRect();
  return {text: one.textContent, kind: one.className || one.getAttribute('role') || one.tagName,
          left: box.left, right: box.right, top: box.top, bottom: box.bottom,
          clipped: one.scrollWidth > one.clientWidth + 1 && one.tagName == 'SPAN'};
}))"""


def _apart(one: dict[str, Any], other: dict[str, Any]) -> bool:
    beside = one["right"] <= other["left"] + 0.5 or other["right"] <= one["left"] + 0.5
    return beside or one["bottom"] <= other["top"] + 0.5 or other["bottom"] <= one["top"] + 0.5


@pytest.mark.parametrize("width", WIDTHS)
@pytest.mark.parametrize("name", ["run", "comparison"])
def test_every_label_and_number_can_be_read(browser: Any, pages: dict[str, Path], name: str, width: int) -> None:
    page = browser.new_page(viewport={"width": width, "height": 800})
    page.goto(pages[name].as_uri())
    assert page.evaluate("document.documentElement.scrollWidth") == width, "the page is no wider than the screen"
    rows = page.evaluate(_BOXES)
    assert len(rows) > 5
    for row in rows:
        for one in row:
            assert one["left"] >= 0, one
            assert one["right"] <= width, one
            assert not one["clipped"], one
        # An axis' name stands over its ticks, inside its own header.
        texts = [one for one in row if one["kind"] != "axis"]
        assert all(_apart(*pair) for pair in itertools.combinations(texts, 2)), row
    shown = "\n".join(one["text"] for row in rows for one in row)
    assert (LONG if name == "comparison" else "1 to 32") in shown
    drawn = page.evaluate(
        "[...document.querySelectorAll('figure .plot')].map(one => one.getBoundingClientRect().width)"
    )
    column = page.evaluate("document.querySelector('main').clientWidth") - (32 if width == 390 else 40)
    assert all(one > column - 70 for one in drawn if one), "a drawing fills its column"
    page.close()


def test_the_answers_of_a_run_are_on_one_screen_and_the_page_is_short(browser: Any, pages: dict[str, Path]) -> None:
    page = browser.new_page(viewport={"width": 1000, "height": 800})
    page.goto(pages["run"].as_uri())
    assert page.evaluate("document.querySelector('.answers').getBoundingClientRect().bottom") <= 800
    assert page.evaluate("document.documentElement.scrollHeight") <= 2500
    page.goto(pages["comparison"].as_uri())
    assert page.evaluate("document.documentElement.scrollHeight") <= 4000
    page.close()


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_text_stands_out_from_the_page(browser: Any, pages: dict[str, Path], scheme: str) -> None:
    page = browser.new_page(color_scheme=scheme)
    page.goto(pages["run"].as_uri())
    colours = page.evaluate(
        "[...document.querySelectorAll('p, dt, summary, .n, small, th, figcaption')].map(one =>"
        " getComputedStyle(one).color).concat(getComputedStyle(document.body).backgroundColor)"
    )
    *texts, ground = (_luminance(colour) for colour in colours)
    for text in texts:
        assert (max(text, ground) + 0.05) / (min(text, ground) + 0.05) >= 4.5
    page.close()


def _luminance(colour: str) -> float:
    shares = [int(part) / 255 for part in colour.removeprefix("rgb(").removesuffix(")").split(",")]
    red, green, blue = (one / 12.92 if one <= 0.04045 else ((one + 0.055) / 1.055) ** 2.4 for one in shares)
    return 0.2126 * red + 0.7152 * green + 0.0722 * blue


# ---- scales ----------------------------------------------------------------------------------------------------------


def test_a_scale_has_round_ticks_and_holds_every_value() -> None:
    scale = Scale.over([0.03, 0.93])
    assert [text for _, text in scale.marks()] == ["0.0", "0.2", "0.4", "0.6", "0.8", "1.0"]
    assert (scale.at(0.5), scale.at(-3), scale.at(7)) == (50.0, 0.0, 100.0)
    assert [text for _, text in Scale.over([12.0, 512.0], low=0, high=512, whole=True).marks()] == [
        "0", "200", "400",
    ]  # fmt: skip
    alone = Scale.over([3.0])
    assert alone.low < 3.0 < alone.high


def test_one_row_far_off_does_not_flatten_the_others() -> None:
    near = [Effect(label=str(at), cells=(), mean=float(at), inner=(at - 1.0, at + 1.0)) for at in range(-4, 5)]
    far = Effect(label="far", cells=(), mean=-300.0, inner=(-310.0, -290.0))
    forest = Forest(caption="", groups=(("", (*near, far)),), columns=(), unit="points")
    laid = lay_out_forest(forest)
    assert laid.scale.low >= -20
    assert (laid.beyond(-300.0), laid.beyond(4.0), laid.at(-300.0)) == (-1, 0, 0.0)


# ---- links into the viewer's copy ------------------------------------------------------------------------------------


def _copy(folder: Path, *names: str) -> Path:
    """A copy of the viewer, as far as a report reads it."""
    (folder / "data").mkdir(parents=True)
    found = [{"id": f"s{at}", "name": name} for at, name in enumerate(names)]
    (folder / "data" / "sources.js").write_text(f'flowDpo.put("sources", {json.dumps({"sources": found})});\n')
    return folder


def test_the_page_leads_to_the_problems_in_a_copy_beside_it(tmp_path: Path) -> None:
    run = report_sources.run(tmp_path / "run", [RIGHT] * 128, batch=32)
    evaluation = report_sources.evaluation(tmp_path / "evaluation")
    copy, out = tmp_path / "a view", tmp_path / "out"
    assert main.main(["view", str(run), "--export", str(copy), "--num_items", "8"]) == 0
    [id] = json.loads((copy / "view.json").read_text())["items"]
    typed = ["report", str(run), str(evaluation), "--output_dir", str(out), "--view", str(copy)]
    assert main.main(typed) == 0
    page = (out / "report.html").read_text()
    base = f"../a%20view/index.html#/s/{id}"
    for address in ("", "?status=wrong&amp;flipped=1", "?sort=-examples", "?from=0&amp;to=32", "?from=96&amp;to=128"):
        assert f'href="{base}{address}"' in page
    assert "ungraded=1" not in page, "all were graded"
    assert page.count(f"#/s/{id}") == page.count("#/s/") == 8, "the copy does not hold the evaluation"


def test_without_a_copy_the_page_says_how_one_is_made(tmp_path: Path) -> None:
    run = report_sources.run(tmp_path / "run", [["ungraded"] * 5])
    assert f"flow-dpo view {run} --export FOLDER" in words(render_page(compose(read_sources([run]), command="c")))
    copy = ViewCopy.read(_copy(tmp_path / "view", "run"), beside=tmp_path)
    assert "ungraded" in [link.text for link in copy.links(read_sources([run])[0])]


def test_a_source_is_found_by_the_end_of_its_path(tmp_path: Path) -> None:
    run = read_sources([report_sources.run(tmp_path / "seed0" / "flow", [RIGHT])])[0]
    cases = {("flow",): "s0", ("seed1/flow", "seed0/flow", "flow"): "s1", ("other", "low"): "", ("flow", "flow"): ""}
    for names, expected in cases.items():
        copy = ViewCopy.read(_copy(tmp_path / "-".join(names).replace("/", "."), *names), beside=tmp_path)
        address = copy.address(run)
        assert (address or "").rpartition("/")[2] == expected


@pytest.mark.parametrize("text", [None, "", 'flowDpo.put("sources", {"sources": [{"id": 1}]});', "flowDpo.put({});"])
def test_what_is_no_copy_is_refused_before_anything_is_written(tmp_path: Path, text: str | None) -> None:
    run, copy = report_sources.run(tmp_path / "run", [RIGHT]), tmp_path / "view"
    if text is not None:
        _copy(copy)
        (copy / "data" / "sources.js").write_text(text)
    with pytest.raises(DataError, match=r"expected a copy of the viewer in .*view.*--export"):
        ViewCopy.read(copy, beside=tmp_path)
    assert main.main(["report", str(run), "--output_dir", str(tmp_path / "out"), "--view", str(copy)]) == 1
    assert not (tmp_path / "out").exists()


def test_sources_of_every_kind_stand_on_one_page(tmp_path: Path) -> None:
    made = compose(read_sources(sources(tmp_path)), command="flow-dpo report")
    assert [section.title for section in made.sections] == [
        "Comparison study", "Training run whole", "Training run short", "Evaluations", "Traces", "Judge",
        "How to reproduce it",
    ]  # fmt: skip
