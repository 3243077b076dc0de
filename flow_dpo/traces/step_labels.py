"""Labels of steps for process reward models, from the trees of a run that probed the states between steps.

Math-Shepherd's labels (arXiv 2312.08935): the hard estimate of a step is whether any completion from the state after it
ended right, the soft estimate the share that did; for the last step both are the solution's own verdict. A row, as
TRL's `PRMTrainer` reads it:

    {"prompt": "Anna has 12 ...?", "completions": ["She buys 7: 12 + 7 = 19", "Answer: 19"], "labels": [true, true],
     "values": [0.75, 1.0], "num_completions": [4, 1], ...}

Invariant: a row has as many labels and values as steps; it ends before the first step about which nothing is known, and
equal solutions of a problem make one row.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from flow_dpo.core.errors import DataError
from flow_dpo.core.types import Role, TokenIds
from flow_dpo.runs.records import iter_rows
from flow_dpo.runs.tree_rows import RolloutRow, TreeRow

State = tuple[Role, TokenIds]


def step_rows(run: Path) -> list[dict[str, Any]]:
    """The rows of a run's trees, solution by solution. Raises `DataError` without graded probes, or without prompts."""
    file, num_probes = run / "trees.jsonl", 0
    rows: list[dict[str, Any]] = []
    for line, tree in iter_rows(file, TreeRow):
        num_probes += sum(rollout.probe for rollout in tree.rollouts)
        try:
            rows += _of_tree(tree)
        except ValueError as error:
            raise DataError(f"{file}, line {line}: {error}; export the steps of a newer run") from error
    if not rows:
        why = "no rollout from a state between steps was recorded" if not num_probes else "none of them was graded"
        raise DataError(
            f"expected probes in {file}, from which steps are labelled, found none to use: {why}; train with "
            "--recipe vineppo, or another that samples from the states between steps"
        )
    return rows


def _of_tree(tree: TreeRow) -> Iterator[dict[str, Any]]:
    probed: dict[State, list[bool]] = {}
    for rollout in tree.rollouts:
        if rollout.probe and rollout.status != "ungraded":
            probed.setdefault(_state(tree, rollout.start), []).append(rollout.status == "correct")
    seen: set[tuple[TokenIds, ...]] = set()
    for rollout in tree.rollouts:
        steps = list(range(rollout.start, rollout.leaf + 1))
        ids = tuple(tree.nodes[step].token_ids for step in steps)
        if rollout.probe or ids in seen or tree.nodes[rollout.start].parent is not None:
            continue
        seen.add(ids)
        states = [_state(tree, step) for step in steps]
        last = [] if rollout.status == "ungraded" else [rollout.status == "correct"]
        found = [*(probed.get(state, []) for state in states[1:]), last]
        known = next((at for at, one in enumerate(found) if not one), len(found))
        if known and any(state in probed for state in states):
            yield _row(tree, rollout, steps[:known], found[:known])


def _state(tree: TreeRow, node: int) -> State:
    return tree.nodes[node].role, tree.prompt_ids(node)


def _row(tree: TreeRow, rollout: RolloutRow, steps: list[int], ends: list[list[bool]]) -> dict[str, Any]:
    nodes = [tree.nodes[step] for step in steps]
    return {
        "prompt": tree.problem.question,
        "completions": [node.text.strip() for node in nodes],
        "labels": [any(one) for one in ends],
        "values": [sum(one) / len(one) for one in ends],
        "num_completions": [len(one) for one in ends],
        "problem_id": tree.problem.id,
        "gold": tree.problem.gold,
        "status": rollout.status,
        "rollout": rollout.id,
        "nodes": steps,
        "roles": [node.role for node in nodes],
        "step_ids": [list(node.token_ids) for node in nodes],
        "policy_version": nodes[0].policy_version,
    }
