"""Are the parts of the GPU benchmark what its documentation says, is its page safe, and do they run without a GPU?"""

from __future__ import annotations

import functools
import json
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import torch

from benchmarks.gpu import __main__ as command
from benchmarks.gpu import estimates, page, runner
from benchmarks.gpu.measure import HOMES, Context
from benchmarks.gpu.parts import PARTS, chosen
from benchmarks.measuring import Figure
from tests.test_gpu_benchmark import FIGURE, GOOD, ROOT, with_facts

# ---- the page -------------------------------------------------------------------------------------------------------

HOSTILE = "<script>alert(1)</script> | x `y` [z](http://example.org) \x1b]0;t\x07"


def test_hostile_names_stay_text() -> None:
    figure = {**FIGURE, "name": HOSTILE, "met": False}
    outcome = {"name": "vllm", "status": runner.FAILED, "why": HOSTILE, "figures": [figure], "commit": HOSTILE}
    results = {
        "device": HOSTILE, "rehearsal": False, "environment": with_facts(torch__name=HOSTILE, machine=HOSTILE),
        "parts": {"vllm": outcome}, "warnings": [HOSTILE], "vllm_environment": with_facts(packages={"vllm": HOSTILE}),
    }  # fmt: skip
    html = page.page(results)
    assert "<script" not in html
    assert "&lt;script&gt;alert(1)" in html
    assert "missed" in html
    text = page.markdown(results)
    assert "<script" not in text.replace("\\<script", "")
    assert "](" not in text.replace("\\]\\(", "")
    rows = [line for line in text.splitlines() if line.startswith("| ")]
    assert {line.replace("\\|", "").count("|") for line in rows} == {len(page.HEAD) + 1}
    for shown in (text, page.line(outcome), page.summary(results)):
        assert "\x1b" not in shown


def test_a_rehearsal_meets_and_misses_nothing() -> None:
    outcome = {"name": "run", "status": "done", "seconds": 1.0, "figures": [FIGURE]}
    results = {
        "device": "rehearsal", "rehearsal": True, "environment": GOOD, "parts": {"run": outcome}, "warnings": [],
    }  # fmt: skip
    assert "| met |" not in page.markdown(results)
    assert "| met |" in page.markdown({**results, "rehearsal": False})


# ---- the parts ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("soft_s", "turns"), [(-1.0, 1), (1000.0, 3)])
def test_the_first_turn_is_whole_and_others_take_what_time_is_left(soft_s: float, turns: int, tmp_path: Path) -> None:
    context = Context(
        name="a-0.5b", folder=tmp_path, rehearse=False, model="", soft_s=soft_s, started=time.monotonic()
    )  # fmt: skip
    ran: list[str] = []

    def side(name: str) -> dict[str, Any]:
        ran.append(name)
        return {"rate": len(ran)}

    def figures(reports: Any) -> list[Figure]:
        return [Figure(name="turns", ratio=len(reports["ours"]), reach="", details={"runs": reports})]

    context.take_turns({name: functools.partial(side, name) for name in ("ours", "peer")}, figures)
    assert ran == ["ours", "peer"] * turns
    [kept] = runner.figures_in(tmp_path)
    assert (kept["ratio"], len(kept["details"]["runs"]["peer"])) == (turns, turns)


def test_a_side_without_memory_is_left_out_and_ours_must_not_be(tmp_path: Path) -> None:
    context = Context(name="a-0.5b", folder=tmp_path, rehearse=True, model="", soft_s=9.0, started=time.monotonic())

    def full() -> dict[str, Any]:
        raise torch.OutOfMemoryError("too much")

    seen: list[set[str]] = []
    sides = {"ours": dict, "big": full, "peer": dict}
    context.take_turns(sides, lambda reports: seen.append({*reports}) or [])
    assert seen == [{"ours", "peer"}]
    with pytest.raises(SystemExit, match="ours ran out of memory: too much"):
        context.take_turns({"ours": full, "peer": dict}, lambda _: [])
    with pytest.raises(SystemExit, match="peer ran out of memory"):
        context.take_turns({"ours": dict, "peer": full}, lambda _: [])


def test_all_parts_fit_into_ten_minutes() -> None:
    asked = 15
    assert asked + sum(part.soft_s for part in PARTS.values()) <= command.TOTAL_S
    assert all(part.soft_s < part.limit_s < 120 for part in PARTS.values())
    assert set(HOMES) == set(PARTS)
    for part in PARTS.values():
        for card in estimates.CARDS:
            assert card.gib < part.min_gib or 0 < part.estimate(card) <= part.limit_s
    assert [part.name for part in chosen(["vllm", "tests"])] == ["tests", "vllm"]


def test_the_table_of_the_documentation_is_that_of_the_code() -> None:
    text = (ROOT / "docs" / "start" / "gpu-check.md").read_text(encoding="utf-8")
    for part in PARTS.values():
        assert part.row() in text.splitlines(), f"docs/start/gpu-check.md: expected the row {part.row()}"


def test_an_estimate_is_the_slowest_of_three() -> None:
    host = 32 * estimates.LAYER_S
    assert estimates.step_s(estimates.H100, estimates.MODELS["8b"], rows=64, context=400) == pytest.approx(host)
    slow = estimates.Card(name="slow", gib=24, bytes_s=1e11, flops_s=1e15)
    weights = 2 * 8.03e9 + 64 * 400 * 131_072
    assert estimates.step_s(slow, estimates.MODELS["8b"], rows=64, context=400) == pytest.approx(weights / 1e11)
    weak = estimates.Card(name="weak", gib=24, bytes_s=1e15, flops_s=1e12)
    assert estimates.step_s(weak, estimates.MODELS["8b"], rows=64, context=1) == pytest.approx(2 * 8.03e9 * 64 / 0.4e12)


def test_a_part_rehearses_end_to_end(tmp_path: Path) -> None:
    """The one that is quick: layouts, masks, values and gradients of FlexAttention's place, by the command itself."""
    assert command.main(["--rehearse", "--only", "attention", "--output_dir", str(tmp_path)]) == 0
    results = json.loads((tmp_path / runner.RESULTS).read_text())
    figures = {one["name"]: one for one in results["parts"]["attention"]["figures"]}
    compared = [one for name, one in figures.items() if "float32" in name]
    assert len(compared) == 2
    assert all(one["met"] for one in compared)
    assert any("window 4" in name for name in figures)
    assert (tmp_path / "page.html").read_text().startswith("<!doctype html>")


@pytest.mark.slow
def test_all_of_it_rehearses(tmp_path: Path) -> None:
    """Every part that this machine can run, with tiny sizes: a minute or two of processor time."""
    words = ["-m", "benchmarks.gpu", "--rehearse", "--total_s", "2000", "--output_dir", str(tmp_path)]
    done = subprocess.run([sys.executable, *words], cwd=ROOT, capture_output=True, text=True, timeout=2400, check=False)
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    results = json.loads((tmp_path / runner.RESULTS).read_text())
    for name, outcome in results["parts"].items():
        assert outcome["status"] in (runner.DONE, runner.MISSING), (name, outcome.get("why"))
        assert outcome["figures"] or outcome["status"] == runner.MISSING, name
