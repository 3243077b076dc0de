"""Does a static copy filter and order its items as the server does?"""

from __future__ import annotations

import random
from pathlib import Path
from typing import Any

import pytest

from flow_dpo.report.viewer.export import export
from tests.report.viewer.conftest import Open, served
from tests.report.viewer.test_queries import FILTERS, SORTS
from tests.support.report_sources import run

pytestmark = pytest.mark.xdist_group("browser")


def test_a_copy_selects_as_the_server_does(seeded: Path, tmp_path: Path, visit: Open) -> None:
    ungraded: list[tuple[Any, ...]] = [("ungraded",) * 5, ("wrong", "correct", "ungraded", "wrong", "wrong"),
                                       ("correct",) * 5]  # fmt: skip
    drawn = run(tmp_path / "drawn", ungraded * 3)
    chance, tried = random.Random(0), set[int]()
    with served([seeded, drawn], tmp_path / "cache") as (address, library):
        page = visit(address).page
        for source in library.sources:
            everything = library.get("items", {"source": source.id, "limit": "500"})["rows"]
            for sort in [sign + sort for sign in ("", "-") for sort in SORTS for _ in range(12)]:
                names = chance.sample(sorted(FILTERS), chance.randrange(4))
                params = {name: chance.choice(FILTERS[name][0]) for name in names} | {"sort": sort}
                params |= {"offset": str(chance.randrange(3)), "limit": str(chance.randrange(1, 9))}
                found = library.get("items", {**params, "source": source.id})
                here = page.evaluate("([rows, params]) => flowDpo.select(rows, params)", [everything, params])
                numbers = [row["n"] for row in here["rows"]]
                assert (here["total"], numbers) == (found["total"], [row["n"] for row in found["rows"]]), params
                tried.add(found["total"])
    assert len(tried) > 6


def test_a_copy_is_searched_as_far_as_the_server_searches(tmp_path: Path, visit: Open) -> None:
    one = run(tmp_path / "one", [("correct",) * 5] * 3, question="x" * 300 + " Needle " + "y" * 2_000 + " beyond")
    two = run(tmp_path / "two", [("correct",) * 5] * 3, question="A short Needle")
    with served([one, two], tmp_path / "cache") as (_, library):
        export(library, tmp_path / "site", num_items=3)
        page = visit((tmp_path / "site" / "index.html").as_uri()).page
        for source in ("one", "two"):
            for words in ("NEEDLE", "p1", "14", "beyond", "none"):
                found = page.evaluate("([source, q]) => flowDpo.get('items', {source, q})", [source, words])
                assert found["total"] == library.get("items", {"source": source, "q": words})["total"], words


def test_a_bound_that_is_no_number_is_named(seeded: Path, tmp_path: Path, visit: Open) -> None:
    with served([seeded], tmp_path / "cache") as (address, _):
        at = visit(f"{address}#/s/run?to=abc&sort=-tokens")
        assert "found 'abc'" in at.page.inner_text("main")
        at.wrong[:] = [words for words in at.wrong if "status of 400" not in words]
        bounded = "([n, value]) => flowDpo.bounded(Math.min, n, value)"
        found = [at.page.evaluate(bounded, [5, value]) for value in (None, "3", 9, "0", "x")]
        assert found == [5, 3, 5, 0, "x"]
