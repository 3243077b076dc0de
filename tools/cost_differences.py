"""Differences between arms at each of several budgets, and of each arm between two budgets.

    python -m tools.cost_differences studies/cost/32000 studies/cost/64000 --output studies/cost/differences.json

For two arms at a budget, the difference is the first arm minus the other; for an arm at two budgets, the larger budget
minus the smaller. Each is over the same questions of all seeds. Its interval and p treat both seeds and questions as
random. `p_holm` is corrected for all pairs of arms at all budgets on a test, or for all pairs of budgets. With
`--check` nothing is written: values that differ from the file's are listed, and the exit code is then 1. Invariant:
every number is computed from the verdicts in the comparisons' seeds.
"""

from __future__ import annotations

import argparse
import itertools
import json
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from flow_dpo.evaluate.compare import seed_results
from flow_dpo.evaluate.compare.seed_results import SeedResult
from flow_dpo.evaluate.statistics import difference, holm
from flow_dpo.runs.files import write_whole
from tools.recompute import differing

_KEPT = ("mean", "seed_low", "seed_high", "seed_p", "per_seed")


def between(one: Sequence[SeedResult], other: Sequence[SeedResult], arms: tuple[str, str], test: str) -> dict[str, Any]:
    """The first arm in one comparison minus the second arm in the other, over their common seeds."""
    seeds = sorted({each.seed for each in one} & {each.seed for each in other})
    sides = [
        [each.rewards(arm, test) for each in found if each.seed in seeds]
        for found, arm in zip((one, other), arms, strict=True)
    ]
    found = difference(*sides)
    return {name: found[name] for name in _KEPT}


def differences(folders: Mapping[int, Path]) -> dict[str, Any]:
    """For each test: `arms` by budget and the two arms, `budgets` by arm and the two budgets, and `tokens` per test
    problem by budget and arm."""
    found = {budget: seed_results.read_seeds(folder) for budget, folder in sorted(folders.items())}
    [first, *_] = found.values()
    arms = list(first[0].arms)
    tests = list(dict.fromkeys(test for arm in arms for test in first[0].arms[arm].verdicts))
    made: dict[str, Any] = {}
    for test in tests:
        made[test] = {
            "arms": {
                str(budget): {
                    one: {other: between(seeds, seeds, (one, other), test) for other in arms[arms.index(one) + 1 :]}
                    for one in arms[:-1]
                }
                for budget, seeds in found.items()
            },
            "budgets": {
                arm: {
                    f"{more} over {less}": between(found[more], found[less], (arm, arm), test)
                    for less, more in itertools.combinations(found, 2)
                }
                for arm in arms
            },
            "tokens": {
                str(budget): {
                    arm: sum(each.arms[arm].team.tokens[test] for each in seeds) / len(seeds)
                    for arm in arms
                    if all(test in each.arms[arm].team.tokens for each in seeds)
                }
                for budget, seeds in found.items()
            },
        }
        for family in (made[test]["arms"], made[test]["budgets"]):
            gaps = {str(number): gap for number, gap in enumerate(_gaps(family))}
            for number, p in holm({name: gap["seed_p"] for name, gap in gaps.items()}).items():
                gaps[number]["p_holm"] = p
    return made


def _gaps(found: Mapping[str, Any]) -> Iterator[dict[str, Any]]:
    """All differences in nested mappings."""
    for value in found.values():
        if "seed_p" not in value:
            yield from _gaps(value)
        elif value["seed_p"] is not None:
            yield value


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("comparisons", nargs="+", type=Path, help="the folder of each budget's comparison")
    parser.add_argument("--output", type=Path, required=True)
    parser.add_argument("--check", action="store_true", help="compare with the file instead of writing it")
    parsed = parser.parse_args(argv)
    made = differences({int(folder.name): folder for folder in parsed.comparisons})
    if parsed.check:
        wrong = differing(json.loads(parsed.output.read_text(encoding="utf-8")), made)
        print(f"{parsed.output}: {len(wrong)} values differ from the seeds' results", *wrong, sep="\n  ")
        raise SystemExit(bool(wrong))
    write_whole(parsed.output, json.dumps(made, indent=1) + "\n")


if __name__ == "__main__":
    main()
