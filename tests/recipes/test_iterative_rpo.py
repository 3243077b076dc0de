"""Iterative RPO: which pairs K answers make, by hand and from a run's folder, and what its loss is."""

from __future__ import annotations

import math
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
import torch

from flow_dpo.cli import train
from flow_dpo.core.tree import Tree
from flow_dpo.core.types import Solution, Status
from flow_dpo.recipes.iterative_rpo.credit import CycledPairs
from flow_dpo.recipes.presets import load_recipe
from flow_dpo.runs.files import read_jsonl
from tests.support.packed_builders import answer_pair
from tests.support.tree_builders import completion, graded, problem, request

STATUSES: dict[str, Status] = {"r": "correct", "w": "wrong", "?": "ungraded"}


def answered(marks: str) -> Tree:
    """An answer a letter: r right, w wrong, ? ungraded."""
    tree = Tree(problem=problem())
    for number in range(len(marks)):
        solution = Solution(pieces=((5,),), ended=True)
        tree.add_rollout(None, [(request("answer", 1), completion(5 + number), ())], solution)
    return graded(tree, *map(STATUSES.__getitem__, marks))


def test_right_and_wrong_are_gone_through_side_by_side() -> None:
    pairs = CycledPairs(num_pairs=5)([answered("rw?rwr")])  # right 0 3 5, wrong 1 4
    found = [(p.chosen_node, p.rejected_node, p.weight) for p in pairs]
    assert found == [(0, 1, 1.0), (3, 4, 1.0), (5, 1, 1.0), (0, 4, 1.0), (3, 1, 1.0)]
    # The seventh is the first again.
    assert [p.weight for p in CycledPairs(num_pairs=8)([answered("rw?rwr")])] == [2.0, 2.0, 1.0, 1.0, 1.0, 1.0]
    assert [p.weight for p in CycledPairs()([answered("rw")])] == [10.0]
    assert CycledPairs()([answered("rrr"), answered("ww"), answered("?r")]) == []


def test_the_loss_is_dpo_and_the_likelihood_a_token() -> None:
    policy = [[torch.tensor([-0.2, -0.1], requires_grad=True), torch.tensor([-0.3, -1.0], requires_grad=True)]]
    reference = [[torch.tensor([-0.3, -0.2]), torch.tensor([-0.3, -0.9])]]
    loss = load_recipe("iterative-rpo", "paper").objective([answer_pair((5,), (6, 7), (8, 9))], policy, reference)
    below = 1 / (1 + math.exp(0.1 * 0.3))  # log-ratios 0.2 and -0.1 at beta 0.1; alpha 1 on the mean, 0.15
    assert loss.total.item() == pytest.approx(-math.log(1 - below) + 0.15, rel=1e-6)
    chosen, rejected = torch.autograd.grad(loss.total, policy[0])
    assert chosen.tolist() == pytest.approx([-0.1 * below - 0.5] * 2)
    assert rejected.tolist() == pytest.approx([0.1 * below] * 2)


def test_pairs_and_references_of_a_run(tmp_path: Path) -> None:
    """Recomputed from the record: pairs by two loops over the graded answers, and the version of each reference."""
    words = ["--recipe", "iterative-rpo", "--max_problems", "12", "--problems_per_batch", "6"]
    assert train.train([*words, "--examples_per_update", "4", "--output_dir", str(tmp_path)]) == 0
    wanted: list[tuple[str, int, int, float]] = []
    for tree in read_jsonl(tmp_path / "trees.jsonl"):
        by_status: dict[str, list[int]] = {}
        for rollout in tree["rollouts"]:
            by_status.setdefault(rollout["verdict"]["status"], []).append(rollout["start"])
        right, wrong = by_status.get("correct", []), by_status.get("wrong", [])
        at, counts = 0, Counter[tuple[int, int]]()
        while right and wrong and at < 10:
            counts[right[at % len(right)], wrong[at % len(wrong)]] += 1
            at += 1
        wanted += [(tree["problem"]["id"], good, bad, float(n)) for (good, bad), n in counts.items()]
    rows: list[dict[str, Any]] = read_jsonl(tmp_path / "pairs.jsonl")
    assert [(p["problem_id"], p["node"], p["rejected_node"], p["weight"]) for p in rows] == wanted
    assert len(wanted) > 12
    # The second batch of problems is compared with what the first one's updates made.
    metrics = read_jsonl(tmp_path / "metrics.jsonl")
    first = metrics[0]["learn/updates"]
    learned = read_jsonl(tmp_path / "learned.jsonl")
    by_update = {row["version"]: row["reference_version"] for row in learned}
    assert by_update == {version: 0 if version < first else first for version in by_update}
    assert max(by_update) > first > 1
