"""Figures in prose are those of their files (`tools.figures`)."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest

from tools import figures

PAGES = [page for page in figures.pages() if "<!--= " in page.read_text(encoding="utf-8")]


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(figures.ROOT)))
def test_a_tied_figure_is_that_of_its_file(page: Path) -> None:
    text = page.read_text(encoding="utf-8")
    assert figures.rewritten(text, page.parent) == text, "run: python -m tools.figures --write"


@pytest.mark.parametrize("page", figures.checked_whole(), ids=lambda page: str(page.relative_to(figures.ROOT)))
def test_no_decimal_stands_in_prose_untied(page: Path) -> None:
    assert figures.untied(page.read_text(encoding="utf-8")) == []


@pytest.mark.parametrize("page", figures.pages(), ids=lambda page: str(page.relative_to(figures.ROOT)))
def test_what_is_of_runs_that_are_not_kept_says_so(page: Path) -> None:
    """In the part itself, or before it in a sentence about all such parts of the page."""
    text = page.read_text(encoding="utf-8")
    blocks = list(re.finditer(r"<!-- not kept -->(.*?)<!-- end of not kept -->", text, re.DOTALL))
    assert len(blocks) == text.count("<!-- not kept -->") == text.count("<!-- end of not kept -->")
    for block in blocks:
        before = re.sub(r"<!--.*?-->", "", " ".join(text[: block.start()].split()))
        assert "not kept" in block[1] or "which are not kept" in before, block[1]


CONTENT = {
    "num": 12345,
    "version 1.5": [{"name": "seed, 2 x 3: time", "ratio": 7.0291}],
    "times": [90, 0.0009],
    "arms": [
        {"name": "one", "accuracy": {"mean": 0.9384, "per_seed": [0.9, -0.011]}},
        {
            "name": "two",
            "contrasts": [
                {"against": "one", "by": "x", "mean": 0.081, "seed_low": 0.009, "seed_high": 0.152, "p": 2e-7}
            ],
        },
    ],
}


@pytest.mark.parametrize(
    ("before", "after"),
    [
        ("is 1.0<!--= arms.one.accuracy.mean % -->!", "is 93.8<!--= arms.one.accuracy.mean % -->!"),
        ("-3 (0 to 2)<!--= arms.two.contrasts.one diff -->", "+8.1 (0.9 to 15.2)<!--= arms.two.contrasts.one diff -->"),
        ("1 (0 to 2)<!--= arms.1.contrasts.0 -diff -->", "-8.1 (-15.2 to -0.9)<!--= arms.1.contrasts.0 -diff -->"),
        ("p 0.04<!--= arms.two.contrasts.one.p p -->", "p < 1e-4<!--= arms.two.contrasts.one.p p -->"),
        ("1<!--= num 0 --> and 1<!--= num k --> k", "12,345<!--= num 0 --> and 12<!--= num k --> k"),
        ("of 1<!--= arms.0.accuracy.per_seed seeds -->", "of +90.0, -1.1<!--= arms.0.accuracy.per_seed seeds -->"),
        ("1<!--= arms.1.contrasts.by=x.mean +% -->", "+8.1<!--= arms.1.contrasts.by=x.mean +% -->"),
        ("1<!--= version~1\\.5.seed,~2~x~3:~time.ratio 2 -->", "7.03<!--= version~1\\.5.seed,~2~x~3:~time.ratio 2 -->"),
        ("of 1<!--= own/other.json:num 0 -->", "of 7<!--= own/other.json:num 0 -->"),
        (
            "1<!--= flow_dpo/learner/settings.py:LearnerSettings.max_grad_norm 1 -->",
            "1.0<!--= flow_dpo/learner/settings.py:LearnerSettings.max_grad_norm 1 -->",
        ),
        (
            "1<!--= flow_dpo/recipes/presets.py:RECIPES.dapo.paper.recipe.objective.clip_high 3g -->",
            "0.28<!--= flow_dpo/recipes/presets.py:RECIPES.dapo.paper.recipe.objective.clip_high 3g -->",
        ),
        (
            "1<!--= flow_dpo/engines/vllm/requests.py:TEMPERATURES.1 1 -->",
            "2.0<!--= flow_dpo/engines/vllm/requests.py:TEMPERATURES.1 1 -->",
        ),
        ("1<!--= times.0 min --> and 1<!--= times.1 ms -->", "1.5<!--= times.0 min --> and 0.9<!--= times.1 ms -->"),
        ("1<!--= times.1 3 --> and 1<!--= times.1 +3 -->", "0.001<!--= times.1 3 --> and +0.001<!--= times.1 +3 -->"),
    ],
)  # fmt: skip
def test_a_figure_is_written_as_its_file_has_it(before: str, after: str, tmp_path: Path) -> None:
    (tmp_path / "own").mkdir()
    (tmp_path / "own" / "comparison.json").write_text(json.dumps(CONTENT))
    (tmp_path / "own" / "other.json").write_text(json.dumps({"num": 7}))
    assert figures.rewritten(before, tmp_path / "own", tmp_path) == after
    assert figures.rewritten(after, tmp_path / "own", tmp_path) == after


def test_a_comment_that_ties_nothing_is_refused(tmp_path: Path) -> None:
    (tmp_path / "comparison.json").write_text(json.dumps(CONTENT))
    with pytest.raises(KeyError, match="found none from three on"):
        figures.rewritten("1<!--= arms.three.accuracy % -->", tmp_path)
    with pytest.raises(KeyError, match=r"expected NONE in flow_dpo/core/loop\.py, found no NONE"):
        figures.rewritten("1<!--= flow_dpo/core/loop.py:NONE 0 -->", tmp_path)
    with pytest.raises(KeyError, match="found no nothing"):
        figures.rewritten("1<!--= flow_dpo/recipes/presets.py:RECIPES.nothing.paper 0 -->", tmp_path)
    with pytest.raises(KeyError, match="found no 2"):
        figures.rewritten("1<!--= flow_dpo/engines/vllm/requests.py:TEMPERATURES.2 0 -->", tmp_path)
    with pytest.raises(ValueError, match="expected a figure before"):
        figures.rewritten("none<!--= num 0 -->", tmp_path)
    with pytest.raises(ValueError, match="expected one of the formats"):
        figures.rewritten("1<!--= num percent -->", tmp_path)


def test_what_the_paper_has_is_of_its_table() -> None:
    paper = json.loads((figures.ROOT / "studies" / "paper.json").read_text())
    for other in ("self_generated", "ground_truth"):
        gaps = [round(a - b, 1) for a, b in zip(paper["trained_flow"], paper[other], strict=True)]
        assert paper[f"trained_flow_over_{other}"] == {"least": min(gaps), "most": max(gaps)}


def test_prose_is_what_no_tool_writes() -> None:
    text = """A model of 0.5B (arXiv 2410.22304) has 12.5<!--= one % --> and 3.5 points, `--rate 0.1`, [x](a-1.5.md)
<!-- tables -->
| 7.5 |
<!-- end of tables -->
| 8.5 |
<!-- table: python -m tools.model_table -->
| 6.5 |
<!-- end of table -->
With vLLM 0.32 and transformers below 5.20
<!-- not kept -->
9.5, of a run that is not kept
<!-- end of not kept -->
"""
    assert [one.split()[-1] for one in figures.untied(text)] == ["3.5", "8.5"]


def test_whole_numbers_of_a_study_are_in_its_files(tmp_path: Path) -> None:
    (tmp_path / "seeds").mkdir()
    (tmp_path / "comparison.json").write_text(json.dumps({"settings": {"max_problems": 1000}, "command": "--draws 12"}))
    (tmp_path / "seeds" / "one.json").write_text(json.dumps([{"tokens": 4096.0, "share": 0.25}]))
    (tmp_path / "settings.yaml").write_text("tests:\n  test_problems: 150  # as in 2026\n")
    text = """1,000 problems, 12 draws, 4096 tokens, 150 tests, 95 per cent (2026-11-30); 7 seeds, `--rate 77`, 0.5B
41 right, and 1,500 tokens: 25 of a hundred
<!-- not kept -->
88, of a run that is not kept
<!-- end of not kept -->
"""
    assert [one.split()[-1] for one in figures.unknown(text, tmp_path)] == ["41", "1,500", "25"]
