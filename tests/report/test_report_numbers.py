"""Are a report's numbers those of the run?"""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from flow_dpo.core.errors import DataError
from flow_dpo.core.stats import wilson
from flow_dpo.core.types import Status
from flow_dpo.evaluate.statistics import auc
from flow_dpo.report import formatting, rates
from flow_dpo.report.run_data import count_run
from flow_dpo.report.sources import read_source
from flow_dpo.runs.records import to_json
from tests.support import report_sources

RIGHT: list[Status] = ["correct", "wrong", "wrong", "wrong", "wrong"]
"""The trunk is right, every alternative wrong: all four trunk nodes give a pair."""
WRONG: list[Status] = ["wrong", "correct", "wrong", "wrong", "wrong"]
"""The alternative to the first Answer is right: one pair, of Answer at depth 0."""


def test_nodes_and_pairs_are_counted_by_hand(tmp_path: Path) -> None:
    counts = count_run(report_sources.run(tmp_path / "run", [RIGHT, WRONG]), 2)
    whole = rates.Part(start=0, end=2)
    by_depth = {
        (role, depth): (rate.hits, rate.of)
        for role, depth in (("answer", 0), ("stop", 1), ("answer", 2), ("stop", 3))
        for rate in [rates.example_rate(counts, whole, role, depth)]
    }
    assert by_depth == {("answer", 0): (2, 2), ("stop", 1): (1, 2), ("answer", 2): (1, 2), ("stop", 3): (1, 2)}
    assert counts.rewards == [1.0, 0.0]
    assert counts.num_examples == {"answer": 3, "stop": 2}


def test_each_candidate_has_the_verdict_of_the_play_that_ended_there(tmp_path: Path) -> None:
    # At node 1 Stop said No; the alternative, play 2, said Yes there. At node 3 the trunk said Yes: its own verdict.
    counts = count_run(
        report_sources.run(tmp_path / "run", [RIGHT, ["wrong", "wrong", "correct", "wrong", "wrong"]]), 2
    )
    found = [(one.index, one.kind, one.chose_yes, round(one.log_odds, 6)) for one in counts.candidates]
    assert found == [
        (0, "wrong", False, 0.4),
        (0, "right", True, 0.4),
        (1, "right", False, 0.4),
        (1, "wrong", True, 0.4),
    ]
    assert counts.num_unjudged == 0


def test_ungraded_candidates_enter_no_rate_and_ungraded_plays_are_not_right(tmp_path: Path) -> None:
    counts = count_run(report_sources.run(tmp_path / "run", [["ungraded"] * 5, RIGHT]), 2)
    assert counts.rewards == [None, 1.0]
    both = rates.Part(start=0, end=2)
    assert (rates.accuracy(counts, both), rates.ungraded(counts, both)) == (rates.Rate(hits=1, of=2), 1)
    counts.unanswered.add(0)  # had it stopped with a value, there would be nothing to be right or wrong
    assert (rates.accuracy(counts, both), rates.ungraded(counts, both)) == (rates.Rate(hits=1, of=1), 0)
    assert (len(counts.candidates), counts.num_unjudged) == (2, 2)


def test_choice_pairs_are_told_apart_by_what_was_finished(tmp_path: Path) -> None:
    counts = count_run(report_sources.run(tmp_path / "run", [RIGHT]), 1)
    whole = rates.Part(start=0, end=1)
    # The trunk's No at node 1 is preferred to Yes; its Yes at node 3 to No.
    assert rates.prefers_yes(counts, whole, "stop", finished=False) == rates.Rate(hits=0, of=1)
    assert rates.prefers_yes(counts, whole, "stop", finished=True) == rates.Rate(hits=1, of=1)


def test_an_area_agrees_with_auc_and_the_formula_by_hand() -> None:
    above, below = [0.9, 0.8, 0.4], [0.5, 0.3]
    found = rates.area(above, below)
    assert found.value == auc(above, below) == pytest.approx(5 / 6)
    # Hanley and McNeil by hand: A = 5/6, Q1 = 5/7, Q2 = 25/33, A^2 = 25/36.
    variance = (5 / 36 + 2 * (5 / 7 - 25 / 36) + 1 * (25 / 33 - 25 / 36)) / 6
    assert found.bounds is not None
    assert found.bounds[0] == pytest.approx(5 / 6 - 1.959964 * variance**0.5)
    assert found.bounds[1] == 1.0
    assert rates.area([], below) == rates.Area(value=None)


@pytest.mark.parametrize("num", [0, 1, 31, 64, 100, 256, 1001])
def test_parts_cover_every_problem_once(num: int) -> None:
    over = rates.parts(num)
    assert [at for part in over for at in range(part.start, part.end)] == list(range(num))
    assert len(over) <= 8
    assert rates.Rate(hits=3, of=8).bounds == wilson(3, 8)
    assert rates.Rate(hits=0, of=0).value is None


def test_what_an_interrupted_batch_left_behind_is_not_counted(tmp_path: Path) -> None:
    path = report_sources.run(tmp_path / "run", [RIGHT, WRONG])
    with (path / "trees.jsonl").open("a") as file:
        file.write(json.dumps(to_json(report_sources.tree(2, *RIGHT))) + "\n" + '{"problem": {"id"')
    with (path / "pairs.jsonl").open("a") as file:
        file.writelines(json.dumps(to_json(row)) + "\n" for row in report_sources.pairs(2, *RIGHT))
    found = read_source(path, "run")
    assert len(found.counts.rewards) == 2
    assert found.counts.num_examples.total() == 5


def test_a_change_has_the_interval_of_newcombe() -> None:
    # Newcombe (1998), table II, case (a): 56 of 70 against 48 of 80, method 10: .0524 to .3339.
    found = rates.change(rates.Rate(hits=48, of=80), rates.Rate(hits=56, of=70))
    assert found.value == pytest.approx(0.2)
    assert found.bounds == pytest.approx((0.0524, 0.3339), abs=5e-5)
    assert rates.change(rates.Rate(hits=0, of=0), rates.Rate(hits=1, of=2)).value is None


@pytest.mark.parametrize(
    ("name", "old", "new", "expected"),
    [
        ("trees.jsonl", '"parent": 0,', '"parent": 99,', "line 1: nodes 1: expected a whole number from 0 to 0"),
        ("trees.jsonl", '"role": "stop"', '"role": 7', r"trees.jsonl, line 1, nodes 1: expected a text in 'role'"),
        ("trees.jsonl", '"status": "wrong"', '"status": "maybe"', "rollouts 1, verdict: expected one of 'correct'"),
        ("metrics.jsonl", '"problems_seen": 1', '"problems_seen": "x"', r"line 1: expected a whole number from 0 in"),
        ("metrics.jsonl", '"problems_seen": 1', '"problems_seen": 9', r"expected 9 trees .* found 1"),
        ("pairs.jsonl", '"role": "answer"', '"role": null', r"pairs.jsonl, line 1: expected a text .*'role', f"),
        ("pairs.jsonl", '"node": 0', '"node": 77', r"name a node that the tree lacks"),
        ("pairs.jsonl", '{"schema"', '[{"schema"', r"pairs.jsonl, line 1"),
    ],
)  # fmt: skip
def test_broken_rows_name_file_and_line(tmp_path: Path, name: str, old: str, new: str, expected: str) -> None:
    path = report_sources.run(tmp_path / "run", [RIGHT])
    text = (path / name).read_text()
    assert old in text
    (path / name).write_text(text.replace(old, new, 1))
    with pytest.raises(DataError, match=expected):
        read_source(path, "run")


def test_numbers_are_written_one_way() -> None:
    assert formatting.share(0.40625) == "40.6 %"
    assert formatting.interval((0.2551, 0.5774)) == "25.5 to 57.7 %"
    assert (formatting.points(0.116), formatting.points(-0.006), formatting.points(None)) == ("+11.6", "-0.6", "-")
    assert [formatting.p_value(p) for p in (None, 1e-9, 0.0312, 0.42)] == ["-", "< 0.0001", "0.031", "0.42"]
    assert formatting.counts([1000, 1000]) == "1,000"
    assert formatting.counts([1000, None]) == "1,000"
    assert formatting.counts([1000, 1001]) == "1,000, 1,001"
    assert formatting.decimal(-0.001) == "0.00"
    assert [formatting.seconds(s) for s in (5.04, 300, 8000)] == ["5.0 s", "5.0 min", "2.2 h"]
