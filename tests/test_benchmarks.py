"""Are figures kept as promised, and can every benchmark at least be asked what it does?"""

from __future__ import annotations

import json
import random
import re
import subprocess
import sys
from pathlib import Path

import pytest

from benchmarks import lag as lag_benchmark
from benchmarks import measuring, sleeping
from benchmarks.cost_model import GPUS, MODELS, Run, fit, gpu_cost, held_out_errors
from benchmarks.measuring import Figure
from benchmarks.tree_demand import Asked, demanded_tokens, reusable_tokens
from tools import speed_table

ROOT = Path(__file__).parent.parent
SCRIPTS = sorted(
    path.stem for path in (ROOT / "benchmarks").glob("*.py") if "__main__" in path.read_text(encoding="utf-8")
)


@pytest.mark.parametrize(
    ("ratio", "reach", "met"),
    [(4.0, ">= 4", True), (3.99, ">= 4", False), (0.5, "<= 0.5", True), (0.51, "<= 0.5", False), (1.2, "", None)],
)
def test_a_figure_is_met_at_its_bound_and_not_beyond(ratio: float, reach: str, met: bool | None) -> None:
    assert Figure(name="a", ratio=ratio, reach=reach).met is met


def test_figures_are_merged_by_name(tmp_path: Path) -> None:
    path = tmp_path / "results.json"
    settings = measuring.parser("").parse_args(["--tiny", "--results", str(path)])
    first = [Figure(name="a", ratio=1.0, reach=">= 4"), Figure(name="b", ratio=2.0, reach="<= 3", details={"x": 1})]
    measuring.keep(first, settings, "benchmarks.none", [])
    measuring.keep([Figure(name="a", ratio=5.0, reach=">= 4")], settings, "benchmarks.none", ["--repeats", "3"])
    a, b = json.loads(path.read_text())
    assert (a["name"], a["ratio"], a["reach"], a["met"]) == ("a", 5.0, ">= 4", True)
    assert a["command"] == "python -m benchmarks.none --repeats 3"
    assert (b["name"], b["ratio"], b["met"]) == ("b", 2.0, True)
    assert set(a) == {"name", "ratio", "reach", "met", "command", "machine", "date"}
    assert {"name": "b", "x": 1} in json.loads((tmp_path / "details.json").read_text())


def test_repeats_show_their_spread(tmp_path: Path) -> None:
    path = tmp_path / "results.json"
    settings = measuring.parser("").parse_args(["--tiny", "--results", str(path)])
    turns = measuring.by_turn([{"s": 9.0}, {"s": 12.0}, {"s": 8.0}], [{"s": 3.0}, {"s": 3.0}, {"s": 4.0}], "s")
    assert turns == [3.0, 4.0, 2.0]
    measuring.keep([Figure(name="a", ratio=3.1, reach="", repeats=turns)], settings, "benchmarks.none", [])
    assert json.loads(path.read_text())[0]["spread"] == [2.0, 3.0, 4.0]
    assert "| a | 3.1 (2 to 4) |" in measuring.table(json.loads(path.read_text()))
    assert Figure(name="a", ratio=1.0, reach="", repeats=[1.0]).spread is None
    assert measuring.spread([{"s": 2.0}, {"s": 5.0}, {"s": 3.0}], "s") == [2.0, 3.0, 5.0]


def test_tiny_sizes_keep_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(measuring, "RESULTS", tmp_path / "results.json")
    settings = measuring.parser("").parse_args(["--tiny"])
    measuring.keep([Figure(name="a", ratio=1.0, reach=">= 4")], settings, "benchmarks.none", [])
    assert list(tmp_path.iterdir()) == []


def test_a_table_has_a_line_a_figure() -> None:
    rows = [{"name": "a", "ratio": 4.567, "reach": ">= 4", "met": True}]
    assert measuring.table(rows).splitlines()[-1] == "| a | 4.57 | >= 4 | yes |"


def test_the_pages_have_the_kept_figures() -> None:
    assert all(page.read_text(encoding="utf-8") == text for page, text in speed_table.written().items()), (
        "run python -m tools.speed_table"
    )
    assert len(speed_table.PAGES["short"].read_text(encoding="utf-8").splitlines()) < 100


def test_no_figure_is_typed_into_a_reason() -> None:
    reasons = json.loads(speed_table.ROWS.read_text(encoding="utf-8"))["why"]
    assert [why for why in reasons.values() if re.search(r"\d\.\d(?!\d*B)|\d s\b|per cent", why)] == []


def test_a_row_of_speeds_shows_every_miss_and_why() -> None:
    rows = [
        {"name": "a", "ratio": 2.04, "reach": ">= 2", "met": True, "date": "2026-11-24"},
        {"name": "b", "ratio": 1.5, "spread": [1.4, 1.5, 1.61], "reach": ">= 2", "met": False, "date": "2026-11-24"},
    ]
    line = {"what": "x", "figures": ["a", "b", "not measured"]}
    speed = {"rows": [line, {"what": "y", "figures": ["c"]}], "why": {"b": "it | waits"}}
    assert speed_table.short(rows, speed).splitlines()[2:] == [
        "| x | >= 2 | 2.04, 1.5 | **missed** 1 of 2 | it \\| waits |"
    ]
    assert speed_table.full(rows, speed).splitlines()[3] == (
        "| b | >= 2 | 1.5 (1.4 to 1.61) | **missed** | 2026-11-24 | it \\| waits |"
    )
    assert speed_table.unexplained(rows, speed) == []
    assert speed_table.unexplained(rows, {"why": {}}) == ["b"]
    page = f"before {speed_table.BEGIN}old{speed_table.END} after"
    assert speed_table.insert(page, "new") == f"before {speed_table.BEGIN}\n\nnew\n\n{speed_table.END} after"
    with pytest.raises(ValueError, match="expected one"):
        speed_table.insert("no place", "new")


def test_every_benchmark_runs_in_make_bench() -> None:
    lines = (ROOT / "Makefile").read_text(encoding="utf-8")
    for script in set(SCRIPTS) - {"seed_learning", "measuring"}:
        assert f"benchmarks.{script}" in lines


@pytest.mark.parametrize("script", [s for s in SCRIPTS if s not in ("measuring", "depth", "seed_learning")])
def test_help_needs_nothing_heavy(script: str) -> None:
    code = (
        f"import sys; sys.argv = ['x', '--help']\n"
        f"from benchmarks.{script} import main\n"
        "try:\n    main()\n"
        "finally:\n    assert not {'torch', 'transformers', 'trl'} & set(sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
    assert "--tiny" in done.stdout


def test_what_a_prefix_cache_could_have_held() -> None:
    """Answer says 7 8 after 1 2 3; an alternative 9 4 to it, whose first token is a question of its own; Stop reads."""
    asked = [
        Asked("answer", (1, 2, 3), (7, 8)),
        Asked("answer", (1, 2, 3), (9,)),
        Asked("answer", (1, 2, 3, 9), (4,)),
        Asked("stop", (1, 2, 3), (90,)),
        Asked("answer", (1, 2, 3, 7, 8, 5), (6,)),
    ]
    # Nothing, 2 of 3 and 3 of 4, nothing (another role), and 1 2 3 7: the last token sampled was never read.
    assert reusable_tokens(asked, 1) == 0 + 2 + 3 + 0 + 4
    # Whole blocks of two: 1 2 three times, and 1 2 3 7.
    assert reusable_tokens(asked, 2) == 0 + 2 + 2 + 0 + 4


def test_what_the_trees_demand_to_be_read() -> None:
    """In words: each prefix of each role once, but for those that a completion wrote and went on from."""
    asked = [
        Asked("answer", (1, 2, 3), (7, 8)),
        Asked("stop", (1, 9, 7, 8, 5), (90,)),
        Asked("answer", (1, 2, 3, 7), (6, 4)),  # an alternative to the 8: nothing new
        Asked("answer", (1, 2, 3, 7, 8), (5,)),  # the 8 was sampled, and not gone on from
        Asked("stop", (1, 9, 7, 8, 5, 6), (91,)),
    ]
    rng = random.Random(0)
    for _ in range(3):
        assert demanded_tokens(asked) == 3 + 5 + 0 + 1 + 1
        rng.shuffle(asked)


def test_a_cost_is_found_again() -> None:
    runs = [Run(r, w, s, 2e-3 * r + 5e-4 * w + 0.01 * s) for r in (10, 500) for w in (1, 90) for s in (2, 40)]
    cost = fit(runs)
    assert (cost.read_s, cost.written_s, cost.step_s) == pytest.approx((2e-3, 5e-4, 0.01))
    assert max(held_out_errors(runs)) < 1e-9
    # A cost below 0 would fit these better.
    cost = fit([Run(100, 0, 1, 1.0), Run(100, 50, 1, 0.8), Run(200, 50, 1, 1.9)])
    assert min(cost.read_s, cost.written_s, cost.step_s) >= 0


def test_an_estimate_for_a_gpu_is_bounded_by_memory() -> None:
    """8 billion parameters in bf16 are read at every step: 16 GB at 70 per cent of 3.35 TB/s are 7 ms."""
    cost = gpu_cost(GPUS["H100 SXM"], MODELS["8B"], context_tokens=300)
    assert cost.step_s == pytest.approx(0.0083, rel=0.01)
    assert cost.read_s < cost.written_s < cost.step_s / 100


def test_lags_are_compared_by_seed() -> None:
    accuracies = {(0, 0): 0.50, (0, 1): 0.60, (0, 2): 0.70, (1, 0): 0.51, (1, 1): 0.59, (1, 2): 0.70,
                  (3, 0): 0.40, (3, 1): 0.51, (3, 2): 0.60}  # fmt: skip
    runs = [
        {"lag": lag, "seed": seed, "held_out": accuracy, "last_250": accuracy}
        for (lag, seed), accuracy in accuracies.items()
    ]
    found = lag_benchmark.compare(runs, [0, 1, 3])
    assert found[1]["held_out"]["difference"] == pytest.approx(0)
    assert found[1]["held_out"]["holds_0"] is True
    # -10, -9 and -10 points: 4.303 standard errors of 1/3 of a point around the mean.
    low, high = found[3]["last_250"]["interval"]
    assert (low, high) == (pytest.approx(-0.29 / 3 - 4.3027 * 0.01 / 3, abs=1e-5), pytest.approx(-0.0823, abs=1e-4))
    assert found[3]["last_250"]["holds_0"] is False
    assert "| 3 | 40.0, 51.0, 60.0 | -9.7 (-11.1 to -8.2) |" in lag_benchmark.table(runs, [0, 1, 3], found)
    assert lag_benchmark.interval([0.1]) == (float("-inf"), 0.1, float("inf"))


def test_sleeping_workers_are_the_pool_and_the_loop() -> None:
    """Whatever sleeps how long, the same is sampled; of times nothing is claimed here."""
    size = {"problems": 8, "problems_per_batch": 4, "shard": 2}
    one, two = (
        sleeping.run(workers=workers, lag=lag, sleep_s=0.0, learn_s=0.0, **size) for workers, lag in ((1, 0), (2, 1))
    )
    assert one["tokens"] == two["tokens"] > 0
