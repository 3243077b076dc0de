"""Does an open page show what the files hold now, however they changed, and recover from what failed once?"""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import pytest

from tests.report.viewer.conftest import Open, Visit, served
from tests.support.report_sources import evaluation, run

pytestmark = pytest.mark.xdist_group("browser")

RIGHT, WRONG = ("correct",) * 5, ("wrong",) * 5
MIXED = ("correct", "wrong", "correct", "wrong", "wrong")


def rows(at: Visit) -> Any:
    return at.page.get_by_role("row").filter(has=at.page.get_by_role("gridcell"))


def again(made: Path, other: Path) -> None:
    """The run is started anew in its folder."""
    shutil.rmtree(made)
    other.rename(made)


def test_examples_that_come_after_their_trees_are_shown(tmp_path: Path, visit: Open) -> None:
    """As while an index is built, and in every batch of a run that goes on."""
    one = run(tmp_path / "one", [MIXED, RIGHT] * 6)
    pairs = (one / "pairs.jsonl").read_bytes()
    (one / "pairs.jsonl").write_bytes(b"")
    with served([one], tmp_path / "cache") as (address, library):
        at = visit(f"{address}#/s/one")
        before = rows(at).all_inner_texts()
        kept = at.page.evaluate_handle("document.querySelector('.item a[href$=\"one/1\"] span')")
        other = visit(f"{address}#/s/one?sort=-examples")
        (one / "pairs.jsonl").write_bytes(pairs)
        at.until(lambda: rows(at).all_inner_texts() != before)
        shown = at.page.evaluate(
            "[...document.querySelectorAll('.item:not([hidden]) .role-counts')].map((e) => e.title)"
        )
        expected = [row["by_role"] for row in library.get("items", {"source": "one"})["rows"] if row["by_role"]]
        assert len(shown) == len(expected)
        assert at.page.evaluate("(node) => node.isConnected", kept), "a row that is the same is not drawn again"
        button = other.page.get_by_role("button", name="show what changed")
        button.click()
        other.until(lambda: [int(text.split()[0]) for text in rows(other).all_inner_texts()] == [
            row["n"] for row in library.get("items", {"source": "one", "sort": "-examples"})["rows"]])  # fmt: skip
        assert not button.is_visible()


@pytest.mark.parametrize("num", [40, 24])
def test_a_run_that_is_started_again_shows_its_new_rows(num: int, tmp_path: Path, visit: Open) -> None:
    one = run(tmp_path / "one", [RIGHT] * 40, question="the old question?")
    with served([one], tmp_path / "cache") as (address, _):
        at, other = visit(f"{address}#/s/one"), visit(f"{address}#/s/one?sort=-tokens")
        again(one, run(tmp_path / "new", [WRONG] * num, question="the new question?"))
        at.until("!document.querySelector('main').innerText.includes('the old question?')")
        assert (
            rows(at).count() == len([text for text in rows(at).all_inner_texts() if "the new question?" in text]) > 20
        )
        at.until(f"document.querySelector('.list-count').textContent === '{num}\\u00a0problems'")
        other.page.get_by_role("button", name="show what changed").click()
        other.until("document.querySelector('main').innerText.includes('the new question?')")


def refusing(at: Visit, pattern: str) -> Any:
    """Answers requests with an error, until what it returns is called."""
    at.page.route(pattern, lambda route: route.fulfill(status=400, body='{"error": "ask again in a moment"}'))

    def end() -> None:
        at.page.unroute(pattern)
        at.wrong[:] = [words for words in at.wrong if "status of 400" not in words]

    return end


@pytest.mark.parametrize("route", ["#/s/one/1", "#/compare/one/1/two/1"])
def test_a_page_that_failed_once_is_shown_again(route: str, tmp_path: Path, visit: Open) -> None:
    paths = [run(tmp_path / name, [MIXED, RIGHT] * 6, question="How many?") for name in ("one", "two")]
    metrics = (paths[0] / "metrics.jsonl").read_bytes().splitlines(True)
    (paths[0] / "metrics.jsonl").write_bytes(metrics[0])
    with served(paths, tmp_path / "cache") as (address, _):
        at = visit(f"{address}#/")
        if "compare" not in route:
            at.go(route)
        end = refusing(at, "**/data/item?*")
        if "compare" in route:
            at.go(route)
        (paths[0] / "metrics.jsonl").write_bytes(b"".join(metrics[:2]))
        at.until("document.querySelector('main').innerText.includes('ask again in a moment')")
        if "compare" not in route:
            at.page.keyboard.press("j")  # of what is not there
        end()
        (paths[0] / "metrics.jsonl").write_bytes(b"".join(metrics))
        at.until("document.querySelector('main h1')?.innerText === 'How many?'")


@pytest.mark.parametrize("key", ["j", "l", "o", "click"])
def test_an_address_with_a_node_that_the_tree_does_not_have(key: str, tmp_path: Path, visit: Open) -> None:
    with served([run(tmp_path / "one", [MIXED] * 4)], tmp_path / "cache") as (address, _):
        at = visit(f"{address}#/s/one/1?node=99")
        if key == "click":
            at.page.locator(".node[data-node='1']").click()
        else:
            at.page.keyboard.press(key)
        if key != "o":
            at.until("/node=[0-4]$/.test(location.hash)")
        at.page.evaluate("new Promise((done) => setTimeout(done, 50))")  # an error is told of a little later


def test_a_source_that_is_asked_for_before_it_is_there(tmp_path: Path, visit: Open) -> None:
    run(tmp_path / "all" / "one", [MIXED] * 4)
    with served([tmp_path / "all"], tmp_path / "cache") as (address, _):
        at = visit(f"{address}#/s/two")
        assert "There is no source" in at.page.inner_text("main")
        run(tmp_path / "all" / "two", [MIXED] * 4)
        at.until("document.querySelector('.list-count')?.textContent === '4\\u00a0problems'")


# ---- keys and the focus ----------------------------------------------------------------------------------------------


def test_arrows_scroll_where_there_is_no_tree(tmp_path: Path, visit: Open) -> None:
    one = evaluation(tmp_path / "one", words="a line\n" * 300)
    with served([one], tmp_path / "cache") as (address, _):
        at = visit(f"{address}#/s/one/0")
        assert at.page.evaluate("window.scrollY") == 0
        at.page.keyboard.press("ArrowDown")
        at.until("window.scrollY > 0")
        at.page.keyboard.press("?")
        assert "down the rollout" not in at.page.get_by_role("dialog").inner_text()
        assert "next problem" in at.page.get_by_role("dialog").inner_text()


def test_arrows_scroll_the_table_of_values(tmp_path: Path, visit: Open) -> None:
    one = run(tmp_path / "one", [RIGHT] * 60, batch=1)
    with served([one], tmp_path / "cache") as (address, _):
        at = visit(f"{address}#/")
        at.page.get_by_text("Values", exact=True).click()
        at.page.locator(".scroller").focus()
        at.page.keyboard.press("ArrowDown")
        at.until("document.querySelector('.scroller').scrollTop > 0")
        assert at.page.evaluate("document.activeElement.className") == "scroller"


def test_the_focus_stays_in_the_header(tmp_path: Path, visit: Open) -> None:
    """While sources are asked for, and where the header is drawn again."""
    one = run(tmp_path / "one", [RIGHT] * 8)
    with served([one], tmp_path / "cache") as (address, library):
        at = visit(f"{address}#/s/one/1")
        at.page.locator(".crumbs a").nth(1).focus()
        held = at.page.evaluate_handle("document.activeElement")
        for _ in range(2):
            with at.page.expect_response("**/data/sources"):
                pass
        at.page.evaluate("new Promise((done) => setTimeout(done, 50))")
        assert at.page.evaluate("(held) => held === document.activeElement", held)
        (one / "run.json").write_text("[")
        at.until("document.querySelector('[data-key=notes]').textContent === '1\\u00a0note'")
        assert at.page.evaluate("document.activeElement.textContent") == "one"
        (one / "run.json").write_text("{")
        words = library.get("sources", {})["notes"][0]["text"]
        at.until(lambda: library.get("sources", {})["notes"][0]["text"] != words)
        words = library.get("sources", {})["notes"][0]["text"]
        at.until(lambda: words in at.page.locator("#notes").text_content())
