"""Do sources have names and ids of their own, which stay, whatever is found beside them?"""

from __future__ import annotations

from pathlib import Path

import pytest

from flow_dpo.report.viewer.found import find_sources
from flow_dpo.report.viewer.library import Library
from tests.report.viewer.test_library import VERDICTS, by_id, opened, quick, until
from tests.support.report_sources import run

_ = quick
TWO, ONE = "\u5b9e\u9a8c\u4e8c", "\u5b9e\u9a8c\u4e00"


def bare(*paths: Path) -> None:
    """Runs that hold nothing yet."""
    for path in paths:
        path.mkdir(parents=True)
        (path / "trees.jsonl").write_text("")


def ids(*roots: Path) -> dict[str, str]:
    return {source.name: source.id for source in find_sources(roots)[0]}


def test_an_id_is_the_same_whatever_stands_beside_it(tmp_path: Path) -> None:
    bare(tmp_path / TWO)
    first = ids(tmp_path)
    assert first[TWO].startswith("run-")
    bare(tmp_path / ONE, tmp_path / "my run", tmp_path / ("x" * 90), tmp_path / "plain" / "seed0")
    found = ids(tmp_path)
    assert found | first == found
    assert len(set(found.values())) == 5
    assert found["plain/seed0"] == "plain-seed0"
    assert found["my run"].startswith("my-run-"), "my-run is the name of another one"


@pytest.mark.parametrize(("there", "then"), [("gsm8k/seed0", ["gsm8k-seed0"]), (TWO, [ONE, "\u5b9e\u9a8c\u4e09"])])
def test_a_run_that_begins_later_has_an_id_that_is_free(there: str, then: list[str], tmp_path: Path) -> None:
    run(tmp_path / "all" / there, VERDICTS)
    with opened([tmp_path / "all"], tmp_path / "cache") as library:
        [before] = by_id(library)
        for name in then:
            run(tmp_path / "all" / name, VERDICTS)
        until(lambda: {source["name"] for source in by_id(library).values()} == {there, *then})
        library.wait()
        assert by_id(library)[before]["name"] == there
        assert all(library.get("items", {"source": id})["total"] == 2 for id in by_id(library))


def test_folders_with_a_name_in_common_name_all_their_sources_alike(tmp_path: Path) -> None:
    bare(*(tmp_path / name for name in ("a/runs/s0", "a/runs/s1", "b/runs/s0", "c/other/s2", "a/s3")))
    roots = [tmp_path / "a" / "runs", tmp_path / "b" / "runs", tmp_path / "c" / "other", tmp_path / "a" / "s3"]
    assert list(ids(*roots)) == ["a/runs/s0", "a/runs/s1", "b/runs/s0", "s2", "s3"]
    assert list(ids(*roots[:1], *roots[2:])) == ["s0", "s1", "s2", "s3"]
    assert list(ids(roots[0] / "s0", roots[1] / "s0")) == ["a/runs/s0", "b/runs/s0"]


def test_ids_of_one_stem_are_numbered(tmp_path: Path) -> None:
    bare(tmp_path / "a" / "b", tmp_path / "a-b")
    with Library([tmp_path], cache=tmp_path / "cache") as library:
        assert [source.id for source in library.sources] == ["a-b", "a-b-2"]
