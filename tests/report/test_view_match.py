"""Does a report link to its own run in a copy of the viewer, and to no other of the same name?"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from flow_dpo.report.sources import read_sources
from flow_dpo.report.view_links import ViewCopy
from flow_dpo.report.viewer.export import export
from flow_dpo.report.viewer.library import Library
from tests.support import report_sources

RIGHT, WRONG = ["correct"] * 5, ["wrong"] * 5


def copy_of(folder: Path, *paths: Path) -> ViewCopy:
    with Library(paths, cache=folder / "cache") as library:
        export(library, folder / "view", num_items=2)
    return ViewCopy.read(folder / "view", beside=folder)


def is_linked(copy: ViewCopy, path: Path) -> bool:
    [source] = read_sources([path])
    assert bool(copy.links(source)) == (copy.address(source) is not None)
    return bool(copy.links(source))


def begin(run: Path, start: float) -> Path:
    row = {"schema": "span/1", "batch": 0, "lane": "learner", "what": "sampling", "start": start, "end": start + 1}
    (run / "timeline.jsonl").write_text(json.dumps(row) + "\n")
    return run


def test_a_run_of_the_same_name_is_another_one(tmp_path: Path) -> None:
    own = report_sources.run(tmp_path / "a" / "flow", [RIGHT, WRONG] * 4)
    copy = copy_of(tmp_path, own)
    assert is_linked(copy, own)
    others: dict[str, Any] = {"worse": [WRONG] * 8, "shorter": [RIGHT, WRONG] * 2, "longer": [RIGHT, WRONG] * 6}
    for name, verdicts in others.items():
        other = report_sources.run(tmp_path / name / "flow", verdicts)
        assert not is_linked(copy, other), name


def test_runs_alike_began_at_different_times(tmp_path: Path) -> None:
    own, other = (begin(report_sources.run(tmp_path / name / "flow", [RIGHT] * 8), start)
                  for name, start in (("a", 1.7e9), ("b", 1.8e9)))  # fmt: skip
    copy = copy_of(tmp_path, own)
    assert (is_linked(copy, own), is_linked(copy, other)) == (True, False)
    both = copy_of(tmp_path / "both", own, other)
    assert is_linked(both, own)
    assert is_linked(both, other)


def test_a_copy_that_was_made_while_the_run_went_on_is_linked_to(tmp_path: Path) -> None:
    own = report_sources.run(tmp_path / "a" / "flow", [RIGHT, WRONG] * 8, facts={"num_problems": 16})
    whole = {name: (own / name).read_bytes().splitlines(True) for name in ("metrics.jsonl", "trees.jsonl")}
    (own / "metrics.jsonl").write_bytes(b"".join(whole["metrics.jsonl"][:2]))
    copy = copy_of(tmp_path, own)
    (own / "metrics.jsonl").write_bytes(b"".join(whole["metrics.jsonl"]))
    assert is_linked(copy, own)


def test_evaluations_of_the_same_name(tmp_path: Path) -> None:
    own, other = (report_sources.evaluation(tmp_path / name / "test", accuracy=accuracy)
                  for name, accuracy in (("a", 0.5), ("b", 0.25)))  # fmt: skip
    copy = copy_of(tmp_path, own)
    assert (is_linked(copy, own), is_linked(copy, other)) == (True, False)
    run = report_sources.run(tmp_path / "c" / "test", [RIGHT])
    assert not is_linked(copy, run), "it is of another kind"
