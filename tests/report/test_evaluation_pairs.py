"""Do trained models meet the untrained one that was measured alike, and do all differences stand on the page?"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from flow_dpo.report.compose import compose
from flow_dpo.report.document import Forest
from flow_dpo.report.evaluation_pairs import pairs_of
from flow_dpo.report.sources import EvaluationSource, read_sources
from tests.report.test_report_answers import evaluated


def test_every_difference_that_is_not_named_stands_below(tmp_path: Path) -> None:
    trained = [evaluated(tmp_path / f"t{at}", "r" * (at + 1) + "w" * (19 - at), run="runs/x") for at in range(6)]
    made = compose(read_sources([*trained, evaluated(tmp_path / "base", "w" * 20)]), command="flow-dpo report")
    assert made.answers.learned[-1] == "2 more differences below."
    [section] = [section for section in made.sections if section.title == "Evaluations"]
    [forest] = [block for block in section.blocks if isinstance(block, Forest) and block.columns[0] == "points"]
    rows = [effect for _, effects in forest.groups for effect in effects]
    assert [(row.label, row.cells[0]) for row in rows] == [(f"t{at}", f"+{5 * (at + 1)}.0") for at in range(5, -1, -1)]


def test_a_difference_that_all_problems_share_has_no_interval(tmp_path: Path) -> None:
    paths = [evaluated(tmp_path / "t", "w" * 20, run="runs/x"), evaluated(tmp_path / "base", "w" * 20)]
    learned = compose(read_sources(paths), command="flow-dpo report").answers.learned
    assert "no significant difference: +0.0 points (the same on all 20 problems of" in learned[0]


def test_what_was_sampled_otherwise_is_no_pair(tmp_path: Path) -> None:
    def drawn(name: str, temperature: float, run: str | None = None) -> Path:
        decoding = {"greedy": False, "temperature": temperature, "top_p": 1.0}
        return evaluated(tmp_path / name, "rrww", run=run, decoding=decoding)

    paths = [drawn("hot", 1.5), drawn("alike", 0.2), drawn("t", 0.2, "runs/x")]
    sources = [source for source in read_sources(paths) if isinstance(source, EvaluationSource)]
    assert [(pair.trained.name, pair.untrained.name) for pair in pairs_of(sources)] == [("t", "alike")]
    assert pairs_of([sources[0], sources[2]]) == []


def test_others_problems_are_passed_over(tmp_path: Path) -> None:
    """The first untrained evaluation has other problems, the second the same."""
    paths = [evaluated(tmp_path / name, "rw" * num, run=run) for name, num, run in
             (("other", 6, None), ("same", 5, None), ("t", 5, "runs/x"))]  # fmt: skip
    sources = [source for source in read_sources(paths) if isinstance(source, EvaluationSource)]
    assert [(pair.trained.name, pair.untrained.name) for pair in pairs_of(sources)] == [("t", "same")]


def test_rows_that_were_handed_over_are_paired_where_they_are_the_same(tmp_path: Path) -> None:
    """They are numbered from 0, so that other rows have the same ids."""
    sources: dict[str, EvaluationSource] = {}
    for name, run, data in (("t", "runs/x", "1"), ("other", None, "2"), ("same", None, "1")):
        [source] = read_sources([evaluated(tmp_path / name, "rw" * 5, run=run)])
        assert isinstance(source, EvaluationSource)
        facts = {"dataset": "handed over", "handed_over": True, "data_fingerprint": data}
        sources[name] = replace(source, summary={**source.summary, **facts})
    assert [pair.untrained.name for pair in pairs_of([*sources.values()])] == ["same"]
    assert pairs_of([sources["t"], sources["other"]]) == []
