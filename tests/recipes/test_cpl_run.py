"""Critical Plan Step Learning's pairs and margins, counted anew from what a run recorded."""

from __future__ import annotations

from collections import defaultdict
from pathlib import Path
from typing import Any

import pytest

from flow_dpo.cli import train
from flow_dpo.runs.files import read_jsonl


def counted(tree: dict[str, Any]) -> dict[tuple[int, int], float]:
    """Chosen and rejected with their margin, by the rule in words: the mean of what ended or was said below each node;
    plan steps all against all across 0; of solutions the first best against the first worst, at 0.3."""
    nodes = {node["id"]: node for node in tree["nodes"]}
    below, solutions = defaultdict[int, list[float]](list), set[int]()
    for rollout in tree["rollouts"]:
        value = rollout["value"]
        if value is None:
            value = {"correct": 1.0, "wrong": -1.0}[rollout["verdict"]["status"]]
            solutions.add(rollout["leaf"])
        at: int | None = rollout["leaf"]
        while at is not None:
            below[at].append(value)
            at = nodes[at]["parent"]
    probes = {r["id"] for r in tree["rollouts"] if r["probe"]}
    nothing = {r["leaf"] for r in tree["rollouts"] if (r["verdict"] or {}).get("reason") == "no answer"}
    mean = {at: sum(values) / len(values) for at, values in below.items()}
    families = defaultdict[int | None, list[int]](list)
    for at, node in nodes.items():
        if node["rollout"] not in probes and at not in nothing:
            families[node["parent"]].append(at)
    found: dict[tuple[int, int], float] = {}
    for family in families.values():
        ends = [at for at in family if at in solutions]
        best, worst = (pick(ends, key=lambda at: mean[at]) if ends else None for pick in (max, min))
        for good in family:
            for bad in family:
                if not mean[good] > 0 > mean[bad] or (good in ends) != (bad in ends):
                    continue
                if good in ends and (good, bad) != (best, worst):
                    continue
                found[good, bad] = (mean[good] - mean[bad]) * (0.3 if good in ends else 1.0)
    return found


@pytest.mark.parametrize("flags", [(), ("--flow.value_role", "--explore.valued_by", "value")], ids=["rollouts", "role"])
def test_pairs_and_margins_of_a_run(flags: tuple[str, ...], tmp_path: Path) -> None:
    words = ["--recipe", "cpl", *flags, "--max_problems", "24", "--problems_per_batch", "24", "--num_iterations", "8"]
    assert train.train([*words, "--output_dir", str(tmp_path)]) == 0
    wanted = {}
    for tree in read_jsonl(tmp_path / "trees.jsonl"):
        wanted |= {(tree["problem"]["id"], *pair): margin for pair, margin in counted(tree).items()}
    pairs = read_jsonl(tmp_path / "pairs.jsonl")
    found = {(p["problem_id"], p["node"], p["rejected_node"]): p["margin"] for p in pairs}
    assert found == pytest.approx(wanted, abs=2e-6)  # values are written to six places
    assert len(found) == len(pairs) > 10
    # Alpha has something to weigh: margins are not one and the same.
    margins = {round(margin, 3) for margin in found.values()}
    assert len(margins) >= 4, sorted(margins)
    assert sum(margin not in (0.6, 2.0) for margin in found.values()) >= 2
