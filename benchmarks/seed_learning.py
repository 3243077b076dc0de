"""Learning on the embedded seed with the shipped recipe: accuracy on held-out problems before and after.

    python benchmarks/seed_learning.py --output_dir runs/seed_learning

Trains on 1,000 problems with each of three seeds, evaluates the adapters and the base on held-out problems, and prints
a Markdown table with means and 95 % t-intervals over the seeds. What is already done is not done again.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

from scipy import stats

EVALUATIONS = {
    "held out (1,000), flow, greedy": ["--mode", "flow", "--max_problems", "1000"],
    "held out (500), flow, sampled": ["--mode", "flow", "--max_problems", "500", "--greedy", "false"],
    "held out (500), single pass of Answer, greedy": ["--mode", "single", "--max_problems", "500"],
    "hard split (500), flow, greedy": ["--mode", "flow", "--max_problems", "500", "--dataset_split", "hard"],
}
SAMPLED = "held out (500), flow, sampled"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--output_dir", type=Path, default=Path("runs/seed_learning"))
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--max_problems", type=int, default=1000)
    parser.add_argument("--recipe", default="flow-dpo", help="flow-dpo, or flow-dpo-paper")
    settings = parser.parse_args()
    folder: Path = settings.output_dir
    recipe = ["--recipe", settings.recipe]
    for seed in settings.seeds:
        flow_dpo("train", *recipe, "--seed", str(seed), "--max_problems", str(settings.max_problems),
                 "--output_dir", str(folder / f"seed{seed}"), done=folder / f"seed{seed}" / "adapters")  # fmt: skip
    before = {name: evaluated(folder / "before" / str(i), [*words, *recipe, "--num_threads", "1"])
              for i, (name, words) in enumerate(EVALUATIONS.items())}  # fmt: skip
    after = {
        name: [
            evaluated(folder / f"seed{seed}-after" / str(i), [*words, "--run", str(folder / f"seed{seed}")])
            for seed in settings.seeds
        ]
        for i, (name, words) in enumerate(EVALUATIONS.items())
    }
    table = report([progressive(folder / f"seed{seed}") for seed in settings.seeds], before, after)
    (folder / "table.md").write_text(table)
    print(table)


def flow_dpo(command: str, *words: str, done: Path) -> None:
    """Run one command unless its output is there."""
    if not done.exists():
        subprocess.run([sys.executable, "-m", "flow_dpo", command, *words], check=True)


def evaluated(folder: Path, words: list[str]) -> dict[str, Any]:
    """The summary of one evaluation."""
    flow_dpo("evaluate", "--output_dir", str(folder), *words, done=folder / "summary.json")
    return json.loads((folder / "summary.json").read_text())


def progressive(run: Path) -> tuple[float, float, float]:
    """Accuracy of the first and the last 250 problems, and seconds."""
    rows = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    trees = [json.loads(line) for line in (run / "trees.jsonl").read_text().splitlines()]
    right = [tree["rollouts"][0]["verdict"]["status"] == "correct" for tree in trees]
    seconds = sum(row["rollout/seconds"] + row["grade/seconds"] + row["learn/seconds"] for row in rows)
    return sum(right[:250]) / 250, sum(right[-250:]) / 250, seconds


def report(
    windows: list[tuple[float, float, float]], before: dict[str, Any], after: dict[str, list[dict[str, Any]]]
) -> str:
    """The table."""
    lines = ["| | before | after | rise |", "|---|---|---|---|"]
    first, last = [w[0] for w in windows], [w[1] for w in windows]
    rise = spread([b - a for a, b in zip(first, last, strict=True)])
    lines.append(f"| progressive, first and last 250 problems | {spread(first)} | {spread(last)} | {rise} |")
    for name, summaries in after.items():
        base, values = before[name]["accuracy"], [summary["accuracy"] for summary in summaries]
        lines.append(f"| {name} | {100 * base:.1f} | {spread(values)} | {spread([v - base for v in values])} |")
    for name, key in (("right over wrong", "auc_right_over_wrong"), ("finished over unfinished",
                                                                     "auc_finished_over_unfinished")):  # fmt: skip
        base = before[SAMPLED]["stop"][key]
        values = [summary["stop"][key] for summary in after[SAMPLED]]
        shown = ", ".join(f"{value:.2f}" for value in values)
        lines.append(f"| Stop's area under the curve, {name} | {base:.2f} | {shown} | |")
    lines.append(f"| seconds of a run | | {', '.join(f'{w[2]:.0f}' for w in windows)} | |")
    return "\n".join(lines) + "\n"


def spread(values: list[float]) -> str:
    """Mean of shares in per cent, with its 95 % t-interval where there are several."""
    mean = sum(values) / len(values)
    if len(values) < 2:
        return f"{100 * mean:.1f}"
    half = stats.t.ppf(0.975, len(values) - 1) * stats.tstd(values) / len(values) ** 0.5
    return f"{100 * mean:.1f} ± {100 * half:.1f}"


if __name__ == "__main__":
    main()
