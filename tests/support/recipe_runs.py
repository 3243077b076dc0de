"""A short run of each recipe on the seed model, and its records as plain JSON: tests recompute from it what it taught.

Two passes over two halves of one batch of problems, so that all but the first update are off policy. Nothing here knows
what a recipe does: a tree is nodes with parents and rollouts with verdicts.

    run = recorded("vineppo", once)
    [rollout["verdict"] for tree in run.trees for rollout in tree["rollouts"]]
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from flow_dpo.cli import train
from flow_dpo.recipes.presets import RECIPES
from tests.support.once import Once

Row = dict[str, Any]
Ids = tuple[int, ...]

WORDS = (
    "--max_problems", "4", "--problems_per_batch", "4", "--examples_per_update", "0", "--minibatches", "2",
    "--epochs_per_batch", "2", "--warmup_updates", "0", "--learning_rate", "0.01",
)  # fmt: skip
MORE: Mapping[str, tuple[str, ...]] = {
    # Smaller trees, and limits that take something away; divergences that show in a loss.
    **dict.fromkeys(("online-dpo", "reinforce-pp"), ("--max_problems", "12", "--problems_per_batch", "12")),
    "reinforce-baseline": ("--kl_coef", "0.1"),
    "dapo": ("--overlong_share", "0.6"),
    "vineppo": ("--num_rollouts", "4", "--num_completions", "3", "--kl_coef", "0.02"),
    "spo-chain": ("--num_rollouts", "4", "--cut_interval", "2", "--kl_coef", "0.05", "--problems_per_update", "0"),
    "spo-tree": ("--max_per_problem", "8", "--kl_coef", "0.05", "--problems_per_update", "0"),
    "treerpo": ("--branch_factors", "[3, 3]", "--problems_per_update", "0"),
    "treerl": ("--num_paths", "6", "--problems_per_update", "0"),
    "rpo": ("--num_completions", "6", "--max_pairs", "3"),
    "malt": ("--branch_factors", "[4, 1, 3]", "--max_problems", "3"),
    "dots": ("--num_rollouts", "2", "--num_rounds", "2", "--num_kept", "3", "--num_best", "1"),
    "regenesis": ("--max_per_problem", "1"),
    "rejection-sampling": ("--max_problems", "6", "--problems_per_batch", "6", "--max_per_problem", "2"),
    "cpl": (
        "--flow.value_role", "--explore.valued_by", "value", "--credit.valued_by", "value", "--credit.fine_tune",
        "--credit.max_per_problem", "1", "--num_iterations", "6",
    ),
}  # fmt: skip
"""Flags of a recipe's run besides."""
ELSEWHERE = ("dapo", "gspo", "cispo", "treerpo", "iterative-rpo", "step-dpo", "malt")
"""Recipes whose credit another test recomputes from a run of its own, or which have another recipe's."""

OTHERS = {name: () for name in RECIPES if name != "flow-dpo"} | {
    "cpl with a value role": (
        "--flow.value_role", "--explore.valued_by", "value", "--credit.valued_by", "value",
    ),
    "cpl in rounds": (
        "--credit.fine_tune", "--objective.rounds", "--learner.reference.kind", "snapshot",
        "--learner.reference.each_batch", "--learner.reference.every", "0",
    ),
    # Smaller trees: the test is of a run's ways, not of its size.
    "malt": ("--explore.branch_factors", "[2, 1, 2]"), "spo-tree": ("--explore.branch_factors", "[3, 2]"),
    "treerpo": ("--explore.branch_factors", "[3, 2]"), "treerl": ("--explore.num_rollouts", "2"),
    "spo-chain": ("--explore.num_rollouts", "3", "--explore.num_completions", "2"),
}  # fmt: skip
"""Recipes, and ways of CPL, with flags for a short run of two batches."""
_SIZES = {
    "grpo": "16", "vineppo": "4", "online-dpo": "1", "spo-chain": "8", "treerl": "16", "spo-tree": "4",
    "treerpo": "4", "step-dpo": "4", "malt": "4",
}  # fmt: skip
"""Examples of an update, by how many a batch has, so that the first has an update, and none has many; else 2."""


@dataclass(frozen=True)
class Recorded:
    """The rows of one run."""

    trees: Sequence[Row]
    pairs: Sequence[Row]
    scored: Sequence[Row]
    learned: Sequence[Row]
    metrics: Sequence[Row]

    def tree(self, problem_id: str) -> Row:
        """The tree of a problem."""
        [found] = [tree for tree in self.trees if tree["problem"]["id"] == problem_id]
        return found


Runs = Callable[[str], Recorded]


def each(names: Iterable[str]) -> list[Any]:
    """Recipes as a test's parameters; a run of what is recomputed elsewhere is made by hand alone."""
    return [pytest.param(one, marks=[pytest.mark.slow] if one in ELSEWHERE else []) for one in names]


def recorded(name: str, once: Once) -> Recorded:
    """The run of a recipe; the first process of the tests that asks makes it."""

    def make(folder: Path) -> None:
        words = ["--recipe", name, *WORDS, *MORE.get(name, ())]
        assert train.train([*words, "--output_dir", str(folder / "run")]) == 0

    made = once(f"recorded-{name}", make) / "run"
    return Recorded(*(_rows(made / f"{kind}.jsonl") for kind in ("trees", "pairs", "scored", "learned", "metrics")))


def tried(name: str, once: Once) -> Path:
    """The folder of a run of two batches of four problems, by its name in `OTHERS`."""

    def make(folder: Path) -> None:
        recipe = name.split()[0]
        words = ["--recipe", recipe, *OTHERS[name], "--max_problems", "8", "--problems_per_batch", "4"]
        words += ["--examples_per_update", _SIZES.get(recipe, "2")]
        assert train.train([*words, "--output_dir", str(folder / "run")]) == 0

    return once(f"tried-{name.replace(' ', '-')}", make) / "run"


def _rows(path: Path) -> list[Row]:
    return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []


def prompt(tree: Row, node: int) -> Ids:
    """All of a node's prompt."""
    own = tree["nodes"][node]["prompt"]
    before: Ids = ()
    if own.get("after") is not None:
        before = (*prompt(tree, own["after"]), *tree["nodes"][own["after"]]["token_ids"])
    return (*before[: own["kept"]], *own.get("token_ids", ()))


def tokens(tree: Row, node: int) -> Ids:
    """Those that were sampled."""
    return tuple(tree["nodes"][node]["token_ids"])


def above(tree: Row, node: int) -> list[int]:
    """A node and all before it, the first one first."""
    parent = tree["nodes"][node]["parent"]
    return [*([] if parent is None else above(tree, parent)), node]


def below(tree: Row, node: int | None) -> list[int]:
    """A node's children."""
    return [one["id"] for one in tree["nodes"] if one["parent"] == node]


def reward(rollout: Row) -> float:
    """1 or 0; nothing else is expected of the seed's short answers."""
    return {"correct": 1.0, "wrong": 0.0}[rollout["verdict"]["status"]]
