"""Accuracy over cost, from comparisons that are made by hand."""

from __future__ import annotations

import json
import subprocess
from pathlib import Path
from typing import Any

import pytest

from flow_dpo.evaluate import statistics
from tools import cost_curve, cost_differences, cost_seconds


def comparison(tokens: int, mean: float, *, sampled: float = 600.0) -> dict[str, Any]:
    each = {"mean": mean, "low": mean - 0.1, "high": mean + 0.1, "per_seed": [mean, mean]}
    costs = {
        "tokens_sampled": sampled,
        "tokens_learned": tokens - 600.0,
        "verdicts_used": tokens / 100,
        "seconds": 90.0,
    }
    free = dict.fromkeys(costs, 0.0)
    return {
        "settings": {"compare": {"tokens": tokens}},
        "arms": [
            {"name": "zero_shot", "accuracies": {"held_out": {"greedy": each}}, "costs": free},
            {"name": "grpo", "accuracies": {"held_out": {"greedy": each, "sampled": None}}, "costs": costs},
        ],
    }


def test_a_point_is_an_arm_at_a_budget_by_all_that_it_cost() -> None:
    made = cost_curve.points([comparison(2000, 0.7), comparison(1000, 0.5)], "held_out/greedy")
    assert [(point.arm, point.budget, point.mean) for point in made] == [("grpo", 1000, 0.5), ("grpo", 2000, 0.7)]
    assert made[1].costs == {"tokens": 2000.0, "verdicts": 20.0, "seconds": 90.0}
    assert (made[1].low, made[1].high, made[1].num_seeds) == pytest.approx((0.6, 0.8, 2))
    timed = cost_curve.points([comparison(1000, 0.5)], "held_out/greedy", {"1000": {"grpo": 7.5}})
    assert timed[0].costs == {"tokens": 1000.0, "verdicts": 10.0, "seconds": 7.5}
    with pytest.raises(ValueError, match="tested on held_out/sampled, found none in 1 comparisons"):
        cost_curve.points([comparison(1000, 0.5)], "held_out/sampled")


def test_the_table_and_the_pictures_are_written(tmp_path: Path) -> None:
    files = [tmp_path / f"{tokens}.json" for tokens in (1000, 2000)]
    for file, mean in zip(files, (0.5, 0.7), strict=True):
        file.write_text(json.dumps(comparison(int(file.stem), mean)))
    cost_curve.main([*map(str, files), "--test", "held_out/greedy", "--output_dir", str(tmp_path / "out")])
    page = tmp_path / "out" / "README.md"
    page.write_text("Before.\n<!-- curve: held_out/greedy -->\nold\n<!-- end of curve -->\nAfter.\n")
    for _ in range(2):
        cost_curve.main([*map(str, files), "--test", "held_out/greedy", "--output_dir", str(tmp_path / "out")])
    found = (tmp_path / "out" / "cost-held_out-greedy.md").read_text()
    assert "| grpo | 2,000 | 20 | 90 | 70.0 | 60.0 to 80.0 | 2 |" in found
    assert page.read_text() == (
        f"Before.\n<!-- curve: held_out/greedy -->\n\n{found.strip()}\n\n<!-- end of curve -->\nAfter.\n"
    )
    for cost in cost_curve.COSTS:
        picture = (tmp_path / "out" / f"cost-held_out-greedy-{cost}.png").read_bytes()
        assert picture.startswith(b"\x89PNG")


def test_trainings_are_timed_again_by_their_recorded_commands(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Those of the seed that is named, each once, in a folder of their own."""
    ran: list[list[str]] = []

    def run(command: list[str], **_: Any) -> subprocess.CompletedProcess[str]:
        folder = Path(command[command.index("--output_dir") + 1])
        folder.mkdir(parents=True)
        shares = [f"progressive/{window}{name}" for window in ("", "window_") for name in ("accuracy", "low", "high")]
        row = {"schema": "metrics/1", "problems_seen": 1} | dict.fromkeys(shares, 0.5)
        row |= {"rollout/seconds": 2.0, "grade/seconds": 0.5, "learn/seconds": float(len(ran))}
        (folder / "metrics.jsonl").write_text(json.dumps(row) + "\n")
        ran.append(command)
        return subprocess.CompletedProcess(command, 0, "", "")

    monkeypatch.setattr(subprocess, "run", run)
    monkeypatch.setattr(cost_seconds, "commit_of", lambda _: "abc")
    monkeypatch.setattr(cost_seconds.measuring, "machine", lambda _: "a machine")
    for tokens in ("1000", "2000"):
        for seed in (0, 1):
            folder = tmp_path / tokens / f"seed{seed}"
            folder.mkdir(parents=True)
            words = ["train", "--seed", str(seed), "--output_dir", str(folder / "grpo")]
            jobs = [{"name": "grpo", "words": words}, {"name": "x", "words": ["evaluate", "--output_dir", "y"]}]
            text = "".join(json.dumps({"schema": "job/1", "seconds": 9.0, **job}) + "\n" for job in jobs)
            (folder / "done.jsonl").write_text(text)
    output = tmp_path / "seconds.json"
    for _ in range(2):
        cost_seconds.main([str(tmp_path / "1000"), str(tmp_path / "2000"), "--output", str(output)])
    assert json.loads(output.read_text())["seconds"] == {"1000": {"grpo": 2.5}, "2000": {"grpo": 3.5}}
    assert json.loads(output.read_text())["made"]["2000"]["grpo"]["commit"] == "abc"
    with pytest.raises(SystemExit, match="has seed 0; name another file for seed 1"):
        cost_seconds.main([str(tmp_path / "1000"), "--seed", "1", "--output", str(output)])
    assert [command[command.index("--seed") + 1] for command in ran] == ["0", "0"]
    monkeypatch.setattr(cost_seconds, "commit_of", lambda _: "def")
    cost_seconds.main([str(tmp_path / "1000"), "--again", "--output", str(output)])
    assert json.loads(output.read_text())["seconds"] == {"1000": {"grpo": 4.5}, "2000": {"grpo": 3.5}}
    assert json.loads(output.read_text())["made"]["1000"]["grpo"]["commit"] == "def"
    assert not any(str(tmp_path / "1000") in command for command in ran)


@pytest.mark.parametrize("test", ["held_out/sampled", "held_out/greedy", "harder/greedy"])
def test_the_published_page_has_the_tables_of_its_files(test: str) -> None:
    study = Path(__file__).parent.parent.parent / "studies" / "cost"
    found = [json.loads(file.read_text()) for file in sorted(study.glob("*/comparison.json"))]
    assert len(found) == 4
    seconds = json.loads((study / "seconds.json").read_text())["seconds"]
    differences = json.loads((study / "differences.json").read_text())
    page = (study / "README.md").read_text()
    table = cost_curve.table(cost_curve.points(found, test, seconds), test, differences)
    assert cost_curve.insert_table(page, table, test) == page


def test_published_differences_are_those_of_the_seeds() -> None:
    study = Path(__file__).parent.parent.parent / "studies" / "cost"
    budgets = [str(study / budget) for budget in ("32000", "64000", "127000", "254000")]
    with pytest.raises(SystemExit) as ended:
        cost_differences.main([*budgets, "--output", str(study / "differences.json"), "--check"])
    assert ended.value.code == 0


def test_a_p_is_corrected_for_all_arms_at_all_budgets() -> None:
    found = json.loads((Path(__file__).parent.parent.parent / "studies" / "cost" / "differences.json").read_text())
    for test in found.values():
        gaps = [gap for by_one in test["arms"].values() for by_other in by_one.values() for gap in by_other.values()]
        assert len(gaps) == 60
        expected = statistics.holm({str(number): gap["seed_p"] for number, gap in enumerate(gaps)})
        assert [gap["p_holm"] for gap in gaps] == list(expected.values())


def test_a_difference_that_is_not_the_seeds_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(cost_differences, "differences", lambda _: {"held_out/greedy": {"a": 0.25, "b": 0.5}})
    words = [str(tmp_path / "1000"), "--output", str(tmp_path / "differences.json")]
    cost_differences.main(words)
    for value, status in ((0.5, 0), (0.75, 1)):
        content = json.dumps({"held_out/greedy": {"a": 0.25, "b": value}})
        (tmp_path / "differences.json").write_text(content)
        with pytest.raises(SystemExit) as ended:
            cost_differences.main([*words, "--check"])
        assert ended.value.code == status
        assert ("held_out/greedy.b" in capsys.readouterr().out) == bool(status)
        assert (tmp_path / "differences.json").read_text() == content
