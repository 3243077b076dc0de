"""Recompute every accuracy, difference, interval and p of published studies from their verdicts, without a model.

    python -m tools.recompute                       all studies that publish their verdicts
    python -m tools.recompute studies/recipes       this one

Where a figure of comparison.json, or a table of README.md, is not what comes out, it is named and the exit code is 1.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from flow_dpo.evaluate.compare.summary import recompute
from flow_dpo.evaluate.compare.verdicts import FILE, read_verdicts
from flow_dpo.runs.run_folder import differences
from tools.study_tables import insert_tables

STUDIES = Path(__file__).parent.parent / "studies"


def wrong_figures(study: Path, *, tests: Sequence[str] = ()) -> tuple[int, list[str]]:
    """How many arms were recomputed, and the figures that are not what their verdicts give; of these `tests` alone
    where any are named."""
    found = json.loads((study / "comparison.json").read_text(encoding="utf-8"))
    rewards = {
        arm: {test: seeds for test, seeds in by_test.items() if not tests or test in tests}
        for arm, by_test in read_verdicts(study / FILE).rewards().items()
    }
    again = json.loads(json.dumps(recompute(found, rewards)))
    wrong: list[str] = []
    for row, other in zip(found["arms"], again["arms"], strict=True):
        then, now = (_figures(each, set(next(iter(rewards.values())))) for each in (row, other))
        wrong += [f"{row['name']}.{name}: {a} published, {b} found" for name, (a, b) in differences(then, now).items()]
    page = (study / "README.md").read_text(encoding="utf-8")
    return len(rewards), wrong + ([] if insert_tables(page, study) == page else ["README.md: tables of other figures"])


def _figures(row: dict[str, Any], tests: set[str]) -> dict[str, Any]:
    """What verdicts decide of an arm, on these tests, as nested mappings."""
    contrasts = {one["against"]: one["differences"] for one in row["contrasts"]}
    to_baseline = row.get("differences_to_self") or {}
    return {
        "accuracies": {
            test: (row["accuracies"].get(test.partition("/")[0]) or {}).get(test.partition("/")[2]) for test in tests
        },
        "differences_to_self": {test: to_baseline.get(test) for test in tests},
        "contrasts": {other: {test: each.get(test) for test in tests} for other, each in contrasts.items()},
    }


def main(folders: Sequence[str]) -> int:
    """Print what each study comes to; 1 where anything differs."""
    studies = [Path(name) for name in folders] or sorted(file.parent for file in STUDIES.glob(f"*/{FILE}"))
    failed = False
    for study in studies:
        num, wrong = wrong_figures(study)
        failed |= bool(wrong)
        print("\n".join([f"{study.name}: {num} arms recomputed, {len(wrong)} figures differ", *wrong]))
    return int(failed)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
