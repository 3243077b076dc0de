"""Does an open page show what the files hold now, however they changed, and recover from what failed once?"""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import pytest

from tests.report.viewer.conftest import Open, Visit, served
from tests.support.report_sources import run

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
