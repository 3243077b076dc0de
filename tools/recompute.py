"""Recompute the figures of published studies without a model, from their per-seed results or their verdicts.

    python -m tools.recompute                       all studies that publish seeds/*.json.gz or verdicts.json.gz
    python -m tools.recompute studies/recipes       only this one
    python -m tools.recompute studies/seed --write  writes the results to its comparison.json and its tables

Per-seed results give all of comparison.json; verdicts give every accuracy, difference, interval and p. If a figure in
comparison.json, or a table in README.md, differs from the recomputed one, it is named and the exit code is 1.
"""

from __future__ import annotations

import argparse
import json
import math
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from flow_dpo.evaluate.compare import seed_results
from flow_dpo.evaluate.compare.choose import EVERY
from flow_dpo.evaluate.compare.seed_results import SeedResult
from flow_dpo.evaluate.compare.summary import ComparisonContext, recompute, summarise
from flow_dpo.evaluate.compare.verdicts import FILE, read_verdicts
from flow_dpo.evaluate.headers import Comparison
from flow_dpo.runs.files import write_whole
from flow_dpo.runs.headers import write_header
from flow_dpo.runs.run_folder import differences
from tools.study_tables import insert_tables

STUDIES = Path(__file__).parent.parent / "studies"


def published() -> list[Path]:
    """The studies, and parts of them, that can be recomputed."""
    of_seeds = {file.parent.parent for file in STUDIES.rglob(f"{seed_results.FOLDER}/*.json.gz")}
    return sorted(of_seeds | {file.parent for file in STUDIES.rglob(FILE)})


def wrong_figures(study: Path, *, tests: Sequence[str] = ()) -> tuple[int, list[str]]:
    """The number of arms recomputed, and the figures that differ from what the files give; only of these `tests`, if
    any are named."""
    found, again, whole = _again(study, tests)
    again, wrong = json.loads(json.dumps(again)), list[str]()
    if whole and not tests:
        wrong += [f"{name}: {a} published, {b} found" for name, (a, b) in differing(found, again).items()]
    for row, other in zip(found["arms"], again["arms"], strict=True):
        published = {f"{test}/{one}" for test, by in row["accuracies"].items() for one in by or ()}
        measured = published | {f"{test}/{one}" for test, by in other["accuracies"].items() for one in by}
        for name, (a, b) in differing(*(_figures(each, set(tests or measured)) for each in (row, other))).items():
            wrong.append(f"{row['name']}.{name}: {a} published, {b} found")
    if (study / "README.md").exists():
        page = (study / "README.md").read_text(encoding="utf-8")
        wrong += [] if insert_tables(page, study) == page else ["README.md: other tables"]
    return len(again["arms"]), wrong


def write(study: Path) -> None:
    """Write what a study's files give to its comparison.json, and to the tables of its README.md if it has one."""
    _, again, _ = _again(study)
    write_header(study / "comparison.json", Comparison, again)
    page = study / "README.md"
    if page.exists():
        write_whole(page, insert_tables(page.read_text(encoding="utf-8"), study))


def _again(study: Path, tests: Sequence[str] = ()) -> tuple[dict[str, Any], dict[str, Any], bool]:
    """comparison.json, the recomputed one, and whether all of it was recomputed (from per-seed results)."""
    found = json.loads((study / "comparison.json").read_text(encoding="utf-8"))
    seeds = [each for each in seed_results.read_seeds(study) if each.seed in found.get("seeds", ())]
    again = _of_seeds(found, seeds, tests) if seeds else _of_verdicts(study, found, tests)
    return found, again, bool(seeds)


def _of_seeds(found: dict[str, Any], seeds: Sequence[SeedResult], tests: Sequence[str]) -> dict[str, Any]:
    """comparison.json recomputed; what does not come from the seeds (settings, versions) is kept as published."""
    arms = [EVERY[row["name"]] for row in found["arms"]]
    known = list(dict.fromkeys(test for arm in arms for test in seeds[0].arms[arm.name].verdicts))
    made = summarise(arms, seeds, ComparisonContext(
        tests=[test for test in known if not tests or test in tests] or [found["primary"]],
        facts={},
        tokens=found["settings"]["compare"]["tokens"],
    ))  # fmt: skip
    return {**found, **made}


def _of_verdicts(study: Path, found: dict[str, Any], tests: Sequence[str]) -> dict[str, Any]:
    verdicts = read_verdicts(study / FILE)
    rewards = {
        arm: {test: seeds for test, seeds in by_test.items() if not tests or test in tests}
        for arm, by_test in verdicts.rewards().items()
    }
    return recompute(found, rewards, verdicts.arms)


def differing(then: Any, now: Any) -> dict[str, tuple[Any, Any]]:
    """The values that differ, by their dotted names, lists item by item. Numbers may differ in their last bits, which
    another processor rounds differently."""
    found = differences(_by_number(then), _by_number(now))
    return {name: (a, b) for name, (a, b) in found.items() if not _same_number(a, b)}


def _same_number(a: Any, b: Any) -> bool:
    return all(isinstance(one, int | float) for one in (a, b)) and math.isclose(a, b, rel_tol=1e-9, abs_tol=1e-15)


def _by_number(value: Any) -> Any:
    if isinstance(value, list):
        return {str(number): _by_number(one) for number, one in enumerate(value)}
    return {name: _by_number(one) for name, one in value.items()} if isinstance(value, dict) else value


def _figures(row: dict[str, Any], tests: set[str]) -> dict[str, Any]:
    """The figures of an arm that verdicts decide, on these tests, as nested mappings."""
    contrasts = {one["against"]: one["differences"] for one in row["contrasts"]}
    to_baseline = row.get("differences_to_self") or {}
    return {
        "accuracies": {
            test: (row["accuracies"].get(test.partition("/")[0]) or {}).get(test.partition("/")[2]) for test in tests
        },
        "differences_to_self": {test: to_baseline.get(test) for test in tests},
        "contrasts": {other: {test: each.get(test) for test in tests} for other, each in contrasts.items()},
    }


def main(argv: Sequence[str] | None = None) -> int:
    """Print the result for each study. Returns 1 if anything differs and is not written."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("studies", nargs="*", type=Path, help="their folders; default: all that can be recomputed")
    parser.add_argument("--write", action="store_true", help="write the results to comparison.json and README.md")
    parsed = parser.parse_args(argv)
    failed = False
    for study in parsed.studies or published():
        num, wrong = wrong_figures(study)
        failed |= bool(wrong) and not parsed.write
        name = study.resolve().relative_to(STUDIES) if study.resolve().is_relative_to(STUDIES) else study
        print("\n".join([f"{name}: {num} arms recomputed, {len(wrong)} figures differ", *wrong]))
        if wrong and parsed.write:
            write(study)
            print(f"written to {study}")
    return int(failed)


if __name__ == "__main__":
    sys.exit(main())
