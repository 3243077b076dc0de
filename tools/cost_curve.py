r"""Accuracy over cost: several comparisons of the same arms, each at another budget, as one picture and one table.

    flow-dpo compare --config studies/cost/settings.yaml --compare.tokens 64000 --compare.output_dir runs/cost/64000
    flow-dpo compare --config studies/cost/settings.yaml --compare.tokens 127000 --compare.output_dir runs/cost/127000
    python -m tools.cost_curve studies/cost/*/comparison.json --test held_out/sampled --output_dir studies/cost \
        --seconds studies/cost/seconds.json --differences studies/cost/differences.json

A point is an arm at a budget: its mean accuracy over seeds, with the 95 % t-interval over seeds, against the tokens
(sampled and learned), verdicts and seconds that it used, each a mean over seeds. `--seconds` names a file from
`tools.cost_seconds`, whose seconds replace the comparisons' own. `--differences` names a file from
`tools.cost_differences` and adds two columns: tokens per test problem, and how far the first arm is above this one.

If the folder's README.md has a line `<!-- curve: held_out/sampled -->`, the table is written there, up to
`<!-- end of curve -->`; otherwise to a separate file.

Invariant: every number is read from the given files; an arm that a comparison lacks has one point fewer.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from flow_dpo.report.document import Table
from flow_dpo.runs.charts import Panel, Series, save_png
from tools.study_tables import to_markdown

COSTS = {"tokens": "thousand tokens, sampled and learned", "verdicts": "verdicts", "seconds": "seconds of one process"}
_UNITS = {"tokens": 1000}
_NAMES = {
    "flow_dpo_same_tokens": "flow-dpo",
    "flow_dpo_paper_same_tokens": "flow-dpo-paper",
    "whole_dpo_same_tokens": "online DPO of whole answers",
    "grpo_same_tokens": "GRPO",
    "rejection_sampling_same_tokens": "rejection sampling",
}
"""Names of arms in table and picture, if they differ from the arms' own."""


@dataclass(frozen=True, kw_only=True)
class Point:
    """An arm at one budget."""

    arm: str
    budget: int
    """The comparison's budget, in tokens."""
    costs: Mapping[str, float]
    """The arm's costs, by the names in `COSTS`."""
    mean: float
    low: float | None
    """The lower end of the 95 % interval over seeds; None with one seed."""
    high: float | None
    num_seeds: int


def points(
    found: Sequence[Mapping[str, Any]], test: str, seconds: Mapping[str, Mapping[str, float]] | None = None
) -> list[Point]:
    """The points of these comparisons on one test, by arm and budget. Raises `ValueError` if no arm has the test.

    `seconds`, by budget and arm, replace the comparisons' own.
    """
    problems, _, decoding = test.partition("/")
    made: list[Point] = []
    for comparison in found:
        for arm in comparison["arms"]:
            accuracy = arm["accuracies"].get(problems, {}).get(decoding)
            costs = arm["costs"]
            if accuracy is None or not costs["tokens_sampled"]:
                continue  # the base costs nothing, and has no curve
            budget = int(comparison["settings"]["compare"]["tokens"])
            made.append(
                Point(
                    arm=arm["name"],
                    budget=budget,
                    costs={
                        "tokens": costs["tokens_sampled"] + costs["tokens_learned"],
                        "verdicts": costs["verdicts_used"],
                        "seconds": costs["seconds"] if seconds is None else seconds[str(budget)][arm["name"]],
                    },
                    mean=accuracy["mean"],
                    low=accuracy.get("low"),
                    high=accuracy.get("high"),
                    num_seeds=len(accuracy["per_seed"]),
                )
            )
    if not made:
        raise ValueError(f"expected an arm that was tested on {test}, found none in {len(found)} comparisons")
    order = list(dict.fromkeys(point.arm for point in made))
    return sorted(made, key=lambda point: (order.index(point.arm), point.budget))


def table(made: Sequence[Point], test: str, differences: Mapping[str, Any] | None = None) -> Table:
    """One row per point. `differences`, from a file of `tools.cost_differences`, add the tokens per test problem and
    the first arm's difference to this one."""
    first = made[0].arm
    rows = [
        (
            _NAMES.get(point.arm, point.arm),
            f"{point.costs['tokens']:,.0f}",
            f"{point.costs['verdicts']:,.0f}",
            f"{point.costs['seconds']:,.0f}",
            f"{100 * point.mean:.1f}",
            "-" if point.low is None or point.high is None else f"{100 * point.low:.1f} to {100 * point.high:.1f}",
            str(point.num_seeds),
            *(() if differences is None else _compared(point, first, differences[test])),
        )
        for point in made
    ]
    columns = ("arm", "tokens", "verdicts", "seconds", "accuracy, %", "95 % over seeds", "seeds")
    more = () if differences is None else ("tokens a test problem", f"{_NAMES.get(first, first)} minus it, points")
    return Table(caption=f"Accuracy on {test} by cost", columns=(*columns, *more), rows=tuple(rows))


def _compared(point: Point, first: str, found: Mapping[str, Any]) -> tuple[str, str]:
    tokens = found["tokens"][str(point.budget)].get(point.arm)
    gap = found["arms"][str(point.budget)][first].get(point.arm)
    if gap is not None and gap["seed_low"] is not None:
        low, high = (f"{100 * gap[side]:.1f}" for side in ("seed_low", "seed_high"))
        gap = f"{100 * gap['mean']:+.1f} ({low} to {high})"
    return "-" if tokens is None else f"{tokens:,.0f}", gap if isinstance(gap, str) else "-"


def insert_table(page: str, found: Table, test: str) -> str:
    """The page with the table of a test in its place. Raises `ValueError` if the end mark is missing."""
    begin, end = f"<!-- curve: {test} -->", "<!-- end of curve -->"
    before, _, rest = page.partition(begin)
    _, last, after = rest.partition(end)
    if not last:
        raise ValueError(f"expected {end} after {begin}, found none")
    return f"{before}{begin}\n\n{to_markdown(found)}\n\n{end}{after}"


def draw(made: Sequence[Point], cost: str, test: str, path: Path) -> None:
    """Draw one line per arm over one cost, with its interval over seeds as a band."""
    lines: list[Series] = []
    for arm in dict.fromkeys(point.arm for point in made):
        own = [point for point in made if point.arm == arm]
        banded = all(point.low is not None and point.high is not None for point in own)
        low, high = (
            [100 * (getattr(point, side) or 0.0) for point in own] if banded else [] for side in ("low", "high")
        )
        x, y = [point.costs[cost] / _UNITS.get(cost, 1) for point in own], [100 * point.mean for point in own]
        lines.append(Series(label=_NAMES.get(arm, arm), x=x, y=y, low=low, high=high))
    save_png(path, [Panel(y="accuracy, %", title=test, lines=lines)], x=COSTS[cost], height=4.2)


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("comparisons", nargs="+", type=Path, help="the comparison.json of each budget")
    parser.add_argument("--test", default="held_out/sampled", help="problem set and decoding")
    parser.add_argument("--seconds", type=Path, help="a file from tools.cost_seconds")
    parser.add_argument("--differences", type=Path, help="a file from tools.cost_differences")
    parser.add_argument("--output_dir", type=Path, required=True)
    parsed = parser.parse_args(argv)
    found = [json.loads(path.read_text(encoding="utf-8")) for path in parsed.comparisons]
    seconds = None if parsed.seconds is None else json.loads(parsed.seconds.read_text(encoding="utf-8"))["seconds"]
    made = points(found, parsed.test, seconds)
    name = parsed.test.replace("/", "-")
    parsed.output_dir.mkdir(parents=True, exist_ok=True)
    differences = None if parsed.differences is None else json.loads(parsed.differences.read_text(encoding="utf-8"))
    found_table, page = table(made, parsed.test, differences), parsed.output_dir / "README.md"
    text = page.read_text(encoding="utf-8") if page.exists() else ""
    if f"<!-- curve: {parsed.test} -->" in text:
        page.write_text(insert_table(text, found_table, parsed.test), encoding="utf-8")
    else:
        (parsed.output_dir / f"cost-{name}.md").write_text(to_markdown(found_table) + "\n", encoding="utf-8")
    for cost in COSTS:
        draw(made, cost, parsed.test, parsed.output_dir / f"cost-{name}-{cost}.png")


if __name__ == "__main__":
    main()
